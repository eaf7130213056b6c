"""Packed records: token for token what their turns are as records of one turn, and the trainer's losses are those of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_prumerge.data.packing import pack, single_turns
from llava_prumerge.train.arguments import load_arguments
from llava_prumerge.train.assembly import build_dataset, build_trainer
from llava_prumerge.train.run import main
from llava_prumerge.train.stages import load_start

MARKER = "<image>\n"


@pytest.fixture(scope="module")
def files(world) -> dict[str, Path]:
    """The world's records with more turns, and the same cut into records of one turn each, both with the number of the record."""
    records = json.loads((world.folder / "records.json").read_text())
    whole, cut = [], []
    for number, record in enumerate(records[:12]):
        turns = record["conversations"][:2]
        for question, answer in (("What is this", "a field"), ("Say a word", "red red"), ("Say a word", "blue"))[
            : number % 4
        ]:
            turns = [*turns, {"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        whole.append({**record, "conversations": turns})
        for turn in range(0, len(turns), 2):
            question = dict(turns[turn])
            if turn and "image" in record:
                question["value"] = MARKER + question["value"]
            cut.append({**record, "conversations": [question, turns[turn + 1]]})
    places = {}
    for name, content in (("packed", whole), ("cut", cut)):
        places[name] = world.folder / f"{name}_turns.json"
        places[name].write_text(json.dumps(content))
    return places


def words(world, run: Path, files: dict[str, Path], name: str, **changes: Any) -> list[str]:
    packing = {"packing": "turns"} if name == "packed" else {}
    return world.recipe("lora", run, **{"data": str(files[name]), "lora_dropout": 0.0} | packing | changes)


def test_a_packed_record_is_its_turns_side_by_side(world, files, tmp_path) -> None:
    items = {}
    for name in files:
        arguments = load_arguments(words(world, tmp_path / name, files, name))
        model, processor = load_start(arguments)
        dataset = build_dataset(arguments, model.config, processor)
        items[name] = [dataset[number] for number in range(len(dataset))]
    singles = iter(items["cut"])
    for item in items["packed"]:
        shared = item["turn_of"] == 0
        for turn in range(1, max(int(item["turn_of"].max()), 1) + 1):
            seen = shared | (item["turn_of"] == turn)
            single = next(singles)
            assert torch.equal(item["input_ids"][seen], single["input_ids"])
            assert torch.equal(item["labels"][seen], single["labels"])
        assert (item["labels"][shared] == -100).all() or not item["turn_of"].any()
    assert next(singles, None) is None and max(int(item["turn_of"].max()) for item in items["packed"]) == 4


def test_the_trainers_loss_is_that_of_the_turns(world, files, tmp_path) -> None:
    losses, tokens = {}, {}
    for name in files:
        trainer = build_trainer(load_arguments([*words(world, tmp_path / name, files, name), world.prumerge_plus]))
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer.data_collator([trainer.train_dataset[number] for number in range(len(trainer.train_dataset))])
        tokens[name] = int((batch["labels"][:, 1:] != -100).sum())
        trainer.model.train()
        losses[name] = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(tokens[name])).item()
    assert tokens["packed"] == tokens["cut"]
    assert losses["packed"] == pytest.approx(losses["cut"], rel=1e-6)


@pytest.mark.parametrize("method", ["prumerge_plus", None])
def test_it_trains(world, files, tmp_path, method: str | None) -> None:
    recipe = words(world, tmp_path / "run", files, "packed", max_steps=2, save_steps=0)
    assert main([*recipe, *([world.prumerge_plus] if method else [])]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all(json.loads(line)["loss"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"reduction": {"decoder": {"name": "fastv", "layer": 1}}},
            "packing=turns: fastv would choose tokens by all turns of a record together",
        ),
        ({"reduction": {"vision": {"name": "par"}}}, "packing=turns: par would choose tokens by all turns"),
        ({"attention": "flash_attention_2"}, "packing=turns needs objective=answers and attention=sdpa or eager"),
    ],
)
def test_what_cannot_be_packed_is_one_line(world, files, tmp_path, capsys, change, message) -> None:
    assert main(words(world, tmp_path / "run", files, "packed", **change)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def talk(*turns: str, images: int = 0) -> dict[str, Any]:
    said = [{"from": ("human", "gpt")[at % 2], "value": value} for at, value in enumerate(turns)]
    return {"conversations": said, "image": [f"{at}.png" for at in range(images)], "video": []}


def test_which_records_are_cut_into_turns() -> None:
    cut = single_turns(talk("<image>\nq", "a", "r", "b", images=1))
    assert [[turn["value"] for turn in one["conversations"]] for one in cut] == [
        ["<image>\nq", "a"],
        ["<image>\nr", "b"],
    ]
    system = {"from": "system", "value": "be kind"}
    record = talk("q", "a", "r", "b")
    record["conversations"].insert(0, system)
    assert [one["conversations"][0] for one in single_turns(record)] == [system, system]
    for whole in (
        talk("q", "a", "<image>\nr", "b", images=1),
        talk("<image>\nq", "a", "<image>\nr", "b", images=2),
        talk("<image>\nq", "a", "r", images=1),
        talk("<image>\nq", "a", images=0),
    ):
        assert single_turns(whole) == []


def test_what_is_shared_ends_ahead_of_what_is_learnt() -> None:
    one = {"input_ids": [1, 50, 50, 4, 5, 6, 2], "labels": [-100] * 5 + [6, 2]}
    other = {"input_ids": [1, 50, 50, 4, 5, 6, 7, 2], "labels": [-100] * 5 + [6, 7, 2]}
    made = pack([one, other], 50, None)
    assert made["input_ids"] == [1, 50, 50, 4, 5, 6, 2, 5, 6, 7, 2] and made["turn_of"] == [0] * 4 + [1] * 3 + [2] * 4
    assert made["labels"] == [-100] * 5 + [6, 2] + [-100, 6, 7, 2]
    assert pack([one, other], 50, 10)["input_ids"] == one["input_ids"], "a turn that has no room is left out"
    caption = {"input_ids": [50, 50, 7], "labels": [-100, -100, 7]}
    assert pack([caption, caption], 50, None) is None, "nothing stands between image and answer"
