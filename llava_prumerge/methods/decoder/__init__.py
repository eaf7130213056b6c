"""Decoder pruners: one file each, acting just before chosen decoder layers."""
