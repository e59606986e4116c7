"""Tables and figures of a run."""

from .comparison import compare as compare
from .status import run_status as run_status
