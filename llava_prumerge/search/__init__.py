"""Searches that find a method's settings for a model, on a few questions, without training. Each writes a method file."""
