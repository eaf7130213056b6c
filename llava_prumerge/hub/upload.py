"""The upload: one commit, so that a release is on the Hub as a whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path

from llava_prumerge.hub.export import MANIFEST, MODEL_FILES, PROCESSOR_FILES
from llava_prumerge.hub.scan import check_clean
from llava_prumerge.hub.source import BASE_FILE, ReleaseError

logger = logging.getLogger("llava_prumerge.hub")

# What a release can hold: of an earlier one they would be read instead of, or beside, the files of this one.
RELEASE_FILES = (*MODEL_FILES, *PROCESSOR_FILES, BASE_FILE)


def check_login() -> None:
    """Fail before the work is done, not after it, where no token is at hand. The token itself is the library's business."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise ReleaseError("no Hub token: run `hf auth login` or set HF_TOKEN (a dry run needs none: --dry-run)")


def upload(folder: Path, repository: str, private: bool) -> str:
    """Upload a release folder, and return the address of the commit.

    Args:
        folder: as `export` wrote it.
        repository: NAMESPACE/NAME, made where it is missing.
        private: whether a new repository is visible to its owners alone.

    Raises:
        ReleaseError: in one line, what the Hub answered, or what must not be published; the folder stays as it is.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    check_clean(folder)
    api = HfApi()
    names = sorted(path.name for path in folder.iterdir())
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        there = [name for name in api.list_repo_files(repository) if "/" not in name]
        stale = [
            name for name in there if name not in names and (name in RELEASE_FILES or name.endswith(".safetensors"))
        ]
        operations = [CommitOperationAdd(name, folder / name) for name in names]
        operations += [CommitOperationDelete(name) for name in stale]
        if stale:
            logger.info("replacing an earlier release: %s will go", ", ".join(stale))
        commit = api.create_commit(repository, operations, commit_message=f"Release, made as {MANIFEST} says")
    except Exception as error:  # the library's errors, its HTTP client's, and what a broken connection raises
        raise ReleaseError(
            f"upload to {repository} failed: {explain(error)}. The release is complete in {folder}; the same command "
            "uploads it without making it again"
        ) from error
    return commit.commit_url


def explain(error: BaseException) -> str:
    """The reason in one line: the Hub's status and words, or the error's own."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # wrapped once per file that is sent
        error = error.__cause__
    response = getattr(error, "response", None)
    words = " ".join(str(getattr(error, "server_message", None) or error).split()).rstrip(".")
    if response is None:
        return f"{type(error).__name__}: {words[:300]}"
    advice = {401: " (is the token valid?)", 403: " (may the token write there?)"}.get(response.status_code, "")
    return f"the Hub answered {response.status_code}{advice}: {words[:300]}"
