"""Serving: transformers' own OpenAI-compatible server, with a model of any family and its method behind it."""
