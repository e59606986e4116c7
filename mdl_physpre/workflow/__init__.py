"""Configuration, stages, command line."""
