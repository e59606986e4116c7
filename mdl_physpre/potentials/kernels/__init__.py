"""Operators on edges: C code, and how torch knows it."""
