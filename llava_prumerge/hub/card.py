"""The model card: what the model is, how it was made and measured, by which commands, and what it is not good for."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llava_prumerge.hub.evaluations import Evaluation
from llava_prumerge.hub.source import BASE_KEYS, PARTS, ReleaseError, Source
from llava_prumerge.methods.labels import SITES, method_label, method_name

METRIC_TYPES = {"mean_f1": "f1", "perception": "score"}  # the others are accuracies
STAGES = {
    "lora": "LoRA fine-tuning",
    "full": "full fine-tuning",
    "projector": "projector pre-training",
    "method": "training of the method's own weights",
}
SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\b(?:token|password|secret|api_key)=\S+|://[^\s/@]*:[^\s/@]*@", re.IGNORECASE
)
PLAIN_WORD = re.compile(r"[\w@%+=:,./~-]+")  # needs no quotes in a shell
REPOSITORY_PACKAGES = ("llava_prumerge", "playground")


@dataclass(frozen=True)
class Card:
    """Everything a card is written from.

    Attributes:
        repository: NAMESPACE/NAME.
        licence: identifier as the Hub knows it.
        dtype: of the released weights.
        evaluations: results to publish.
    """

    source: Source
    repository: str
    licence: str
    dtype: str
    evaluations: Sequence[Evaluation]

    def text(self) -> str:
        """The whole README.md.

        Raises:
            ReleaseError: a recorded command holds what looks like a secret.
        """
        name = self.repository.split("/")[1]
        parts = (
            f"# {name}",
            self.summary(),
            f"## Use\n\n{self.usage()}",
            f"## Method\n\n{self.method()}",
            f"## Training\n\n{self.training()}",
            f"## Evaluation\n\n{self.results()}",
            f"## Licences\n\n{self.licences()}",
            f"## Limits\n\n{self.limits()}",
        )
        text = f"---\n{self.metadata()}\n---\n\n" + "\n\n".join(parts) + "\n"
        found = SECRET.search(text)
        if found:
            raise ReleaseError(
                f"a recorded command holds what looks like a secret ({found.group()[:6]}...); it would be published in "
                f"the card: remove it from {self.source.run or self.source.weights}/environment.json or the result file"
            )
        return text

    def metadata(self) -> str:
        """The YAML block at the top."""
        from huggingface_hub import EvalResult, ModelCardData

        results = [
            EvalResult(
                task_type="visual-question-answering",
                dataset_type=item.result["task"] if item.official else f"{item.result['task']}-format",
                dataset_name=item.data,
                dataset_split=item.official.split if item.official else None,
                dataset_args={"questions": item.result["questions"]},
                metric_type=METRIC_TYPES.get(item.result["metric"].split(" (")[0], "accuracy"),
                metric_name=item.result["metric"],
                metric_value=item.result["value"],
            )
            for item in self.evaluations
            if item.result["value"] is not None
        ]
        bases = [name for key in BASE_KEYS if (name := self.source.hub_name(key))]
        data = ModelCardData(
            language="en",
            license=self.licence,
            library_name="llava_prumerge",
            pipeline_tag="image-text-to-text",
            tags=["llava", "visual-token-reduction", *self.method_names()],
            base_model=bases or None,
            base_model_relation=("adapter" if self.source.form == PARTS else "finetune") if bases else None,
            model_name=self.repository.split("/")[1],
            eval_results=results or None,
        )
        return data.to_yaml()

    def method_names(self) -> list[str]:
        """The methods that act, without "none"."""
        return [name for name in method_name(self.source.reduction).split("+") if name != "none"]

    def summary(self) -> str:
        """What it is, in a few lines."""
        stage = STAGES.get(str(self.source.settings.get("stage")), "training")
        what = method_label(self.source.reduction)
        with_method = f"visual-token reduction by {what}" if what != "none" else "all visual tokens"
        form = "Trained parts (adapters, projector) of a" if self.source.form == PARTS else "A"
        return (
            f"{form} LLaVA-1.5 model with {with_method}, made by {stage} with `llava_prumerge`. Weights: {self.dtype}."
        )

    def usage(self) -> str:
        """Loading and asking, as code that runs."""
        ask = (
            'image = Image.open("photo.jpg").convert("RGB")\n'
            'text = prompt("vicuna_v1", "What is in this picture?", images=1)\n'
            'inputs = processor(images=image, text=text, return_tensors="pt").to(model.device, model.dtype)\n'
            "answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)\n"
            'print(processor.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))\n'
        )
        imports = "from PIL import Image\n\n"
        imports += "from llava_prumerge.data.conversation import prompt\n"
        if self.source.form == PARTS:
            load = (
                "from huggingface_hub import snapshot_download\nfrom llava_prumerge.model.loading import load_model\n\n"
                f'model, processor = load_model(snapshot_download("{self.repository}"), dtype="{self.dtype}")\n'
            )
        else:
            load = (
                "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
                "import llava_prumerge\n\n"
                "llava_prumerge.register()  # makes the Auto classes know the model\n"
                f'model = AutoModelForImageTextToText.from_pretrained("{self.repository}", dtype="auto")\n'
                f'processor = AutoProcessor.from_pretrained("{self.repository}")\n'
            )
        return f"```python\n{imports}{load}\n{ask}```"

    def method(self) -> str:
        """The method block and what its methods do."""
        from llava_prumerge.methods.registry import discover

        known = discover()
        lines = []
        for site in SITES:
            block = self.source.reduction.get(site)
            if block and block["name"] in known:
                about = (inspect.getdoc(known[block["name"]]) or "").splitlines()
                lines.append(f"- `{block['name']}`{': ' + about[0] if about else ''}")
        block = yaml.safe_dump(self.source.reduction, sort_keys=False, default_flow_style=None).strip()
        stored = (
            f"`config.json` holds this block, and `method.yaml` the same as a method file:\n\n```yaml\n{block}\n```"
        )
        return "\n".join(lines) + f"\n\n{stored}" if lines else stored

    def training(self) -> str:
        """Where the weights come from, by which commands."""
        source, lines = self.source, []
        for key, path in source.base_paths.items():
            hub = source.hub_name(key)
            name = f"[{hub}](https://huggingface.co/{hub})" if hub else f"`{Path(path).name}` (not on the Hub)"
            lines.append(f"- {key.replace('_', ' ')}: {name}")
        if source.settings.get("data"):
            lines.append(f"- data: `{Path(str(source.settings['data'])).name}`")
        code = [
            start["code"]["revision"] + ("+" if start["code"]["dirty"] else "")
            for start in source.starts
            if start["code"]["revision"]
        ]
        if code:
            lines.append(
                f"- code: {', '.join(dict.fromkeys(code))}{' (+: with local changes)' if any('+' in c for c in code) else ''}"
            )
        if source.starts:
            last = source.starts[-1]
            versions = ", ".join(f"{name} {version}" for name, version in last["packages"].items() if version)
            lines.append(f"- libraries: Python {last['python']}, {versions}; processes: {last['world_size']}")
        commands = list(dict.fromkeys(show_command(start["command"]) for start in source.starts))
        if commands:
            lines.append("\n```bash\n" + "\n".join(commands) + "\n```")
        return "\n".join(lines) or "No record of the training lies beside this checkpoint."

    def results(self) -> str:
        """A table of the results and the commands that made them."""
        if not self.evaluations:
            return "No evaluation results are published with this checkpoint."
        head = "| data | metric | value | 95% interval | n | visual tokens kept | code |\n|---|---|---|---|---|---|---|"
        rows = [head, *(evaluation_row(item) for item in self.evaluations)]
        commands = dict.fromkeys(
            show_command(item.result["command"]) for item in self.evaluations if "command" in item.result
        )
        dtypes = ", ".join(sorted({str(item.result["generation"].get("dtype")) for item in self.evaluations}))
        notes = [f"Greedy answers, weights in {dtypes}, scored by `llava_prumerge`'s `eval`."]
        if any(item.official is None for item in self.evaluations):
            notes.append("Rows that are not of the official set cannot be compared with published numbers.")
        block = "\n\n```bash\n" + "\n".join(commands) + "\n```" if commands else ""
        return "\n".join(rows) + "\n\n" + " ".join(notes) + block

    def licences(self) -> str:
        """What binds the weights, the code and those who use them."""
        lines = [f"- These weights: `{self.licence}`.", "- The code, `llava_prumerge`: Apache-2.0."]
        for key in self.source.base_paths:
            hub = self.source.hub_name(key)
            if hub:
                lines.append(f"- [{hub}](https://huggingface.co/{hub}): its own terms apply as well.")
        if "llava" in Path(str(self.source.settings.get("data", ""))).name:
            lines.append(
                "- LLaVA's training data: its sources' licences, and OpenAI's terms of use where GPT-4 wrote it."
            )
        return "\n".join(lines)

    def limits(self) -> str:
        """What nobody should expect of it."""
        lines = [
            "- It needs `llava_prumerge`: the model type is not part of transformers, and no code is downloaded with it.",
            "- It can describe what is not in an image, as models of this kind do, and must not decide about people.",
            "- English, one image per question and LLaVA's prompt (`vicuna_v1`) are what it is made for.",
        ]
        if self.method_names():
            lines.insert(
                1, "- Visual tokens that the method drops are lost: answers about what lay there may be wrong."
            )
        if not self.evaluations:
            lines.append("- It was not evaluated, or its results are not published.")
        return "\n".join(lines)


def evaluation_row(item: Evaluation) -> str:
    """One line of the table; a number with its interval, its n and what the method kept."""
    result, kept = item.result, item.result.get("kept")
    low, high = result.get("interval_95") or (None, None)
    tokens = f"{kept['mean']:.1f} of {kept['of']}" if kept else ""
    value = "not scored: no annotations" if result["value"] is None else f"{result['value']:.1f}"
    if item.maximum != 100 and result["value"] is not None:
        value += f" of {item.maximum:g}"
    interval = "" if low is None else f"{low:.1f} to {high:.1f}"
    code = str(result.get("revision") or "")
    cells = [
        item.data,
        result.get("metric", ""),
        value,
        interval,
        str(result.get("n", "")),
        tokens,
        code[:12] + ("+" if code.endswith("+") else ""),
    ]
    return f"| {' | '.join(cells)} |"


def show_command(words: Sequence[Any]) -> str:
    """A recorded command line as one types it: modules by name, paths from here or from home."""
    shown = [show_word(str(word)) for word in words]
    if len(shown) > 1 and Path(shown[0]).name.startswith("python"):
        shown[0] = "python"
        parts = Path(str(words[1])).with_suffix("").parts
        starts = [at for at, part in enumerate(parts) if part in REPOSITORY_PACKAGES]
        if starts and str(words[1]).endswith(".py"):  # the last: a checkout's folder may be called like its package
            shown[1:2] = ["-m", ".".join(part for part in parts[starts[-1] :] if part != "__main__")]
    return " ".join(word if PLAIN_WORD.fullmatch(word) else shlex.quote(word) for word in shown)


def show_word(word: str) -> str:
    """A word of a command whose path, if it is one, is told from the working directory or from home."""
    key, equals, value = word.partition("=")
    path = value if equals and not key.startswith("/") else word
    for place, name in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.startswith(f"{place}/"):
            return word[: len(word) - len(path)] + name + path.removeprefix(f"{place}/")
    if path.startswith("/") and path.count("/") > 1:  # of this machine alone
        return word[: len(word) - len(path)] + f".../{Path(path).name}"
    return word
