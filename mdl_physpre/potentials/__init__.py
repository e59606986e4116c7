"""Potentials: the contract, and everything that gives energy, forces and stress."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
