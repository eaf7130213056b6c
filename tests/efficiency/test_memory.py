"""Memory: exact sums against known numbers and real modules, and what each setting of training changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llava_prumerge.efficiency.memory import (
    Training,
    cache_bytes,
    inference,
    lora_parameters,
    saved_by_layer,
    training,
    weight_bytes,
)
from llava_prumerge.efficiency.shapes import named_shapes
from llava_prumerge.efficiency.tokens import constant_counts

SEVEN, THIRTEEN, POCKET = (named_shapes()[name] for name in ("llava-1.5-7b", "llava-1.5-13b", "pocket"))
COUNTS = constant_counts(SEVEN, 576, 40)


def test_parameters_are_those_of_the_released_models() -> None:
    assert SEVEN.language.parameters == 6_738_415_616  # Llama-2-7B
    assert THIRTEEN.language.parameters == 13_015_864_320
    assert SEVEN.vision.parameters == 303_507_456  # openai/clip-vit-large-patch14-336, vision side
    assert SEVEN.projector_parameters == 20_979_712
    assert lora_parameters(SEVEN.language, 128) == 319_815_680


def test_pocket_parameters_are_those_of_the_modules() -> None:
    transformers = pytest.importorskip("transformers")
    vision = POCKET.vision
    tower = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=vision.width,
            intermediate_size=vision.intermediate,
            num_hidden_layers=vision.blocks,
            num_attention_heads=vision.heads,
            image_size=vision.image,
            patch_size=vision.patch,
        )
    )
    assert sum(weight.numel() for weight in tower.parameters()) == vision.parameters


def test_the_cache_of_576_tokens_is_288_mebibytes() -> None:
    assert cache_bytes(SEVEN.language, constant_counts(SEVEN, 576, 0)) == 288 * 2**20
    batch = inference(SEVEN, constant_counts(SEVEN, 576, 0), batch=32)
    assert batch["key-value cache"] == 9 * 2**30
    assert inference(SEVEN, COUNTS, answer=100)["key-value cache"] == cache_bytes(SEVEN.language, COUNTS) * 716 / 616


def test_quantisation_reaches_the_matrices_of_the_layers_alone() -> None:
    half, four = weight_bytes(SEVEN, "fp16"), weight_bytes(SEVEN, "int4")
    assert half["language model"] == 2 * SEVEN.language.parameters
    assert half["vision tower"] == four["vision tower"]
    ends = 2 * (2 * SEVEN.language.vocabulary * SEVEN.language.hidden)
    assert four["language model"] == pytest.approx((half["language model"] - ends) / 4 + ends, rel=1e-3)


def test_scores_that_are_written_take_room() -> None:
    fused, eager = (inference(SEVEN, COUNTS, batch=8, fused=fused)["activations"] for fused in (True, False))
    assert eager > fused
    counts = constant_counts(SEVEN, 40, 40)
    assert inference(SEVEN, counts, batch=8)["activations"] < fused


def test_full_training_of_7b_takes_sixteen_bytes_per_parameter_before_it_is_sharded() -> None:
    found = training(SEVEN, COUNTS, Training("full"))
    trained = SEVEN.language.parameters + SEVEN.projector_parameters
    assert found["weights"] + found["gradients"] + found["optimiser"] == 16 * trained + 2 * SEVEN.vision.parameters


def test_each_zero_stage_shards_one_thing_more() -> None:
    plain, one, two, three = (training(SEVEN, COUNTS, Training("full", zero, gpus=8)) for zero in range(4))
    assert one["optimiser"] * 8 == plain["optimiser"] and one["gradients"] == plain["gradients"]
    assert two["gradients"] < one["gradients"] / 4 and two["weights"] == one["weights"]
    assert three["weights"] * 8 == two["weights"] and three["layers gathered"] > 0
    assert plain == training(SEVEN, COUNTS, Training("full", 0, gpus=1))


def test_lora_trains_little_and_offload_moves_states_to_the_host() -> None:
    lora = training(SEVEN, COUNTS, Training("lora"))
    assert lora["optimiser"] == 12 * (319_815_680 + SEVEN.projector_parameters)
    assert training(SEVEN, COUNTS, Training("projector"))["gradients"] == 2 * SEVEN.projector_parameters
    inside = training(SEVEN, COUNTS, Training("full", 3, 8))
    outside = training(SEVEN, COUNTS, Training("full", 3, 8, offload=True))
    assert outside["host, per GPU"] == inside["optimiser"] + inside["weights"]
    assert outside["optimiser"] == outside["weights"] == 0


def test_activations_fall_with_tokens_and_with_checkpointing() -> None:
    how = Training("lora", batch=16)
    full, reduced = (training(SEVEN, constant_counts(SEVEN, n, 200), how)["activations"] for n in (576, 144))
    assert reduced < 0.5 * full
    assert training(SEVEN, COUNTS, replace(how, checkpointing=False))["activations"] > 5 * full / 2
    assert (
        training(SEVEN, COUNTS, replace(how, batch=32))["activations"]
        == 2 * training(SEVEN, COUNTS, how)["activations"]
    )


def test_what_a_layer_keeps_is_what_autograd_saves() -> None:
    """Autograd keeps somewhat more in a real layer: float32 copies in norms, cosines, sines and rotated halves."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    language = POCKET.language
    config = transformers.LlamaConfig(
        hidden_size=language.hidden,
        intermediate_size=language.intermediate,
        num_hidden_layers=2,
        num_attention_heads=language.heads,
        num_key_value_heads=language.kv_heads,
        head_dim=language.head_width,
        vocab_size=64,
    )
    config._attn_implementation = "sdpa"
    tokens = 64

    def saved(layers: int) -> int:
        config.num_hidden_layers = layers
        model = transformers.LlamaModel(config)
        weights = {weight.data_ptr() for weight in model.parameters()}
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = model(inputs_embeds=torch.randn(1, tokens, language.hidden, requires_grad=True), use_cache=False)
        assert kept.last_hidden_state.requires_grad
        return sum(seen.values())

    measured = saved(3) - saved(2)
    ours = saved_by_layer(language, tokens, fused=True)
    assert ours <= measured <= 1.6 * ours
