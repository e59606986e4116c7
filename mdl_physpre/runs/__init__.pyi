"""What the folder of a run holds."""

from .read import Run as Run
from .read import read_run as read_run
from .summary import Summary as Summary
