"""Lets the tests here import ``pair_potentials``, which lies beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
