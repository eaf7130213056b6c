"""The layer search, on VTW: the divergence by hand, the choice of the layer, and the command from checkpoint to method file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_llava import IMAGE, pixels, rows_of, sample_rows, stock_twin, tiny_model

from llava_prumerge.search import layer as layer_search
from llava_prumerge.search.__main__ import main as search_main
from llava_prumerge.search.calibration import read_pairs
from llava_prumerge.search.command import SearchError
from llava_prumerge.search.comparison import divergence
from llava_prumerge.search.method_file import method_text


def test_divergence_is_kl_of_withdrawn_from_full() -> None:
    withdrawn, full = torch.tensor([[0.0, 1.0, -2.0]]), torch.tensor([[0.5, 0.0, 0.0]])
    ours, theirs = withdrawn[0].softmax(dim=0).tolist(), full[0].softmax(dim=0).tolist()
    expected = sum(p * math.log(p / q) for p, q in zip(ours, theirs, strict=True))
    assert divergence(withdrawn, full).tolist() == pytest.approx([expected], rel=1e-6)
    authors = torch.nn.KLDivLoss(reduction="batchmean")(full.log_softmax(-1), withdrawn.softmax(-1))
    assert divergence(withdrawn, full).item() == pytest.approx(authors.item(), rel=1e-5)
    assert divergence(full, full).item() == 0.0 and divergence(withdrawn + 7, full).item() == pytest.approx(expected)


@pytest.mark.parametrize("own", [None, {"decoder": {"name": "fastv"}}])
def test_divergences_equal_masking_in_the_stock_model(own: dict[str, Any] | None) -> None:
    """Each sample alone, in a stock model whose deeper layers see no visual keys; a pruner of its own is left out."""
    model = tiny_model(own)
    before = model.model.language_model.pruner
    rows = [sample_rows()[0], sample_rows()[1]]
    batch = rows_of(*rows) | {"pixel_values": pixels(2)}
    found = layer_search.layer_divergences(
        model, [batch, batch], [1, 2, 3], lambda layer: {"name": "vtw", "layer": layer}
    )
    assert found.shape == (4, 3) and torch.equal(found[:2], found[2:]) and (found > 0).all()
    assert model.model.language_model.pruner is before
    for row, ids in enumerate(rows):
        inputs = rows_of(ids) | {"pixel_values": pixels(2)[row : row + 1]}
        with torch.no_grad():
            full = stock_twin(model)(**inputs).logits[:, -1]
        for at, layer in enumerate((1, 2, 3)):
            withdrawn = masked_logits(model, inputs, layer)
            assert found[row, at].item() == pytest.approx(divergence(withdrawn, full).item(), rel=1e-3, abs=1e-7)


def masked_logits(model: Any, inputs: dict[str, torch.Tensor], layer: int) -> torch.Tensor:
    """Last logits of the stock model with visual keys masked from a layer on."""
    stock, length = stock_twin(model, "eager"), inputs["input_ids"].shape[1]
    causal = torch.full((1, 1, length, length), -torch.inf).triu(1)
    without = causal.masked_fill((inputs["input_ids"] == IMAGE)[:, None], -torch.inf)
    without = without.masked_fill(torch.eye(length, dtype=torch.bool), 0.0)
    for index, block in enumerate(stock.model.language_model.layers):
        mask = without if index >= layer else causal
        block.register_forward_pre_hook(
            lambda _m, args, kw, mask=mask: (args, kw | {"attention_mask": mask}), with_kwargs=True
        )
    with torch.no_grad():
        return stock(**inputs).logits[:, -1]


def test_the_first_layer_within_the_threshold_is_chosen() -> None:
    assert layer_search.choose_layer([2, 3, 4, 5], [0.4, 0.01, 0.02, 0.001], 0.015) == 3
    assert layer_search.choose_layer([2, 3], [0.01, 0.0], 0.01) == 2
    with pytest.raises(SearchError, match="no layer of 2 to 3 .* the least is 0.2"):
        layer_search.choose_layer([2, 3], [0.4, 0.2], 0.1)


def test_the_file_keeps_the_vision_reducer_and_replaces_the_pruner() -> None:
    text = method_text(
        {"name": "vtw", "layer": 3},
        {"vision": {"name": "prumerge", "budget": 4}, "decoder": {"name": "fastv"}},
        "a note",
    )
    assert text.startswith("# a note\n")
    assert yaml.safe_load(text) == {"vision": {"name": "prumerge", "budget": 4}, "decoder": {"name": "vtw", "layer": 3}}
    assert yaml.safe_load(method_text({"name": "vtw", "layer": 2}, None, "x")) == {
        "decoder": {"name": "vtw", "layer": 2}
    }


def test_pairs_are_spread_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    records = [{"question_id": at, "text": f"q{at}", **({"image": f"{at}.png"} if at % 2 else {})} for at in range(20)]
    file.write_text("\n".join(map(json.dumps, records)))
    assert [pair.image for pair in read_pairs(file, 5)] == ["1.png", "5.png", "9.png", "13.png", "17.png"]
    assert len(read_pairs(file, 99)) == 10
    with pytest.raises(SearchError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl", 5)
    with pytest.raises(SearchError, match="0 questions"):
        read_pairs(file, 0)
    file.write_text(json.dumps({"text": "no image"}))
    with pytest.raises(SearchError, match="holds no record with an image"):
        read_pairs(file, 5)


def test_the_command_writes_a_method_file_that_builds(
    pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found" / "vtw.yaml"
    command = [
        "--model",
        str(pocket / "model"),
        "--questions",
        str(pocket / "questions.jsonl"),
        "--images",
        str(pocket),
        "--out",
        str(out),
    ]
    assert (
        search_main(["vtw", *command, "--samples", "3", "--batch-size", "2", "--threshold", "1e9", "--device", "cpu"])
        == 0
    )
    printed = capsys.readouterr().out
    assert printed.count("KL(withdrawn || full)") == 5 and "K = 1" in printed
    assert yaml.safe_load(out.read_text()) == {"decoder": {"name": "vtw", "layer": 1}}
    assert out.read_text().startswith("# VTW") and "on 3 questions of questions.jsonl" in out.read_text()
    assert search_main(["vtw", *command, "--samples", "3", "--threshold", "-1", "--device", "cpu"]) == 2
    assert "no layer of 1 to 5" in capsys.readouterr().err
    assert search_main(["vtw", *command, "--first", "9"]) == 2 and "--first 9" in capsys.readouterr().err
    assert layer_search.main([*command, "--method", "dart"]) == 2 and "there are: vtw" in capsys.readouterr().err
    command[3] = str(pocket / "none.jsonl")
    assert search_main(["vtw", *command]) == 2 and "no such file" in capsys.readouterr().err
