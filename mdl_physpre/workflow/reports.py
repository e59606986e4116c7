"""Reports of a run: by itself, while it goes on and when it is finished, and from its folder alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.report.comparison import arms_with_first
from mdl_physpre.report.output.write import DEFAULT, write_report
from mdl_physpre.report.tables.text import format_summary
from mdl_physpre.runs.layout import CONFIG, DATA, Plan
from mdl_physpre.runs.read import read_run
from mdl_physpre.runs.recommend import recommendation, write_recommended
from mdl_physpre.runs.stage import read_json
from mdl_physpre.runs.summary import Summary
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData, load_data

logger = logging.getLogger(__name__)
REFRESH = 60.0  # seconds between two reports of a run in progress, at least


class Reports:
    """Reports of a run by the run itself."""

    def __init__(self, folder: Path, config: Config, data: RunData, plan: Plan) -> None:
        self.folder, self.data, self.plan = folder, data, plan
        self.formats = config.physpre.report.formats
        self.last = time.monotonic()

    def refresh(self, summary: Summary) -> None:
        """Write the report of what is done, unless one was written a short time ago, or the last comes next.

        A failure stops no run.
        """
        done = sum(len(arm.networks) for arm in summary.arms.values())
        if not self.formats or done == len(self.plan.networks) or time.monotonic() - self.last < REFRESH:
            return
        try:
            write_report(self.folder, summary=summary, structures=self._structures, formats=self.formats)
        except Exception as error:
            logger.warning("the report is not refreshed: %s: %s", type(error).__name__, error)
        self.last = time.monotonic()

    def finish(self, summary: Summary) -> Summary:
        """Write ``potential.pt``, ``summary.json`` with the arms compared, the tables in the log, and the report."""
        run = read_run(self.folder, summary)
        summary = summary.model_copy(update={"pairs": arms_with_first(run), "untrained": run.summary.untrained})
        chosen = recommendation(summary)
        if chosen is not None:
            write_recommended(self.folder, chosen)
        summary = summary.model_copy(update={"recommended": chosen})
        summary.write(self.folder)
        logger.info("%s", format_summary(summary))
        if self.formats:
            for path in write_report(self.folder, structures=self._structures, formats=self.formats):
                logger.info("report: %s", path)
        return summary

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
    folder = Path(folder)

    def structures() -> dict[str, Sequence[Atoms]]:
        data = load_data(load_config(folder / CONFIG))
        known = read_json(folder / DATA)
        if {name: known.get(name) for name in data.hashes()} != data.hashes():
            raise DataError("the data files have changed since the run; the run itself would be done anew with them")
        return {"train": data.train, **data.test_sets}

    return write_report(folder, structures=structures, formats=formats, reference=reference)
