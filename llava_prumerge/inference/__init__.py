"""Asking a model about images, and seeing what its method keeps of them. Import the modules by name; this file imports nothing."""
