"""Potentials: the contract, and everything that gives energy, forces and stress."""
