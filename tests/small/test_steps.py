"""The chain that measures the small world, and what its page is made of."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_llava import pixels, rows_of, sample_rows, tiny_model

from playground.small import layers, page, reproduce, sight, times


def test_every_step_comes_after_what_it_needs() -> None:
    steps = reproduce.steps(Path("a"), Path("b"), Path("c"))
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for step in steps:
        assert all(name in names[: names.index(step.name)] for name in step.after), step.name
    assert names[-2:] == ["times", "page"]


def test_loss_of_a_row_is_the_mean_of_its_own_supervised_tokens() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[-100, 1, 2, -100, 3], [-100, -100, 4, -100, -100]])
    found = sight.row_losses(logits, labels)
    scores = logits.log_softmax(-1)
    assert torch.isclose(torch.tensor(found[0]), -(scores[0, 0, 1] + scores[0, 1, 2] + scores[0, 3, 3]) / 3)
    assert torch.isclose(torch.tensor(found[1]), -scores[1, 1, 4])


def test_rows_losses_add_up_to_the_models() -> None:
    model = tiny_model({"vision": {"name": "prumerge", "budget": 4}})
    batch = rows_of(*sample_rows(), side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == model.config.image_token_id, -100)
    images = int((batch["input_ids"] == model.config.image_token_id).sum()) // model.config.image_seq_length
    with torch.no_grad():
        output = model(**batch, pixel_values=pixels(images), labels=labels)
    counts = (labels[:, 1:] != -100).sum(1)
    rows = torch.tensor(sight.row_losses(output.logits, output.labels))
    assert output.labels.shape[1] < labels.shape[1], "the method acted"
    assert torch.isclose((rows * counts).sum() / counts.sum(), output.loss, atol=1e-5)


def test_falls_and_spread() -> None:
    assert layers.falls([9, 9, 4, 4, 0]) == {2: 4, 4: 0}
    assert times.spread([4.0, 6.0, 8.0, 10.0], [2.0, 2.0, 2.0, 2.0]) == {
        "seconds": 2.0,
        "faster": 3.5,
        "faster_quartiles": [3.0, 5.0],
    }


def test_parts_are_shares_of_a_whole_answer(monkeypatch) -> None:
    """Stand-ins answer at once and tell parts; what no part tells is reading, and the stock way tells none."""
    parts = {"tower": 1.0, "prefill": 2.0, "decoding": 3.0}
    answers = {times.STOCK: (576, {}), times.FULL: (576, parts), "PruMerge": (100, parts | {"prefill": 0.5})}
    monkeypatch.setattr(times, "ways", lambda *_: {label: lambda _, told=told: told for label, told in answers.items()})
    clock = iter(range(0, 1000, 8))  # each answer takes 8 seconds
    monkeypatch.setattr(times.time, "perf_counter", lambda: next(clock))
    found = times.measure(Path(), [Path("a.jpg")], rounds=2, new_tokens=16)
    assert found[times.STOCK]["parts"] == {}
    assert found[times.FULL]["parts"] == {"reading": 0.25, "tower": 0.125, "prefill": 0.25, "decoding": 0.375}
    assert found["PruMerge"]["parts"]["prefill"] == 0.0625 and set(found["PruMerge"]["parts"]) == set(times.PARTS)


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    for stage in reproduce.STEPS:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text('{"step": 1, "loss": 7.0}\n{"step": 2, "loss": 5.0}\n')
        seen = {"captions": 256, "right": 4.85, "other": 4.9, "difference": 0.05, "half": 0.02}
        (tmp_path / f"sight_{stage}.json").write_text(json.dumps(seen))
    (tmp_path / "pretrain" / "config.yaml").write_text("reduction: {vision: {name: cls_topk, budget: 64}}\n")
    one = {"mean": 61.0, "share": 0.106, "min": 0, "p5": 14.0, "median": 60.0, "p95": 105.0, "max": 130, "paper": 0.055}
    (tmp_path / "kept.json").write_text(json.dumps({"photographs": 2183, "prumerge": one, "prumerge_plus": one}))
    ratio = {"seconds": 1.0, "faster": 2.5, "faster_quartiles": [2.4, 2.6]}
    ways = {"FastV": {"falls": {"2": 288}, "equivalent": 307.0, **ratio}}
    (tmp_path / "layers.json").write_text(json.dumps({"count": 5, "rounds": 3, "ways": ways}))
    parts = dict(zip(times.PARTS, (0.02, 0.2, 0.13, 0.05), strict=True))
    ways = {"PruMerge+": {"kept": 144.0, **ratio, "operations": 2.8, "parts": parts}}
    (tmp_path / "times.json").write_text(json.dumps({"count": 5, "rounds": 5, "new_tokens": 16, "ways": ways}))
    made = tmp_path / "small.md"
    page.main([str(tmp_path), str(made)])
    text = made.read_text()
    for row in (
        "| stage 1, projector | 7.00 | 6.00 | 256 | 4.850 | 4.900 | +0.050 ± 0.020 |",
        "| PruMerge | 61 | 0 | 14 | 60 | 105 | 130 | 10.6% | 5.5% |",
        "| FastV | 288 from layer 2 | 307 | 2.50 [2.40, 2.60] |",
        "| PruMerge+ | 144 | 2.50 [2.40, 2.60] | 2.80 | 2% | 20% | 13% | 5% |",
        "with `cls_topk` at 64 tokens in place",
    ):
        assert row in text
