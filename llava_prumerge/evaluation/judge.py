"""Judge models: free answers graded by any OpenAI-compatible endpoint, each reply kept so that nothing is asked twice.

A judge is named by `judge=URL` (such as http://127.0.0.1:8000/v1) and `judge_model=NAME`; the key is read from
OPENAI_API_KEY and never written. Replies lie beside the answer file, by the digest of the whole request, with the model
that the endpoint says has answered: a killed run goes on, and another judge or prompt asks anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llava_prumerge.evaluation.records import EvaluationError, shorten
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.json_lines import append_json_lines, read_json_lines

Message = Mapping[str, str]
TRIES = 4
WAIT = 2.0
TIMEOUT = 120.0
"""Seconds without a byte."""
LONGEST = 600.0
"""Seconds for a reply in all."""
LARGEST_REPLY = 1 << 20
BUSY = (408, 409, 429, 500, 502, 503, 504)


class Judge(Protocol):
    """Whoever grades."""

    def ask(self, messages: Sequence[Message], temperature: float, max_tokens: int, attempt: int = 0) -> str:
        """The reply to a conversation; another attempt at the same conversation is another question."""

    def describe(self) -> dict[str, Any]:
        """Who it is, for the result file."""


class EndpointJudge:
    """A model behind an OpenAI-compatible `chat/completions`.

    Args:
        url: of the API, up to and including its version (`https://api.openai.com/v1`).
        model: the name to ask for.
        cache: a JSON-lines file of replies.

    Raises:
        EvaluationError: the address is none, or the cache holds something else.
    """

    def __init__(self, url: str, model: str, cache: Path) -> None:
        if not url.startswith(("http://", "https://")):
            raise EvaluationError(f"judge={shorten(url)} is not an address such as https://api.openai.com/v1")
        self.url, self.model, self.cache = url.rstrip("/"), model, cache
        self.shown = re.sub("//[^/@]*@", "//", self.url)  # without a password
        self.versions: set[str] = set()
        self.replies: dict[str, dict[str, Any]] = {}
        self.asked = 0
        if cache.exists():
            try:
                records = [record for _, record in read_json_lines(cache, cut_off=True)]  # a kill may have cut the last
            except FileError as error:
                raise EvaluationError(f"{error}; it is a judge's replies: remove the line, or move the file") from error
            if any(not isinstance(record.get(key), str) for record in records for key in ("key", "reply", "model")):
                raise EvaluationError(f"{cache}: not a file of a judge's replies; move it away")
            self.replies = {record["key"]: record for record in records}

    def ask(self, messages: Sequence[Message], temperature: float, max_tokens: int, attempt: int = 0) -> str:
        """A reply, from the cache where it is there."""
        request = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        content = json.dumps([self.url, request, attempt], sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(content.encode()).hexdigest()
        if key not in self.replies:
            record = {"key": key, **self._send(request)}
            append_json_lines(self.cache, [record])
            self.replies[key] = record
        self.versions.add(str(self.replies[key]["model"]))
        return str(self.replies[key]["reply"])

    def _send(self, request: Mapping[str, Any]) -> dict[str, str]:
        """One request, tried again while the endpoint is busy."""
        import httpx

        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        for attempt in range(TRIES):
            try:
                status, content = self._post(request, headers)
            except httpx.InvalidURL as error:
                raise EvaluationError(f"judge={shorten(self.shown)} is no address: {error}") from error
            except (httpx.HTTPError, TimeoutError) as error:
                raised: str = type(error).__name__
            else:
                self.asked += 1
                if content is None:
                    raise EvaluationError(f"the judge at {self.shown} replies with more than {LARGEST_REPLY:,} bytes")
                if status == 200:
                    return self._read(content)
                raised = f"status {status}"
                if status not in BUSY:
                    break
            if attempt + 1 < TRIES:
                time.sleep(WAIT * 2**attempt)
        raise EvaluationError(f"the judge at {self.shown} gives no reply ({raised}); what it has said so far is kept")

    def _post(self, request: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, bytes | None]:
        """One request. -> the status, and the reply; None for one that is too long, which is not read to its end

        Raises:
            httpx.HTTPError: there is no reply.
            TimeoutError: it drips.
        """
        import httpx

        content, deadline = bytearray(), time.monotonic() + LONGEST
        address = f"{self.url}/chat/completions"
        with httpx.stream("POST", address, json=request, headers=headers, timeout=TIMEOUT) as answer:
            for piece in answer.iter_bytes(1 << 14):
                content += piece
                if len(content) > LARGEST_REPLY:
                    return answer.status_code, None
                if time.monotonic() > deadline:
                    raise TimeoutError
            return answer.status_code, bytes(content)

    def _read(self, content: bytes) -> dict[str, str]:
        """Reply and model out of a response."""
        try:
            reply = json.loads(content)
            text = reply["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise EvaluationError(f"the judge at {self.shown} answers in another form than chat/completions") from error
        return {"reply": text if isinstance(text, str) else "", "model": str(reply.get("model", self.model))}

    def describe(self) -> dict[str, Any]:
        """The endpoint, the name that was asked for and the versions that answered."""
        return {"url": self.shown, "model": self.model, "versions": sorted(self.versions), "replies": len(self.replies)}
