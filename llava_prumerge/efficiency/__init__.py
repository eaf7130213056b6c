"""What reduction costs and saves: measured time and memory, and operation counts."""
