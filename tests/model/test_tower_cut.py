"""Reduction inside the tower: ragged batches, budgets, which towers serve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llava import pixels, rows_of, sample_rows, tiny_config, tiny_model
from torch import nn
from transformers import CONFIG_MAPPING, CLIPVisionConfig, Dinov2Config
from transformers.models.clip.modeling_clip import CLIPEncoder
from transformers.models.dinov2.modeling_dinov2 import Dinov2Encoder

from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.model.attach import attach
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.model.tower_cut import can_be_cut, cut_blocks
from llava_prumerge.model.vision_tower import TOWERS

SPECS = {"clip": TOWERS["clip_vision_model"], "dinov2": TOWERS["dinov2"]}
DINO = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7, mlp_ratio=2)


def tower_blocks(number: int = 8, kind: str = "clip") -> nn.ModuleList:
    """Lively enough that images differ in what their class token looks at."""
    torch.manual_seed(0)
    sizes: Any = dict(hidden_size=16, num_hidden_layers=number, num_attention_heads=2, attn_implementation="sdpa")
    if kind == "clip":
        layers = CLIPEncoder(CLIPVisionConfig(intermediate_size=16, **sizes)).layers.eval()
    else:
        layers = Dinov2Encoder(Dinov2Config(mlp_ratio=1, **sizes)).layer.eval()
        if not can_be_cut(layers[0], SPECS[kind].attention):
            pytest.skip("this release of transformers gives DINOv2's blocks no mask")
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return layers


@torch.no_grad()
@pytest.mark.parametrize("kind", SPECS)
def test_images_drop_their_own_numbers_and_become_the_same_in_any_batch(kind: str) -> None:
    blocks, reducer, where = (
        tower_blocks(kind=kind),
        build_reducer({"name": "flowcut", "budget": 9}),
        SPECS[kind].attention,
    )
    hidden = (
        torch.randn(3, 1 + 48, 16, generator=torch.Generator().manual_seed(1))
        * torch.tensor([0.2, 1, 4])[:, None, None]
    )
    counts: list[list[int]] = []
    plain = reducer.cut

    def watched(block: Any) -> Any:
        keep, carried = plain(block)
        if keep is not None:
            counts.append((keep & block.real).sum(dim=1).tolist())
        return keep, carried

    reducer.cut = watched
    together, before, origin = cut_blocks(blocks, hidden, 2, reducer, where)
    assert counts[-1] == [9, 9, 9] and any(len(set(count)) > 1 for count in counts), (
        "a batch of different numbers on the way"
    )
    assert together.shape == (3, 10, 16) and before.shape == together.shape
    for row in range(3):
        assert origin[row].tolist() == sorted(set(origin[row].tolist()))
        alone, _, left = cut_blocks(blocks, hidden[row : row + 1], 2, reducer, where)
        assert left[0].tolist() == origin[row].tolist()
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("number, budget, after", [(2, 5, 5), (1, 5, 48), (8, 48, 48), (8, 1, 1)])
def test_short_towers_and_extreme_budgets(number: int, budget: int, after: int) -> None:
    """With one block nothing is cut inside; the reducer itself then meets the budget."""
    reducer = build_reducer({"name": "flowcut", "budget": budget})
    hidden = torch.randn(2, 1 + 48, 16, generator=torch.Generator().manual_seed(1))
    made, _, origin = cut_blocks(tower_blocks(number), hidden, 2, reducer)
    assert made.shape[1] == 1 + after == 1 + origin.shape[1] and made.isfinite().all()


def test_blocks_after_a_cut_run_on_fewer_patches_and_only_while_the_method_is_there() -> None:
    model, seen = tiny_model({"vision": {"name": "flowcut", "budget": 5}}), []
    for block in model.model.vision_tower.encoder.layers:
        block.register_forward_pre_hook(lambda _m, given: seen.append(given[0].shape[1]))
    inputs = rows_of(*sample_rows()) | {"pixel_values": pixels(4)}
    output = model.model(**inputs)
    assert seen == [17, 6] and output.visual[:, 0].tolist() == [5, 5, 0, 10]
    assert not any("cutters" in key or "reducer" in key for key in model.model.vision_tower.state_dict())
    seen.clear()
    model.model.use(None)
    model.model(**inputs)
    assert seen[:2] == [17, 17]


def dino_model(kind: str, reduction: dict[str, Any] | None, **more: Any) -> Any:
    """A LLaVA over a tiny DINOv2."""
    vision = CONFIG_MAPPING[kind](**DINO, **more)
    torch.manual_seed(0)
    return PruMergeLlavaForConditionalGeneration(
        tiny_config(reduction, PruMergeLlavaConfig, vision_config=vision)
    ).eval()


def test_a_dinov2_tower_is_cut_and_the_model_reads_what_is_left() -> None:
    tower_blocks(kind="dinov2")  # or skip
    model = dino_model("dinov2", {"vision": {"name": "flowcut", "budget": 5}})
    seen: list[int] = []
    for block in model.model.vision_tower.encoder.layer:
        block.register_forward_pre_hook(lambda _m, given: seen.append(given[0].shape[1]))
    output = model.model(**rows_of(*sample_rows()), pixel_values=pixels(4))
    assert seen == [17, 6] and output.visual[:, 0].tolist() == [5, 5, 0, 10]


def test_towers_whose_patches_follow_more_than_a_class_token_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"flowcut cuts inside the vision tower.*\(CLIP, DINOv2\).*'dinov2_with_registers'"
    ):
        attach(
            dino_model("dinov2_with_registers", None, num_register_tokens=2),
            {"vision": {"name": "flowcut", "budget": 5}},
        )
