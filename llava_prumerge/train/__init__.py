"""Training: recipes in YAML, what each stage trains and saves, the Trainer that runs it. Entry point: `train.run`."""
