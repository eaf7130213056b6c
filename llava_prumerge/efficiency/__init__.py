"""What reduction costs and saves, computed: operations, time and memory at least. Nothing here imports torch by itself."""
