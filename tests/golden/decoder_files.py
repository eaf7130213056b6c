"""Golden files of methods inside the decoder: a tiny Llama's weights and inputs, kept patches, last states, decoding steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from golden_arrays import Arrays, Comparison, read, whole
from torch import Tensor

from llava_prumerge.methods.base import DecoderShape
from llava_prumerge.methods.contract import left_of
from llava_prumerge.methods.registry import build_pruner
from llava_prumerge.ops.errors import ReductionError

INPUTS = "decoder_inputs.npz"


def applies(arrays: Arrays) -> bool:
    """Whether this is such a file."""
    return "last_hidden" in arrays


class Decoder:
    """The tiny Llama of a folder of golden files, with a pruner or without one.

    Args:
        shared: the arrays of `decoder_inputs.npz`.
        arrays: of the file; its own inputs go first.
        block: of the pruner, or None.
    """

    def __init__(self, shared: Arrays, arrays: Arrays, block: dict[str, Any] | None) -> None:
        from transformers import LlamaConfig, LlamaModel

        from llava_prumerge.model.attach import in_front_of
        from llava_prumerge.model.decoder import PrunesLayers

        weights = {name.removeprefix("weight."): value for name, value in shared.items() if name.startswith("weight.")}
        hidden = weights["norm.weight"].shape[0]
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=hidden,
            intermediate_size=weights["layers.0.mlp.gate_proj.weight"].shape[0],
            num_hidden_layers=whole(shared["layers"]),
            num_attention_heads=whole(shared["heads"]),
            num_key_value_heads=whole(shared["heads"]),
            rms_norm_eps=float(shared["rms_norm_eps"]),
            max_position_embeddings=4096,
        )
        self.model = in_front_of(PrunesLayers, LlamaModel)(config).eval()
        self.model.load_state_dict(weights | {"embed_tokens.weight": torch.zeros(8, hidden)})
        self.embeds = arrays.get("inputs_embeds", shared["inputs_embeds"])
        self.steps = arrays.get("decode_embeds", shared["decode_embeds"])
        start, length = whole(shared["image_start"]), whole(arrays.get("image_length", shared["image_length"]))
        places = torch.arange(self.embeds.shape[1])[None]
        self.is_image = (places >= start) & (places < start + length)
        self.origin = torch.where(self.is_image, places - start, -1)
        shape = DecoderShape(whole(shared["layers"]), hidden, whole(shared["heads"]), length)
        self.model.pruner = build_pruner(block, shape)
        self.stages: list[tuple[list[int], Tensor]] = []
        if self.model.pruner is not None:
            self.model.pruner.eval().register_forward_hook(self._watch)

    def _watch(self, module: Any, given: tuple[Any, ...], answer: Any) -> None:
        if answer is None and not given[0]:  # before the first layer a pruner may only look
            return
        layout, stays = left_of(answer, given[1].layout)
        self.stages.append((layout.origin[stays & layout.is_image].tolist(), layout.position_ids[stays]))

    @torch.no_grad()
    def run(self, cached: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """-> last hidden states [1, L', D], their positions [1, L'], and those of each decoding step [1, 1, D]"""
        from llava_prumerge.model.placement import ForwardPass
        from llava_prumerge.model.stretch import ReducedCache

        told = ForwardPass(is_image=self.is_image, origin=self.origin, images=torch.ones(1, dtype=torch.long))
        cache = ReducedCache(config=self.model.config) if cached else None
        output = self.model(inputs_embeds=self.embeds, forward_pass=told, past_key_values=cache, use_cache=cached)
        steps = []
        for step in self.steps if cached else ():
            passed = ForwardPass()
            steps.append(
                self.model(inputs_embeds=step[None], forward_pass=passed, past_key_values=cache, use_cache=True)
            )
        return output.last_hidden_state, told.layout.position_ids, [step.last_hidden_state for step in steps]


def compare(path: Path, arrays: Arrays, method: str, settings: dict[str, Any]) -> Comparison:
    """Run the method in the tiny Llama and compare everything that the file holds."""
    inputs = path.with_name(INPUTS)
    if not inputs.is_file():
        raise ReductionError(f"{inputs} is needed: the weights and inputs of {path.name}")
    shared, found = read(inputs), Comparison()
    decoder = Decoder(shared, arrays, {"name": method, **settings})
    last, positions, steps = decoder.run(cached="decode_hidden" in arrays)
    stages = [name for name in arrays if name.startswith("kept_stage")] or [
        name for name in ("kept_patches",) if name in arrays
    ]
    acted = [kept for kept, _ in decoder.stages]
    for number, name in enumerate(sorted(stages)):
        kept = acted[number] if number < len(acted) else []  # a pruner that acts less often has no such stage
        merged = [place for place in kept if place < 0]  # rows that stand for several patches
        found.kept(name, [sorted(kept)[len(merged) :]], [sorted(arrays[name].tolist())])
    for name in ("positions", *(f"positions_stage{number}" for number in range(len(stages), 0, -1))):
        if name in arrays:
            found.kept(name, positions.tolist(), arrays[name].tolist())
            break
    found.values("last_hidden", last, arrays["last_hidden"])
    if "decode_hidden" in arrays:
        found.values("decode_hidden", torch.cat(steps), arrays["decode_hidden"])
    if "full_last_hidden" in arrays:
        found.values("full_last_hidden", Decoder(shared, arrays, None).run(cached=False)[0], arrays["full_last_hidden"])
    return found
