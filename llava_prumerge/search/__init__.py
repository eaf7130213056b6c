"""Searches for a method's settings for a model, on a few questions, without training; each writes a method file."""
