"""What patches are to become, against loops over patches and regions; and the loss that follows."""

from __future__ import annotations

import pytest
import torch
from tiny_llava import pixels, tiny_model

from llava_prumerge.model.region_loss import covered, patch_targets, region_loss

TEXTS = [[[5, 6], [7]], [], [[8, 9, 5], [6], [7, 7]]]
BOXES = [[[0, 0, 0.5, 0.5], [0.3, 0.2, 1, 0.9]], [], [[0, 0, 1, 1], [0.5, 0, 0.8, 0.3], [0.61, 0.61, 0.62, 0.62]]]


def given() -> dict[str, torch.Tensor]:
    """As the collator lays them out."""
    rows = [[token for tokens in image for token in tokens] or [0] for image in TEXTS]
    owners = [[number for number, tokens in enumerate(image, 1) for _ in tokens] or [0] for image in TEXTS]
    pad = lambda lists: torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in lists], True)  # noqa: E731
    boxes = torch.tensor([box for image in BOXES for box in image])
    return {"input_ids": pad(rows), "region_of": pad(owners), "boxes": boxes, "pixel_values": pixels(3)}


def expected(table: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    targets, inside = torch.zeros(3, rows * columns, table.shape[1]), torch.zeros(3, rows * columns, dtype=torch.bool)
    for image in range(3):
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5) / columns, (row + 0.5) / rows
                for (left, top, right, bottom), tokens in zip(BOXES[image], TEXTS[image], strict=True):
                    tiny = right - left < 0.1 and int(left * columns) == column and int(top * rows) == row
                    if tiny or (left <= x < right and top <= y < bottom):
                        targets[image, row * columns + column] = table[tokens].mean(dim=0)
                        inside[image, row * columns + column] = True
    return targets, inside


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_targets_equal_a_loop_over_patches(grid: tuple[int, int]) -> None:
    table, made = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), given()
    targets, inside = patch_targets(table[made["input_ids"]], made["region_of"], made["boxes"], grid)
    wanted, within = expected(table, *grid)
    torch.testing.assert_close(targets, wanted)
    assert torch.equal(inside, within) and not inside[1].any() and inside[2].all()


def test_a_box_that_the_crop_has_cut_off_covers_nothing() -> None:
    boxes = torch.tensor([[-0.4, 0.2, -0.1, 0.6], [1.0, 0.0, 1.3, 1.0], [-0.5, -0.5, 0.3, 0.3]])
    assert covered(boxes, (4, 4)).sum(dim=1).tolist() == [0, 0, 1]


@pytest.mark.parametrize("changes", [{}, {"vision_feature_select_strategy": "full", "image_seq_length": 17}])
def test_the_loss_weighs_regions_and_background_of_each_image(changes: dict) -> None:
    model = tiny_model(**changes)
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    made = given()
    loss = model(**made).loss
    features = torch.stack(
        model.model.get_image_features(pixel_values=made["pixel_values"], return_dict=True).pooler_output
    )
    wanted, inside = expected(model.get_input_embeddings().weight, 4, 4)
    errors = (features[:, -16:] - wanted).square().mean(dim=-1)
    by_hand = 0.0
    for image in range(3):
        part = [errors[image][chosen].mean() if chosen.any() else 0.0 for chosen in (inside[image], ~inside[image])]
        by_hand += (0.75 * part[0] + 0.25 * part[1]) / 3
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    alone = [region_loss(model, **one(made, image)).loss for image in range(3)]
    torch.testing.assert_close(sum(alone) / 3, loss)


def one(made: dict[str, torch.Tensor], image: int) -> dict[str, torch.Tensor]:
    first = sum(len(boxes) for boxes in BOXES[:image])
    rows = {name: made[name][image : image + 1] for name in ("input_ids", "region_of", "pixel_values")}
    return rows | {"boxes": made["boxes"][first : first + len(BOXES[image])]}
