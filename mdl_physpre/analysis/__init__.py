"""Analyses of trajectories and predictions."""
