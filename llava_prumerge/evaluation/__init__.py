"""Evaluation on LLaVA-1.5's six benchmarks: generate answers, score them, tabulate them. One file per benchmark.

Scoring needs the standard library, and numpy or openpyxl where a rule or format asks for it; torch and transformers are
loaded only to generate.
"""
