"""Pretraining: EAM fit, perturbation, labels."""
