"""QLoRA: what is refused where it cannot run, and what it does where bitsandbytes is installed (its CPU kernels do for that)."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch

from llava_prumerge.train import assembly, quantization
from llava_prumerge.train.arguments import RecipeError, build_arguments, check_values, load_arguments
from llava_prumerge.train.run import main
from llava_prumerge.train.settings import check_attention
from llava_prumerge.train.stages import LORA_TARGETS

QLORA = {"quantization": "nf4", "lora_rank": 4}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes (extra qlora) is not installed"
)


@pytest.mark.parametrize(
    "values", [{"stage": "full"}, {"stage": "projector"}, {"stage": "lora", "deepspeed": "x.json"}]
)
def test_four_bits_are_for_lora_without_deepspeed(values) -> None:
    with pytest.raises(RecipeError, match="quantization=nf4 is for stage=lora with deepspeed=null"):
        check_values(build_arguments(QLORA | values))


@pytest.mark.parametrize(
    ("installed", "message"), [(False, r"needs bitsandbytes: pip install"), (True, "a CUDA device")]
)
def test_what_is_missing_is_said_in_one_line(world, tmp_path, capsys, monkeypatch, installed, message) -> None:
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(world.recipe("lora", tmp_path / "run", **QLORA)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(line)
    assert not (tmp_path / "run").exists()


def test_flash_attention_is_refused_where_it_cannot_run(monkeypatch) -> None:
    check_attention(build_arguments({}))
    wanted = build_arguments({"attention": "flash_attention_2"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="needs flash-attn .* or take attention=sdpa"):
        check_attention(wanted)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="needs a CUDA device and bf16"):
        check_attention(wanted)


def test_the_language_models_matrices_are_replaced_and_nothing_else(world, tmp_path, monkeypatch) -> None:
    """With a fake bitsandbytes, so that the choice of layers is tested everywhere."""

    class Params4bit(torch.nn.Parameter):
        def __new__(cls, data, requires_grad=False, compress_statistics=False, quant_type="fp4"):
            made = torch.nn.Parameter.__new__(cls, data, requires_grad)
            made.told = (compress_statistics, quant_type)
            return made

    class Linear4bit(torch.nn.Linear):
        def __init__(self, inputs, outputs, bias, compute_dtype, compress_statistics, quant_type, device) -> None:
            super().__init__(inputs, outputs, bias=bias, device=device)

    fake = type(sys)("bitsandbytes.nn")
    fake.Linear4bit, fake.Params4bit = Linear4bit, Params4bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", type(sys)("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", fake)
    model, _ = assembly.load_start(load_arguments(world.recipe("lora", tmp_path / "run")))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = quantization.quantize_linears(model, LORA_TARGETS, torch.bfloat16)
    assert len(names) == 3 * 7 and all(".language_model.layers." in name for name in names)
    assert {name for name, module in model.named_modules() if isinstance(module, Linear4bit)} == set(names)
    assert all(model.get_submodule(name).weight.told == (True, "nf4") for name in names)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@needs_bitsandbytes
def test_a_run_in_four_bits_trains_adapters_on_quantised_matrices(world, tmp_path, monkeypatch) -> None:
    """On bitsandbytes' CPU kernels: near full precision and not equal to it, resumed bit by bit, adapters of the whole model."""
    import shutil

    from bitsandbytes.nn import Params4bit

    from llava_prumerge.model.loading import load_model

    monkeypatch.setattr(assembly, "check_quantization", lambda arguments: None)
    plain, run = tmp_path / "plain", tmp_path / "run"
    assert main([*world.recipe("lora", plain, lora_rank=4), world.prumerge_plus]) == 0
    recipe = [*world.recipe("lora", run, **QLORA), world.prumerge_plus]
    trainer = assembly.build_trainer(load_arguments(recipe))
    held = [parameter for parameter in trainer.model.parameters() if isinstance(parameter, Params4bit)]
    assert len(held) == 3 * 7 and all(parameter.bnb_quantized and parameter.dtype == torch.uint8 for parameter in held)
    assert main(recipe) == 0
    losses = [
        [json.loads(line)["loss"] for line in (r / "metrics.jsonl").read_text().splitlines()] for r in (plain, run)
    ]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)
    model, _ = load_model(run)
    assert model.model.reducer.name == "prumerge_plus"
    weights = (run / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoint-6")
    for file in [*run.glob("*.safetensors"), run / "finished.json"]:
        file.unlink()
    assert main(recipe) == 0
    assert (run / "adapter_model.safetensors").read_bytes() == weights
