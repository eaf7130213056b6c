"""Loads a CLIP tower and a language model with whichever transformers runs this, and prints what they compute as one line of JSON.

python read_backbones.py TOWER LANGUAGE_MODEL TEXT
"""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor, CLIPVisionModel

tower, language, text = sys.argv[1:]
vision, vision_report = CLIPVisionModel.from_pretrained(tower, output_loading_info=True)
model, report = AutoModelForCausalLM.from_pretrained(language, output_loading_info=True)
ids = AutoTokenizer.from_pretrained(language)(text)["input_ids"]
side = vision.config.image_size
assert CLIPImageProcessor.from_pretrained(tower).crop_size["height"] == side
with torch.no_grad():
    states = vision.eval()(torch.ones(1, 3, side, side)).last_hidden_state
    logits = model.eval()(torch.tensor([ids])).logits
print(
    json.dumps(
        {
            "version": transformers.__version__,
            "missing": [*vision_report["missing_keys"], *report["missing_keys"]],
            "ids": ids,
            "states": [round(value, 3) for value in states.flatten()[::997].tolist()],
            "logits": [round(value, 2) for value in logits.flatten()[::997].tolist()],
        }
    )
)
