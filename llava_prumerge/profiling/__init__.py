"""What a method costs and what it leaves, measured: builds on `efficiency`, which computes."""
