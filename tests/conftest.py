"""What holds for every test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def package_log_as_before() -> Iterator[None]:
    """Undo what a command called inside a test set up: its handler writes to a stream that ends with that test."""
    logger = logging.getLogger("mdl_physpre")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
