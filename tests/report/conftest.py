"""Lets the tests here import ``made_up_runs``, beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
