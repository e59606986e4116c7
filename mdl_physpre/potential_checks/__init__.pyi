"""Checks of a potential: symmetries, derivatives, limits."""

from .run import examine as examine
from .run import format_checks as format_checks
