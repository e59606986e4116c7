"""What MatterTune's entry-point group ``mattertune.plugins`` loads."""

from __future__ import annotations

from importlib import import_module

from mdl_physpre.hosts.mattertune.names import require_host

MODULES = ("backbone", "data_sources", "start_recipe")
"""Importing each registers what it defines in the host, once."""


def register() -> None:
    """Register the backbone ``physpre-m3gnet``, the data sources and the recipe in the host's registries.

    Called again, it does nothing. Raises HostError where the host is missing or of a version that lacks something.
    """
    require_host()
    for module in MODULES:
        import_module(f"mdl_physpre.hosts.mattertune.{module}")
