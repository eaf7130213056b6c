"""The method comparison, one table per budget: `make reproduce-methods` (see `playground/pocket/reproduce_methods.py`)."""
