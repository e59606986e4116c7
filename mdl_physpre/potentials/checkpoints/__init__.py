"""Checkpoints in every format that is read and written."""
