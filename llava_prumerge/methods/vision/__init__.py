"""Vision reducers: one file each, acting once between the vision tower and the language model."""
