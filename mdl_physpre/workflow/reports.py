"""When a run's report is written: by the run, now and then and at the end; and on its own, from the run's folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.report.output.write import DEFAULT, write_report
from mdl_physpre.runs.read import DATA_FILE, read_json
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData, load_data

logger = logging.getLogger(__name__)
REFRESH = 60.0  # seconds between two reports of a run in progress, at least


class Reports:
    """Reports of a run by the run itself."""

    def __init__(self, folder: Path, config: Config, data: RunData) -> None:
        self.folder, self.data = folder, data
        self.formats = config.physpre.report.formats
        self.last = time.monotonic()

    def refresh(self, summary: Mapping[str, Any]) -> None:
        """Write the report of what is done, unless one was written a short time ago. A failure stops no run."""
        if not self.formats or time.monotonic() - self.last < REFRESH:
            return
        try:
            write_report(self.folder, summary=summary, structures=self._structures, formats=self.formats)
        except Exception as error:
            logger.warning("the report is not refreshed: %s: %s", type(error).__name__, error)
        self.last = time.monotonic()

    def write(self) -> list[Path]:
        """Write the report of the finished run; returns the files to open."""
        if not self.formats:
            return []
        return write_report(self.folder, structures=self._structures, formats=self.formats)

    def _structures(self) -> dict[str, Sequence[Atoms]]:
        return {"train": self.data.train, **self.data.test_sets}


def report_run(folder: str | Path, formats: Sequence[str] = DEFAULT, reference: str | Path | None = None) -> list[Path]:
    """Write the report of a run from its folder, finished or not.

    Parameters
    ----------
    folder : of ``physpre run``.
    formats, reference : see :func:`mdl_physpre.report.output.write.write_report`.

    Returns
    -------
    The files to open. Where the data cannot be read any more, the report says what it lacks.

    Raises
    ------
    DataError, ConfigError : as :func:`mdl_physpre.report.output.write.write_report`.
    """

    def structures() -> dict[str, Sequence[Atoms]]:
        data = load_data(load_config(Path(folder) / "config.yml"))
        _refuse_other_data(Path(folder), data)
        return {"train": data.train, **data.test_sets}

    return write_report(folder, structures=structures, formats=formats, reference=reference)


def _refuse_other_data(folder: Path, data: RunData) -> None:
    """Raise DataError where the files hold other structures than the run was made from."""
    known = read_json(folder / DATA_FILE)
    if known:
        same = (known["key"], known["extra_key"]) == (data.key, data.extra_key)
    else:  # a run without hashes: counts at least
        counts = read_json(folder / "summary.json").get("data")
        same = counts in (None, data.summary())
    if not same:
        raise DataError("the data files have changed since the run; the run itself would be done anew with them")
