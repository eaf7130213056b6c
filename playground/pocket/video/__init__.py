"""Pocket video: short clips of moving shapes, records to train on, and the four video benchmarks' files; build.py makes them."""
