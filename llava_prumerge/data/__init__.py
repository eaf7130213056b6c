"""Data: LLaVA records to token ids, loss masks and pixels. Import the modules by name; this file imports nothing."""
