"""LLaVA-1.5 on transformers' Llava, with a reducer behind the vision tower and a pruner inside the decoder."""
