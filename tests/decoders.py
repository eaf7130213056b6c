"""Tiny language models of every served type, with tokenizers and chat templates that have the traits of the published ones.

The templates are marked with `{% generation %}`: transformers then says itself which tokens are the model's. What is stored
beside a model has no such marks, as most published templates have none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [
    "What",
    "colour",
    "is",
    "this",
    "red",
    "green",
    "blue",
    "white",
    "black",
    "Say",
    "the",
    "word",
    "picture",
    "shows",
    "a",
    "field",
    "and",
    "user",
    "model",
    "system",
]
TURN = "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
ASK = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
SAYS = "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}"

# A system text of its own, where there is none; a line break behind the end of a turn.
QWEN2 = (
    "{%- if messages[0]['role'] != 'system' -%}{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}" + TURN + "{%- if message['role'] == 'assistant' -%}" + SAYS + "{%- else -%}"
    "{{- message['content'] + '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}" + ASK
)
# Thoughts ahead of the last answer, none in earlier ones; a prompt without thoughts has them empty.
QWEN3 = (
    "{%- for message in messages -%}" + TURN + "{%- if message['role'] == 'assistant' -%}"
    "{%- if loop.last -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}" + SAYS + "{%- else -%}"
    "{{- message['content'] + '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    + ASK
    + "{%- if add_generation_prompt and "
    "enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
)
# No system text, turns that must alternate, texts stripped, a beginning of sequence of its own.
GEMMA = (
    "{{- bos_token -}}{%- for message in messages -%}{%- if message['role'] == 'system' -%}"
    "{{- raise_exception('System role not supported') -}}{%- endif -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('turns must alternate') -}}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- '<start_of_turn>model\\n' -}}{%- generation -%}"
    "{{- message['content'] | trim + '<end_of_turn>' -}}{%- endgeneration -%}{{- '\\n' -}}{%- else -%}"
    "{{- '<start_of_turn>user\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)
# The answer follows the end of the instruction, with a space that is the model's.
MISTRAL = (
    "{{- bos_token -}}{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
    "{{- '[INST] ' + message['content'] + ' [/INST]' -}}{%- elif message['role'] == 'assistant' -%}{%- generation -%}"
    "{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}{%- else -%}{{- raise_exception('no such role') -}}{%- endif -%}"
    "{%- endfor -%}"
)
# Ends of turns, and an end of sequence behind all of it.
PHI3 = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>\\n' -}}{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}{{- '\\n' -}}{%- else -%}"
    "{{- message['content'] + '<|end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"
)
# A beginning of sequence in the text as well as from the tokenizer; only answers are stripped.
LLAMA3 = (
    "{%- for message in messages -%}{%- if loop.first -%}{{- bos_token -}}{%- endif -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] | trim + '<|eot_id|>' -}}{%- endgeneration -%}{%- else -%}"
    "{{- message['content'] + '<|eot_id|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEADERS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
KINDS: dict[str, dict[str, Any]] = {
    "llama": dict(template=LLAMA3, special=HEADERS, bos="<|begin_of_text|>", eos="<|eot_id|>"),
    "mistral": dict(template=MISTRAL, pieces=True, bos="<s>", eos="</s>", unk="<unk>"),
    "qwen2": dict(template=QWEN2, special=CHATML, eos="<|im_end|>", pad="<|endoftext|>"),
    "qwen3": dict(template=QWEN3, special=CHATML, eos="<|im_end|>", pad="<|endoftext|>", config=dict(head_dim=8)),
    "phi3": dict(
        template=PHI3, special=["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], eos="<|endoftext|>",
        pad="<|endoftext|>", more_ends=["<|end|>"], config=dict(partial_rotary_factor=0.5),
    ),
    "gemma": dict(
        template=GEMMA, special=["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>",
        pad="<pad>", unk="<unk>", more_ends=["<end_of_turn>"], config=dict(head_dim=8),
    ),
    "gemma2": dict(
        template=GEMMA, special=["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>",
        pad="<pad>", unk="<unk>", more_ends=["<end_of_turn>"],
        config=dict(head_dim=8, sliding_window=12, attn_logit_softcapping=5.0, final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    ),
    "gemma3_text": dict(
        template=GEMMA, special=["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>",
        pad="<pad>", unk="<unk>", more_ends=["<end_of_turn>"],
        config=dict(
            head_dim=8, sliding_window=12, query_pre_attn_scalar=8, layer_types=["sliding_attention", "full_attention", "full_attention"]
        ),
    ),
}  # fmt: skip
"""By type: the template, special tokens of a byte-level vocabulary (or pieces, as Llama's), further ends of generation."""


def plain(template: str) -> str:
    """A template without its marks."""
    return re.sub(r"{%-? (?:end)?generation -?%}", "", template)


def byte_level(special: list[str]) -> Tokenizer:
    """One token per byte but for a few words, as GPT's vocabularies are made."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = {letter: number for number, letter in enumerate(letters)}, []
    for word in WORDS:
        for whole in (word, f"Ġ{word}"):
            for end in range(2, len(whole) + 1):
                if whole[:end] not in vocabulary:
                    vocabulary[whole[:end]] = len(vocabulary)
                    merges.append((whole[: end - 1], whole[end - 1]))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return core


def pieces() -> Tokenizer:
    """Llama's conventions, one piece per word."""
    specials = ("<unk>", "<s>", "</s>")
    vocabulary = [(name, 0.0) for name in specials] + [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    vocabulary += [(f"▁{word}", -1.0) for word in WORDS] + [
        (letter, -9.0) for letter in ["▁", *map(chr, range(33, 127))]
    ]
    core = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    return core


def make_tokenizer(kind: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with the traits of a type's published ones."""
    given = KINDS[kind]
    core = pieces() if given.get("pieces") else byte_level(given["special"])
    names = {f"{name}_token": given[name] for name in ("bos", "eos", "pad", "unk") if name in given}
    if "bos" in given:
        bos = given["bos"]
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = template or plain(given["template"])
    return tokenizer


def write_decoder(kind: str, folder: Path) -> Any:
    """A language model of a type with its tokenizer, as a folder. -> the model"""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    tokenizer, given = make_tokenizer(kind), KINDS[kind]
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=kind.startswith(("gemma", "qwen")), **given.get("config", {}),
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    ends = [tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(token) for token in given.get("more_ends", ()))]
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


TOWERS = ("clip", "siglip", "dinov2", "dinov2_with_registers", "pixtral", "open_clip")


def write_tower(kind: str, folder: Path) -> int:
    """A vision tower with its image processor, as a folder. -> visual tokens of an image"""
    import torch
    import transformers as T

    torch.manual_seed(1)
    sizes = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7
    )
    square = {"height": 28, "width": 28}
    if kind == "open_clip":
        return write_open_clip(folder)
    if kind == "clip":
        T.CLIPVisionModel(T.CLIPVisionConfig(projection_dim=16, **sizes)).save_pretrained(folder)
        T.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=square).save_pretrained(folder)
    elif kind == "siglip":
        T.SiglipVisionModel(T.SiglipVisionConfig(**sizes)).save_pretrained(folder)
        T.SiglipImageProcessorPil(size=square).save_pretrained(folder)
    elif kind == "pixtral":
        T.PixtralVisionModel(T.PixtralVisionConfig(head_dim=8, **sizes)).save_pretrained(folder)
        T.PixtralImageProcessorPil(size={"longest_edge": 28}, patch_size=7).save_pretrained(folder)
    else:  # made for other images than its processor makes, as the published ones are
        sizes |= dict(image_size=42)
        sizes.pop("intermediate_size")
        config = T.AutoConfig.for_model(kind, mlp_ratio=2, **sizes)
        T.AutoModel.from_config(config).save_pretrained(folder)
        T.BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return 16 + (4 if kind == "dinov2_with_registers" else 0)


def write_open_clip(folder: Path) -> int:
    """An open_clip model as on the Hub."""
    import json

    import torch
    from safetensors.torch import save_file

    width, layers, patches = 64, 3, 16
    shapes = {
        "class_embedding": (width,),
        "conv1.weight": (width, 3, 7, 7),
        "positional_embedding": (patches + 1, width),
    }
    shapes |= {f"{norm}.{part}": (width,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."
        for name, rows, columns in (
            ("attn.in_proj", 3 * width, width), ("attn.out_proj", width, width), ("mlp.c_fc", 4 * width, width), ("mlp.c_proj", width, 4 * width)
        ):  # fmt: skip
            joint = "_" if name == "attn.in_proj" else "."
            shapes |= {f"{block}{name}{joint}weight": (rows, columns), f"{block}{name}{joint}bias": (rows,)}
        shapes |= {f"{block}{norm}.{part}": (width,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"visual.{name}": torch.randn(shape) * 0.05 for name, shape in shapes.items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    vision = dict(image_size=28, layers=layers, width=width, head_width=16, patch_size=7)
    settings = {
        "model_cfg": {"embed_dim": 32, "vision_cfg": vision},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    return patches
