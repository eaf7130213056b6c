"""The two contracts of visual-token reduction (`base`) and one file per method, discovered by name."""
