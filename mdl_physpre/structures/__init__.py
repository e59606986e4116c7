"""Structures: read, write, split, graphs."""
