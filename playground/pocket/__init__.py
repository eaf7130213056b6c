"""The pocket world: generated scenes, and everything a small LLaVA needs to be trained and evaluated on them."""
