"""Text and tokens, for `model` and `data` alike: tokenizers as LLaVA reads them, and conversation templates."""
