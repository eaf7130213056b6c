"""The small world: a model of real, published backbones that fits a laptop. `make small` builds it; docs/small.md tells of it."""
