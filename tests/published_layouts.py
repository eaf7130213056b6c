"""Tiny models in the exact layouts that LLaVA is published in, and the stock models they must equal.

Keys are written out here by hand or come from stock classes; nothing is taken from the code under test.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

WORDS, ROWS, IMAGE, PAD = 320, 384, 320, 321  # 32000, 32064, 32000 and 32001 at real size
SPACE, NORMAL_PIECE, LOWEST_SCORE = "▁", 1, -1e9
RUNS = (2 * SPACE, 4 * SPACE, 3 * SPACE)  # in this order of their ids, as in Llama's model
PATCHES, RANK, ALPHA = 16, 4, 8
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=28)
VISION |= dict(patch_size=7, projection_dim=16)
TEXT = dict(vocab_size=WORDS, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
TEXT |= dict(num_key_value_heads=4, max_position_embeddings=256, rms_norm_eps=1e-5, hidden_act="silu")
TEXT |= dict(bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
LLAVA = dict(image_aspect_ratio="pad", mm_hidden_size=32, mm_projector_type="mlp2x_gelu", mm_use_im_patch_token=False)
LLAVA |= dict(mm_use_im_start_end=False, mm_vision_select_feature="patch", mm_vision_select_layer=-2)
LLAVA |= dict(mm_vision_tower="openai/clip-vit-large-patch14-336", use_mm_proj=True, tune_mm_mlp_adapter=False)
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
LINEAR = [f"self_attn.{name}" for name in ATTENTION] + [f"mlp.{name}" for name in MLP]


@dataclass
class Published:
    """A tiny LLaVA whose parts are stock models; float16 values in the language model and projector, as published."""

    llama: LlamaForCausalLM
    clip: CLIPModel
    projector: dict[str, Tensor]  # 0.weight, 0.bias, 2.weight, 2.bias

    def original(self) -> dict[str, Tensor]:
        """The tensors of liuhaotian/llava-v1.5-7b: no tower, and the rotary table that older transformers saved."""
        state = {key: value.half() for key, value in self.llama.state_dict().items()}
        state |= {f"model.mm_projector.{key}": value.half() for key, value in self.projector.items()}
        for layer in range(TEXT["num_hidden_layers"]):
            state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        return state

    def stock(self, adapters: dict[str, Tensor] | None = None) -> LlavaForConditionalGeneration:
        """transformers' own Llava with these weights in float32, new vocabulary rows the mean of the old."""
        config = LlavaConfig(
            vision_config=self.clip.config.vision_config.to_dict(),
            text_config=self.llama.config.to_dict() | {"vocab_size": ROWS, "pad_token_id": PAD},
            image_token_index=IMAGE,
            image_seq_length=PATCHES,
        )
        model = LlavaForConditionalGeneration(config).eval()
        with torch.no_grad():
            for mine, theirs in ((model.lm_head, self.llama.lm_head), (model.model.language_model.embed_tokens, None)):
                rows = (theirs or self.llama.model.embed_tokens).weight
                mine.weight[:WORDS], mine.weight[WORDS:] = rows, rows.double().mean(0).half()
            model.model.language_model.norm.load_state_dict(self.llama.model.norm.state_dict())
            model.model.language_model.layers.load_state_dict(self.llama.model.layers.state_dict())
            model.model.vision_tower.load_state_dict(self.clip.vision_model.state_dict())
            for ours, theirs in (("linear_1", "0"), ("linear_2", "2")):
                layer = getattr(model.model.multi_modal_projector, ours)
                layer.weight.copy_(self.projector[f"{theirs}.weight"])
                layer.bias.copy_(self.projector[f"{theirs}.bias"])
            for key, a in (adapters or {}).items():
                if "lora_A" in key:
                    index, module = key.split(".layers.")[1].split(".lora_A")[0].split(".", 1)
                    b = adapters[key.replace("lora_A", "lora_B")]
                    weight = model.model.language_model.layers[int(index)].get_submodule(module).weight
                    weight += (b.float() @ a.float()) * (ALPHA / RANK)
        return model


def published(seed: int = 0) -> Published:
    """Random weights, large enough that every part matters to the logits."""
    torch.manual_seed(seed)
    llama = LlamaForCausalLM(LlamaConfig(**TEXT)).eval()
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20
    )
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=VISION)).eval()
    shapes = {"0.weight": (64, 32), "0.bias": (64,), "2.weight": (64, 64), "2.bias": (64,)}
    projector = {key: (torch.randn(shape) * 0.3).half().float() for key, shape in shapes.items()}
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.copy_((parameter + torch.randn_like(parameter) * 0.05).half().float())
    return Published(llama, clip, projector)


def adapters(seed: int = 1) -> dict[str, Tensor]:
    """LoRA matrices under LLaVA's keys: peft around LlavaLlamaForCausalLM."""
    torch.manual_seed(seed)
    layer = LlamaForCausalLM(LlamaConfig(**TEXT)).model.layers[0]
    state = {}
    for index in range(TEXT["num_hidden_layers"]):
        for module in LINEAR:
            out, into = layer.get_submodule(module).weight.shape
            key = f"base_model.model.model.layers.{index}.{module}"
            state[f"{key}.lora_A.weight"] = torch.randn(RANK, into) * 0.1
            state[f"{key}.lora_B.weight"] = torch.randn(out, RANK) * 0.1
    return state


def sentencepiece_model() -> bytes:
    """A tokenizer.model of 320 pieces with Llama's conventions: runs of spaces have low ids and the lowest score of all."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    lines = [f"the quick brown fox {i} jumps over the lazy dog {chr(97 + i % 26)}" for i in range(300)]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=WORDS - len(RUNS),
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    pieces = list(model.pieces)
    first = next(number for number, piece in enumerate(pieces) if piece.type == NORMAL_PIECE)
    made = [type(pieces[0])(piece=run, score=LOWEST_SCORE, type=NORMAL_PIECE) for run in RUNS]
    del model.pieces[:]
    model.pieces.extend([*pieces[:first], *made, *pieces[first:]])
    for piece in model.pieces:
        if piece.piece == SPACE:
            piece.score = LOWEST_SCORE
    return model.SerializeToString()


def write_tokenizer(folder: Path, model: bytes) -> None:
    """tokenizer.model and its settings, as Vicuna and LLaVA have them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    settings = dict(tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    settings |= dict(pad_token="<unk>", legacy=False, add_bos_token=True, model_max_length=2048)
    write_json(folder / "tokenizer_config.json", settings)


def write_json(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value))


def write_shards(folder: Path, state: dict[str, Tensor], suffix: str = ".bin", shards: int = 2) -> dict[str, str]:
    """A whole model in shards with their index. -> the index' weight_map"""
    folder.mkdir(parents=True, exist_ok=True)
    stem, keys, places = "pytorch_model" if suffix == ".bin" else "model", list(state), {}
    for number in range(shards):
        part = {
            key: state[key].contiguous()
            for key in keys[number * len(keys) // shards : (number + 1) * len(keys) // shards]
        }
        name = f"{stem}-{number + 1:05d}-of-{shards:05d}{suffix}"
        if suffix == ".bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    size = sum(value.nbytes for value in state.values())
    write_json(folder / f"{stem}{suffix}.index.json", {"metadata": {"total_size": size}, "weight_map": places})
    return places


def original_config(model_type: str = "llava") -> dict:
    """config.json of liuhaotian/llava-v1.5-7b, in this size."""
    values = TEXT | LLAVA | dict(architectures=["LlavaLlamaForCausalLM"], model_type=model_type, pad_token_id=0)
    return values | dict(torch_dtype="float16", max_length=4096, pretraining_tp=1, transformers_version="4.31.0")


def write_original(
    folder: Path, model: Published, tokenizer: bytes, suffix: str = ".bin", model_type: str = "llava"
) -> Path:
    """liuhaotian/llava-v1.5-7b."""
    write_shards(folder, model.original(), suffix)
    write_json(folder / "config.json", original_config(model_type))
    write_json(folder / "generation_config.json", dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, max_length=4096))
    write_tokenizer(folder, tokenizer)
    return folder


def write_vicuna(folder: Path, model: Published, tokenizer: bytes) -> Path:
    """lmsys/vicuna-7b-v1.5."""
    write_shards(folder, {key: value.half() for key, value in model.llama.state_dict().items()})
    values = TEXT | dict(architectures=["LlamaForCausalLM"], model_type="llama", pad_token_id=0, torch_dtype="float16")
    write_json(folder / "config.json", values)
    write_tokenizer(folder, tokenizer)
    return folder


def write_clip(folder: Path, model: Published) -> Path:
    """openai/clip-vit-large-patch14-336: both towers in one .bin, with the position tables older transformers saved."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"vision_model.{key}": value for key, value in model.clip.vision_model.state_dict().items()}
    state |= {f"text_model.{key}": value for key, value in model.clip.text_model.state_dict().items()}
    state |= {f"{part}_model.embeddings.position_ids": torch.arange(17)[None] for part in ("vision", "text")}
    state |= {
        "logit_scale": torch.tensor(1.0),
        "visual_projection.weight": model.clip.visual_projection.weight.detach(),
    }
    state |= {"text_projection.weight": model.clip.text_projection.weight.detach()}
    torch.save(state, folder / "pytorch_model.bin")
    model.clip.config.save_pretrained(folder)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def write_lora(folder: Path, model: Published, suffix: str = ".bin") -> dict[str, Tensor]:
    """liuhaotian/llava-v1.5-7b-lora. -> its adapters"""
    folder.mkdir(parents=True, exist_ok=True)
    state = adapters()
    if suffix == ".bin":
        torch.save(state, folder / "adapter_model.bin")
    else:
        save_file(state, folder / "adapter_model.safetensors")
    beside = {f"base_model.model.model.mm_projector.{key}": value.half() for key, value in model.projector.items()}
    torch.save(beside, folder / "non_lora_trainables.bin")
    settings = dict(base_model_name_or_path="lmsys/vicuna-7b-v1.5", bias="none", fan_in_fan_out=False, r=RANK)
    settings |= dict(inference_mode=True, init_lora_weights=True, layers_pattern=None, lora_alpha=ALPHA)
    settings |= dict(lora_dropout=0.05, modules_to_save=None, peft_type="LORA", task_type="CAUSAL_LM")
    write_json(folder / "adapter_config.json", settings | dict(target_modules=[*ATTENTION, *MLP]))
    write_json(folder / "config.json", original_config())
    return state


OLDER = [
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
]
NEWER = [("model.vision_tower.", "model.vision_tower.vision_model.")]


def write_llava_hf(folder: Path, model: Published, ours: Path, prefixes: list[tuple[str, str]]) -> dict[str, Tensor]:
    """llava-hf/llava-1.5-7b-hf under the keys of one of its generations. -> its tensors"""
    stock, renamed = model.stock().half(), {}
    for key, value in stock.state_dict().items():
        new = next((b + key.removeprefix(a) for a, b in prefixes if key.startswith(a)), key)
        renamed[new] = value.contiguous()
    write_shards(folder, renamed, ".safetensors", shards=3)
    text = {key: value for key, value in TEXT.items() if not key.endswith("token_id")} | {"vocab_size": ROWS}
    config = dict(architectures=["LlavaForConditionalGeneration"], ignore_index=-100, image_token_index=IMAGE)
    config |= dict(model_type="llava", pad_token_id=PAD, projector_hidden_act="gelu", torch_dtype="float16")
    config |= dict(tie_word_embeddings=False, vision_feature_layer=-2, vision_feature_select_strategy="default")
    config |= dict(text_config=text | dict(model_type="llama", torch_dtype="float16"), vocab_size=ROWS)
    config |= dict(vision_config=VISION | dict(model_type="clip_vision_model", vocab_size=32000))
    write_json(folder / "config.json", config | dict(image_seq_length=PATCHES))
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        shutil.copyfile(ours / name, folder / name)
    return renamed


def inputs() -> dict[str, Tensor]:
    """Two prompts of one image each, one padded on the left."""
    torch.manual_seed(5)
    rows = [[1, *[IMAGE] * PATCHES, *range(10, 17)], [PAD, PAD, 1, 40, *[IMAGE] * PATCHES, 41, 42, 43, 44]]
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "pixel_values": torch.randn(2, 3, 28, 28)}
