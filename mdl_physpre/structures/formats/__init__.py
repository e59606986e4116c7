"""Formats of structure files."""
