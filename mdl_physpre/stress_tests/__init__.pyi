"""Stress tests: how far structures can be heated, compressed or shot at each other before a potential breaks."""

from .kinds import StressTest as StressTest
from .result import BreakingPoint as BreakingPoint
from .result import StressResult as StressResult
from .run import run_stress_tests as run_stress_tests
