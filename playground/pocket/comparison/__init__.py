"""The whole family of methods on one table per budget: `make reproduce-methods` (see `playground/pocket/reproduce_methods.py`)."""
