"""MMBench-CN (dev, 2023-10-03): MMBench in Chinese.

Rules: those of MMBench (CircularEval). LLaVA asks with `--lang cn --single-pred-prompt`: the Chinese sentence that asks
for the letter, under the English system prompt. Answers are read by VLMEvalKit's rules without a language model, which
find a letter or the one option whose text is named; LLaVA often answers with the text.
"""

from __future__ import annotations

from pathlib import Path

from llava_prumerge.evaluation.benchmark import Files
from llava_prumerge.evaluation.mmbench import MmBench

OPTION_LETTER_CN = "请直接回答选项字母。"


class MmBenchCn(MmBench):
    """CircularEval accuracy over question groups."""

    name = "mmbench_cn"
    title = "MMB-CN"
    folder = "mmbench_cn"
    suffix = OPTION_LETTER_CN

    def files(self, data: Path) -> Files:
        """The table lies in `mmbench_cn/`, where LLaVA's script reads it, or in `mmbench/`, where its page puts it."""
        name = "mmbench_dev_cn_20231003.tsv"
        places = (data / self.folder / name, data / "mmbench" / name)
        table = next((place for place in places if place.is_file()), places[0])
        return Files(table, table)
