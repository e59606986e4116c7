"""Checks that a potential of your own should pass, for its tests; with pytest or without."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
