"""Stress tests: how far structures can be heated, compressed or shot at each other before a potential breaks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
