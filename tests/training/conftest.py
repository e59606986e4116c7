"""Makes the tiny potential of these tests importable, by the tests and by the checkpoints that name it."""

from __future__ import annotations

import sys
from pathlib import Path

if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))
