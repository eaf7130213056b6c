"""The layouts of checkpoints, one file each."""
