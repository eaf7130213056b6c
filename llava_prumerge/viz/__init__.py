"""Pictures of what a method keeps: `python -m llava_prumerge.viz IMAGE... --method NAME`."""
