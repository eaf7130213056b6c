"""Stand-ins for bad samples: sound, of the same modality, and the same whoever asks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from llava_prumerge.data.collator import Collator
from llava_prumerge.data.dataset import LlavaDataset
from llava_prumerge.data.errors import SampleError
from llava_prumerge.data.images import ImageError, ImagePreprocessor
from llava_prumerge.data.quarantine import BadSample, QuarantiningDataset

BAD = {3: "missing", 4: "image without marker", 9: "empty turn", 20: "format", 21: "missing"}


def records() -> list[dict[str, Any]]:
    """Forty records, every third without an image; the bad ones are those of `BAD`."""
    made = []
    for index in range(40):
        has_image = index % 3 != 0 or BAD.get(index) == "missing"
        question = "<image>\nhi?" if has_image else "hi?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "red cat"}]
        made.append({"id": f"r{index}", "conversations": turns} | ({"image": "a.jpg"} if has_image else {}))
    made[3]["image"] = made[21]["image"] = "lost/no.jpg"
    made[4]["conversations"][0]["value"] = "hi?"
    made[9]["conversations"][1]["value"] = " "
    made[20]["conversations"] = "hi"
    return made


@pytest.fixture
def make_dataset(tmp_path: Path, word_tokenizer: PreTrainedTokenizerFast, save_image: Callable[..., Path]) -> Callable:
    save_image("a.jpg")

    def make(content: list[Any], seed: int = 0) -> QuarantiningDataset:
        path = tmp_path / "records.json"
        path.write_text(json.dumps(content))
        clip = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        settings = {"image_token_id": 9000, "image_tokens": 4, "cache_dir": tmp_path / "cache"}
        preprocessor = ImagePreprocessor(clip)
        dataset = LlavaDataset(path, tmp_path / "images", word_tokenizer, preprocessor, "vicuna_v1", **settings)
        return QuarantiningDataset(dataset, seed)

    return make


def test_bad_samples_are_replaced_and_named(make_dataset: Callable) -> None:
    dataset = make_dataset(records())
    items = [dataset[index] for index in range(len(dataset))]
    bad = {item["quarantined"][0].index: item["quarantined"][0] for item in items if "quarantined" in item}
    assert {index: sample.reason.split(":")[0] for index, sample in bad.items()} == BAD
    for index, sample in bad.items():
        assert sample.sample_id == f"r{index}" and sample.replacement not in BAD
        assert items[index]["id"] == f"r{sample.replacement}"
        if index != 20:  # of the malformed one no image is known
            assert ("pixel_values" in items[index]) == ("image" in records()[index])
    assert all(items[index]["id"] == f"r{index}" for index in set(range(40)) - set(BAD))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_the_same_for_any_number_of_ranks_and_workers(make_dataset: Callable, workers: int) -> None:
    dataset = make_dataset(records())
    expected = [dataset[index] for index in range(40)]
    found: dict[str, Any] = {}
    for rank in range(2):  # two ranks of this many workers, each in an order of its own
        order = list(range(rank, 40, 2))[:: 1 - 2 * rank]
        loader = torch.utils.data.DataLoader(
            make_dataset(records()), batch_size=1, sampler=order, num_workers=workers, collate_fn=Collator(0)
        )
        found |= dict(zip(order, loader, strict=True))
    for index in range(40):
        assert found[index]["ids"] == [expected[index]["id"]]
        assert found[index].get("quarantined") == expected[index].get("quarantined")
        assert torch.equal(found[index]["input_ids"][0], expected[index]["input_ids"])


def test_the_seed_draws_and_a_folder_that_is_missing_burdens_no_one_record(make_dataset: Callable) -> None:
    content = records()
    for record in content[10:20]:
        if "image" in record:
            record["image"] = "lost/no.jpg"
    first, other = ([s[i] for i in range(10, 20)] for s in (make_dataset(content), make_dataset(content, seed=1)))
    assert [item["id"] for item in first] != [item["id"] for item in other]
    standing_in = Counter(item["quarantined"][0].replacement for item in first if "quarantined" in item)
    assert sum(standing_in.values()) == 7 and len(standing_in) >= 4


def test_a_malformed_record_of_a_file_where_all_have_images(make_dataset: Callable) -> None:
    content = [{**records()[1], "id": str(index)} for index in range(4)] + [{"id": "m", "conversations": 1}]
    item = make_dataset(content)[4]
    assert item["quarantined"][0].sample_id == "m" and "pixel_values" in item


def test_nothing_sound_is_an_error_that_names_the_first(make_dataset: Callable) -> None:
    content = [{**record, "image": "lost/no.jpg"} for record in records() if "image" in record]
    with pytest.raises(ImageError, match=r"sample r1: missing: 'lost/no\.jpg'.*none of 64 samples"):
        make_dataset(content)[0]
    with pytest.raises(SampleError, match="none of 64"):
        make_dataset(content[:1])[0]


def test_other_errors_are_not_a_samples_fault(make_dataset: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(records())
    monkeypatch.setattr(LlavaDataset, "__getitem__", lambda self, index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dataset[0]


def test_the_collator_hands_them_on(make_dataset: Callable) -> None:
    dataset = make_dataset(records())
    batch = Collator(0)([dataset[index] for index in (2, 3, 5, 21)])
    assert [type(bad) for bad in batch["quarantined"]] == [BadSample] * 2
    assert [bad.index for bad in batch["quarantined"]] == [3, 21]
    assert "quarantined" not in Collator(0)([dataset[2], dataset[5]])
