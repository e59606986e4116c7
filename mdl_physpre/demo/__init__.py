"""Data of ``physpre demo``."""
