"""Golden files of methods inside the vision tower: its blocks and their input, patches after each block, features."""

from __future__ import annotations

from typing import Any

import torch
from golden_arrays import Arrays, Comparison, whole

from llava_prumerge.methods.base import VisionReducer, VisionTokens
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.ops.errors import ReductionError


def applies(arrays: Arrays) -> bool:
    """Whether this is such a file."""
    return "embeddings" in arrays and any(name.startswith("blocks.") for name in arrays)


def blocks_of(arrays: Arrays) -> torch.nn.ModuleList:
    """CLIP's blocks with the file's weights."""
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoder

    weights = {
        name.removeprefix("blocks."): value.contiguous() for name, value in arrays.items() if name.startswith("blocks.")
    }
    config = CLIPVisionConfig(
        hidden_size=arrays["embeddings"].shape[2],
        intermediate_size=weights["0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(name.partition(".")[0]) for name in weights),
        num_attention_heads=whole(arrays["heads"]),
    )
    config._attn_implementation = "sdpa"
    layers = CLIPEncoder(config).layers.eval()
    layers.load_state_dict(weights)
    return layers


@torch.no_grad()
def compare(arrays: Arrays, method: str, settings: dict[str, Any]) -> Comparison:
    """Run the blocks with the method and compare; features are those of the last block but one, as LLaVA's are."""
    from llava_prumerge.model.tower_cut import cut_blocks

    reducer: VisionReducer | None = build_reducer({"name": method, **settings})
    if reducer is None or not reducer.cuts:
        raise ReductionError(f"{method} does not act inside the vision tower, which this file is about")
    found, blocks, embeddings = Comparison(), blocks_of(arrays), arrays["embeddings"]
    counts: list[int] = []
    for block in blocks[:-1]:
        block.register_forward_pre_hook(lambda _m, given: counts.append(given[0].shape[1] - 1))
    hidden, _, origin = cut_blocks(blocks[:-1], embeddings, whole(arrays["heads"]), reducer)
    patches = embeddings.shape[1] - 1
    image = VisionTokens(hidden[:, 1:], (1, patches), left=origin, heads=whole(arrays["heads"]))
    features, _, origin = reducer(image)
    found.kept("kept", [sorted(row) for row in origin.tolist()], [sorted(arrays["kept"].tolist())])
    seen = [*counts[1:], origin.shape[1]]
    wanted = arrays["patches_after_block"].tolist()[: len(seen)]
    found.kept("patches_after_block", [seen], [wanted])
    found.values("output", features, arrays["output"])
    return found
