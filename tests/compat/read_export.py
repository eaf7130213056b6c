"""Loads a llava-hf folder with whichever transformers runs this: token ids, prompt, and a greedy answer, as one line of JSON.

python read_export.py FOLDER TEXTS.json IMAGE.png
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    LlamaTokenizerFast,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

folder, texts, image = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
try:
    processor = LlavaProcessor.from_pretrained(folder)
except TypeError:  # in 4.37 it takes no setting: llava-hf's own folders do not load there either, their parts do
    processor = LlavaProcessor(CLIPImageProcessor.from_pretrained(folder), LlamaTokenizerFast.from_pretrained(folder))
model = LlavaForConditionalGeneration.from_pretrained(folder, torch_dtype=torch.float32).float().eval()
talk = [{"role": "user", "content": "the <image> fox"}]
prompt = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
inputs = processor(text=prompt, images=Image.open(image), return_tensors="pt")
with torch.no_grad():
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=False)
print(
    json.dumps(
        {
            "version": transformers.__version__,
            "ids": [tokenizer(text)["input_ids"] for text in json.loads(Path(texts).read_text())],
            "prompt": prompt,
            "padding_side": processor.tokenizer.padding_side,
            "pixels": [round(value, 4) for value in inputs["pixel_values"].flatten()[::97].tolist()],
            "answer": answer[0, inputs["input_ids"].shape[1] :].tolist(),
        }
    )
)
