"""A tiny LLaVA with a method of its own, and the demo's server with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_client import OWN_BLOCK
from tiny_llava import IMAGE, tiny_model

from llava_prumerge.search.method_file import write_method
from llava_prumerge.viz.demo import serve
from llava_prumerge.viz.demo_server import DemoServer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA that has a method of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

    from llava_prumerge.model.processors import make_processor

    path = tmp_path_factory.mktemp("llava")
    model = tiny_model(OWN_BLOCK)
    words = {**{f"w{index}": index for index in range(IMAGE)}, "<image>": IMAGE}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", additional_special_tokens=["<image>"])
    pil = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    model.save_pretrained(path)
    make_processor(fast, pil, model.config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a method file as the searches write it, and one that is none."""
    folder = tmp_path_factory.mktemp("searched")
    rates = [1.0, 0.75, 0.5, 0.25]
    write_method(folder / "found.yaml", {"name": "rank_schedule", "rates": rates}, None, "found by a search")
    (folder / "notes.yaml").write_text("- not a method\n")
    return folder


@pytest.fixture(scope="module")
def server(checkpoint: Path, searched: Path) -> Iterator[DemoServer]:
    made = serve([str(checkpoint), "--methods", str(searched), "--port", "0", "--device", "cpu"])
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()
