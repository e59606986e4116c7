"""Data and configuration of ``physpre demo``."""
