"""How far a training is: a bar on a terminal, and a line of the log now and then."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from mdl_physpre.utils.progress import progress, shows_bars

logger = logging.getLogger(__name__)

LINE_EVERY = 10.0  # seconds between lines


class EpochProgress:
    """Tells of the epochs of a training, of which ``done`` of ``total`` were complete at the start."""

    def __init__(self, total: int, done: int, bar: bool) -> None:
        self.total = total
        self._last_line = -math.inf
        self._bar: Any = None
        if bar and shows_bars():  # elsewhere the lines of the log tell it
            left = total - done
            self._bar = progress(range(left + 1), total=left, description=f"training, epochs after {done}")
            next(self._bar, None)

    def tell(self, row: dict[str, Any], best: dict[str, Any], last: bool) -> None:
        """One more epoch is complete, with its row of the record."""
        if self._bar is not None:
            next(self._bar, None)
        if not last and time.monotonic() - self._last_line <= LINE_EVERY:
            return
        self._last_line = time.monotonic()
        logger.info(
            "epoch %d of %d: training loss %.4g, validation loss %.4g (best %.4g in epoch %d), lr %.2g, %.1f s",
            row["epoch"] + 1,
            self.total,
            row["train_loss"],
            row["validation_loss"],
            best["loss"],
            best["epoch"] + 1,
            row["lr"],
            row["seconds"],
        )

    def close(self) -> None:
        """Take the bar off the terminal, at the end or after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
