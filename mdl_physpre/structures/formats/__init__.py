"""Formats of structure files: a class of :class:`Format` for each."""

from mdl_physpre.structures.formats.base import Format as Format
