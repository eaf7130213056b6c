"""InternVL's own layout: converted weights give what an independent forward pass over the original state dict gives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_families import tiny_tokenizer
from torch.nn import functional as F
from transformers import LlamaConfig

from llava_prumerge.ground.errors import InputError
from llava_prumerge.model.checkpoints.layout import recognise_source
from llava_prumerge.model.checkpoints.layouts.internvl_chat import ENDS, answer_ends
from llava_prumerge.model.loading import load_model

C, BLOCKS, TOWER_HEADS, PATCH, SIDE = 16, 2, 2, 4, 16
D, LAYERS, HEADS, GROUPS, WIDE, ROWS = 32, 2, 4, 2, 40, 128
WIDTH = D // HEADS
VISION = dict(
    hidden_size=C, num_hidden_layers=BLOCKS, num_attention_heads=TOWER_HEADS, intermediate_size=24, image_size=SIDE,
    patch_size=PATCH, qkv_bias=True, qk_normalization=False, norm_type="layer_norm", layer_norm_eps=1e-6, hidden_act="gelu",
)  # fmt: skip
LLM = dict(
    vocab_size=ROWS, hidden_size=D, intermediate_size=WIDE, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    num_key_value_heads=GROUPS, rms_norm_eps=1e-5, max_position_embeddings=256, rope_theta=1e4, bos_token_id=1, eos_token_id=2,
    pad_token_id=0, tie_word_embeddings=False,
)  # fmt: skip
OWN = dict(
    model_type="internvl_chat", ps_version="v2", select_layer=-1, downsample_ratio=0.5, force_image_size=SIDE,
    use_backbone_lora=0, use_llm_lora=0, max_dynamic_patch=6, vision_config=VISION,
)  # fmt: skip


def draw(seed: int = 0) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator) * 0.3


def vision_state(norms: bool = False) -> dict[str, torch.Tensor]:
    new, made = draw(), {}
    made["embeddings.class_embedding"], made["embeddings.position_embedding"] = new(1, 1, C), new(1, 17, C)
    made |= {"embeddings.patch_embedding.weight": new(C, 3, PATCH, PATCH), "embeddings.patch_embedding.bias": new(C)}
    for at in range(BLOCKS):
        stem = f"encoder.layers.{at}."
        for name, shape in {
            "attn.qkv": (3 * C, C),
            "attn.proj": (C, C),
            "mlp.fc1": (24, C),
            "mlp.fc2": (C, 24),
        }.items():
            made |= {f"{stem}{name}.weight": new(*shape), f"{stem}{name}.bias": new(shape[0])}
        for name in ("norm1", "norm2"):
            made |= {f"{stem}{name}.weight": 1 + new(C), f"{stem}{name}.bias": new(C)}
        made |= {f"{stem}ls1": new(C), f"{stem}ls2": new(C)}
        if norms:
            made |= {f"{stem}attn.q_norm.weight": 1 + new(C), f"{stem}attn.k_norm.weight": 1 + new(C)}
    made = {f"vision_model.{key}": value for key, value in made.items()}
    made |= {"mlp1.0.weight": 1 + new(4 * C), "mlp1.0.bias": new(4 * C)}
    return made | {
        "mlp1.1.weight": new(D, 4 * C),
        "mlp1.1.bias": new(D),
        "mlp1.3.weight": new(D, D),
        "mlp1.3.bias": new(D),
    }


def internlm2_state() -> dict[str, torch.Tensor]:
    new = draw(1)
    made = {"model.tok_embeddings.weight": new(ROWS, D), "model.norm.weight": 1 + new(D), "output.weight": new(ROWS, D)}
    for at in range(LAYERS):
        stem = f"model.layers.{at}."
        made |= {
            f"{stem}attention.wqkv.weight": new((HEADS + 2 * GROUPS) * WIDTH, D),
            f"{stem}attention.wo.weight": new(D, D),
        }
        made |= {f"{stem}feed_forward.w{n}.weight": new(*((D, WIDE) if n == 2 else (WIDE, D))) for n in (1, 2, 3)}
        made |= {f"{stem}{name}.weight": 1 + new(D) for name in ("attention_norm", "ffn_norm")}
    return {f"language_model.{key}": value for key, value in made.items()}


def see(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """InternViT, pixel shuffle and projector, after the paper's description, tile by tile. [N, 3, s, s] -> [N, 4, D]"""
    s = {key.removeprefix("vision_model."): value for key, value in state.items()}
    x = F.conv2d(pixels, s["embeddings.patch_embedding.weight"], s["embeddings.patch_embedding.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([s["embeddings.class_embedding"].expand(len(x), 1, C), x], dim=1) + s["embeddings.position_embedding"]
    for at in range(BLOCKS):
        w = {k.removeprefix(f"encoder.layers.{at}."): v for k, v in s.items() if k.startswith(f"encoder.layers.{at}.")}
        h = F.layer_norm(x, (C,), w["norm1.weight"], w["norm1.bias"], 1e-6)
        q, k, v = (h @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]).split(C, dim=-1)
        if "attn.q_norm.weight" in w:
            q, k = (
                part * torch.rsqrt(part.square().mean(-1, keepdim=True) + 1e-6) * w[f"attn.{name}_norm.weight"]
                for part, name in ((q, "q"), (k, "k"))
            )
        heads = []
        for head in range(TOWER_HEADS):
            part = slice(head * C // TOWER_HEADS, (head + 1) * C // TOWER_HEADS)
            weights = (q[..., part] @ k[..., part].transpose(1, 2) * (C // TOWER_HEADS) ** -0.5).softmax(-1)
            heads.append(weights @ v[..., part])
        x = x + w["ls1"] * (torch.cat(heads, -1) @ w["attn.proj.weight"].T + w["attn.proj.bias"])
        h = F.layer_norm(x, (C,), w["norm2.weight"], w["norm2.bias"], 1e-6)
        h = F.gelu(h @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]) @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
        x = x + w["ls2"] * h
    side = SIDE // PATCH
    patches = x[:, 1:].view(-1, side, side, C)
    rows = [
        torch.cat([patches[:, r, c], patches[:, r, c + 1], patches[:, r + 1, c], patches[:, r + 1, c + 1]], dim=-1)
        for r in range(0, side, 2)
        for c in range(0, side, 2)
    ]
    x = F.layer_norm(torch.stack(rows, dim=1), (4 * C,), s["mlp1.0.weight"], s["mlp1.0.bias"])
    x = F.gelu(x @ s["mlp1.1.weight"].T + s["mlp1.1.bias"])
    return x @ s["mlp1.3.weight"].T + s["mlp1.3.bias"]


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def turn(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions of one head [L, W]: channel f and f + W/2 by one angle."""
    half = WIDTH // 2
    angle = torch.arange(len(x))[:, None] * 1e4 ** (-torch.arange(half) / half)
    first, second = x[:, :half], x[:, half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def speak(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """InternLM2 on one sequence of embeddings. [L, D] -> [L, V]"""
    s = {
        key.removeprefix("language_model."): value for key, value in state.items() if key.startswith("language_model.")
    }
    seen = torch.ones(len(x), len(x)).tril().bool()
    for at in range(LAYERS):
        w = {k.removeprefix(f"model.layers.{at}."): v for k, v in s.items() if k.startswith(f"model.layers.{at}.")}
        mixed = rms(x, w["attention_norm.weight"]) @ w["attention.wqkv.weight"].T
        heads = []
        for group in range(GROUPS):  # for each key head: its query heads, the key, the value
            begin = group * (HEADS // GROUPS + 2)
            part = lambda n, begin=begin, mixed=mixed: mixed[:, (begin + n) * WIDTH : (begin + n + 1) * WIDTH]  # noqa: E731
            key, value = turn(part(HEADS // GROUPS)), part(HEADS // GROUPS + 1)
            for head in range(HEADS // GROUPS):
                scores = turn(part(head)) @ key.T * WIDTH**-0.5
                heads.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value)
        x = x + torch.cat(heads, -1) @ w["attention.wo.weight"].T
        h = rms(x, w["ffn_norm.weight"])
        h = F.silu(h @ w["feed_forward.w1.weight"].T) * (h @ w["feed_forward.w3.weight"].T)
        x = x + h @ w["feed_forward.w2.weight"].T
    return rms(x, s["model.norm.weight"]) @ s["output.weight"].T


def write(folder: Path, state: dict[str, torch.Tensor], llm: dict[str, Any], **changes: Any) -> Path:
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = OWN | {"llm_config": LLM | llm} | changes
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer("internvl").save_pretrained(folder)
    file = folder / "tokenizer_config.json"  # as published it does not name the tokens that transformers asks for
    settings = {
        key: value for key, value in json.loads(file.read_text()).items() if "_token" not in key or "image" not in key
    }
    file.write_text(json.dumps({key: value for key, value in settings.items() if key != "video_token"}))
    return folder


@pytest.mark.parametrize("norms", [False, True])
@torch.no_grad()
def test_internlm2_gives_what_the_original_gives(norms: bool, tmp_path: Path, convert: Callable) -> None:
    state = vision_state(norms) | internlm2_state()
    vision = VISION | {"qk_normalization": norms}
    scaling = {"type": "dynamic", "factor": 2.0}  # acts beyond max_position_embeddings alone
    source = write(
        tmp_path / "own",
        state,
        {"model_type": "internlm2", "bias": False, "rope_scaling": scaling},
        vision_config=vision,
    )
    assert recognise_source(source)[0].name == "internvl_chat"
    convert(source, tmp_path / "hf")
    model, processor = load_model(tmp_path / "hf")
    pixels = draw(5)(3, 3, SIDE, SIDE)
    ids = torch.tensor([[1, 5, 112, *[120] * 12, 113, 7, 8, 9]])
    x = state["language_model.model.tok_embeddings.weight"][ids[0]].clone()
    x[ids[0] == 120] = see(state, pixels).flatten(0, 1)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits[0]
    torch.testing.assert_close(logits, speak(state, x), atol=2e-4, rtol=1e-4)
    asked = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w5"}]}], add_generation_prompt=True
    )
    assert asked == "<|im_start|>user\n<IMG_CONTEXT>\nw5<|im_end|>\n<|im_start|>assistant\n"
    assert processor.image_processor.max_patches == 6


@torch.no_grad()
def test_a_decoder_of_transformers_keeps_its_names(tmp_path: Path, convert: Callable) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    llm = {key: value for key, value in LLM.items() if key != "rope_theta"} | {"tie_word_embeddings": True}
    decoder = Qwen2ForCausalLM(Qwen2Config(**llm)).eval()
    state = vision_state() | {f"language_model.{key}": value.clone() for key, value in decoder.state_dict().items()}
    source = write(tmp_path / "own", state, {"model_type": "qwen2", "tie_word_embeddings": True})
    convert(source, tmp_path / "hf")
    model, _ = load_model(tmp_path / "hf")
    pixels = draw(5)(1, 3, SIDE, SIDE)
    ids = torch.tensor([[1, 5, 112, *[120] * 4, 113, 7, 8, 9]])
    x = decoder.model.embed_tokens(ids).clone()
    x[ids == 120] = see(state, pixels).flatten(0, 1)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits
    torch.testing.assert_close(logits, decoder(inputs_embeds=x).logits, atol=2e-4, rtol=1e-4)


def phi3_state() -> dict[str, torch.Tensor]:
    new = draw(2)
    made = {"model.embed_tokens.weight": new(ROWS, D), "model.norm.weight": 1 + new(D), "lm_head.weight": new(ROWS, D)}
    for at in range(LAYERS):
        shapes = {"self_attn.qkv_proj": ((HEADS + 2 * GROUPS) * WIDTH, D), "self_attn.o_proj": (D, D)}
        shapes |= {"mlp.gate_up_proj": (2 * WIDE, D), "mlp.down_proj": (D, WIDE)}
        made |= {f"model.layers.{at}.{name}.weight": new(*shape) for name, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"model.layers.{at}.{name}.weight"] = 1 + new(D)
    return {f"language_model.{key}": value for key, value in made.items()}


def speak_phi3(state: dict[str, torch.Tensor], x: torch.Tensor, factors: list[float], scale: float) -> torch.Tensor:
    """Phi-3 on one sequence: angles divided channel by channel, cosines and sines scaled ("su"). [L, D] -> [L, V]"""
    s = {key.removeprefix("language_model."): value for key, value in state.items()}
    seen, half = torch.ones(len(x), len(x)).tril().bool(), WIDTH // 2
    angle = torch.arange(len(x))[:, None] / (torch.tensor(factors) * 1e4 ** (torch.arange(half) / half))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    turned = lambda v: torch.cat([v[:, :half] * cos - v[:, half:] * sin, v[:, half:] * cos + v[:, :half] * sin], -1)  # noqa: E731
    for at in range(LAYERS):
        w = {k.removeprefix(f"model.layers.{at}."): v for k, v in s.items() if k.startswith(f"model.layers.{at}.")}
        mixed = (rms(x, w["input_layernorm.weight"]) @ w["self_attn.qkv_proj.weight"].T).split(WIDTH, dim=-1)
        heads = []
        for head in range(HEADS):
            group = HEADS + head // (HEADS // GROUPS)
            scores = turned(mixed[head]) @ turned(mixed[group]).T * WIDTH**-0.5
            heads.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ mixed[group + GROUPS])
        x = x + torch.cat(heads, -1) @ w["self_attn.o_proj.weight"].T
        gate, up = (rms(x, w["post_attention_layernorm.weight"]) @ w["mlp.gate_up_proj.weight"].T).split(WIDE, dim=-1)
        x = x + (F.silu(gate) * up) @ w["mlp.down_proj.weight"].T
    return rms(x, s["model.norm.weight"]) @ s["lm_head.weight"].T


@pytest.mark.parametrize(("original", "which"), [(8, "long"), (64, "short")])
@torch.no_grad()
def test_phi3_turns_by_lists_of_factors(original: int, which: str, tmp_path: Path, convert: Callable) -> None:
    """As in InternVL2-4B, on sequences that are longer than what the language model was first trained on, and shorter."""
    lists = {"short": [1.0, 1.1, 1.3, 1.7], "long": [1.5, 2.0, 4.0, 9.0]}
    scaling = {"type": "su", **{f"{name}_factor": values for name, values in lists.items()}}
    llm = {"model_type": "phi3", "rope_scaling": scaling, "original_max_position_embeddings": original}
    state = vision_state() | phi3_state()
    source = write(tmp_path / "own", state, llm)
    convert(source, tmp_path / "hf")
    model, processor = load_model(tmp_path / "hf")
    pixels = draw(5)(1, 3, SIDE, SIDE)
    ids = torch.tensor([[1, 5, 112, *[120] * 4, 113, 7, 8, 9]])
    x = state["language_model.model.embed_tokens.weight"][ids[0]].clone()
    x[ids[0] == 120] = see(state, pixels).flatten(0, 1)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits[0]
    scale = (1 + math.log(256 / original) / math.log(original)) ** 0.5
    torch.testing.assert_close(logits, speak_phi3(state, x, lists[which], scale), atol=2e-4, rtol=1e-4)
    asked = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w5"}]}], add_generation_prompt=True
    )
    assert asked == "<|user|>\n<IMG_CONTEXT>\nw5<|end|><|assistant|>\n"


@pytest.mark.parametrize(
    ("llm", "changes", "said"),
    [
        ({"model_type": "gpt_neox"}, {}, "llm_config is a 'gpt_neox'; converted are internlm2, llama"),
        ({"model_type": "internlm2"}, {"ps_version": "v1"}, "ps_version is 'v1'; converted is 'v2'"),
        ({"model_type": "internlm2"}, {"use_llm_lora": 16}, "use_llm_lora is 16"),
        ({"model_type": "internlm2", "rope_scaling": {"type": "su"}}, {}, "rope_scaling of llm_config is 'su'"),
        ({"model_type": "internlm2", "hidden_size": 64}, {}, "the configuration makes it"),
        ({"model_type": "internlm2", "num_hidden_layers": 3}, {}, "lacks model.language_model.layers.2"),
    ],
)
def test_what_cannot_be_held_is_refused_in_one_line(
    llm: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path, convert: Callable
) -> None:
    source = write(tmp_path / "own", vision_state() | internlm2_state(), llm, **changes)
    with pytest.raises(InputError) as refused:
        convert(source, tmp_path / "hf")
    assert said in str(refused.value) and "\n" not in str(refused.value) and not (tmp_path / "hf").exists()


def test_a_strange_key_is_named(tmp_path: Path, convert: Callable) -> None:
    state = vision_state() | internlm2_state() | {"vision_model.head.weight": torch.zeros(2)}
    source = write(tmp_path / "own", state, {"model_type": "internlm2"})
    with pytest.raises(InputError, match="vision_model.head.weight is no parameter of this model"):
        convert(source, tmp_path / "hf")


@pytest.mark.parametrize("chat", list(ENDS))
def test_generation_stops_where_an_answer_ends(chat: str) -> None:
    """The language model's configuration names the end of a text alone."""
    text = LlamaConfig(eos_token_id=2)
    tokenizer = SimpleNamespace(chat_template=chat, get_vocab=lambda: {ENDS[chat]: 7, "w": 9})
    assert answer_ends(text, tokenizer) == [2, 7]
    assert (
        answer_ends(text, SimpleNamespace(chat_template=chat, get_vocab=lambda: {})) == [2] == answer_ends(text, None)
    )
