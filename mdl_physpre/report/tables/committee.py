"""The table of committees: how the spread between the networks of an arm belongs to the error of their mean."""

from __future__ import annotations

from typing import Any

from mdl_physpre.analysis.calibration import HEAD, Calibration, calibration_rows
from mdl_physpre.report.tables.page import Table
from mdl_physpre.runs.read import Run


def committee_table(run: Run) -> Table | None:
    """A row for each test set, arm and quantity; the CSV file holds the curves, too."""
    rows: list[list[str]] = []
    values: list[list[Any]] = []
    for arm, result in run.summary.arms.items():
        for test_set, found in result.committee.items():
            rows += [[test_set, arm, str(len(result.networks)), *row] for row in calibration_rows(found)]
            for name, one in (("force", found.forces), ("energy", found.energy)):
                if one is not None:
                    whole = [one.n, one.rms_error, one.rms_spread, one.factor, one.spearman]
                    curve = [(n, e, s, None, None) for n, e, s in zip(one.counts, one.error, one.spread)]
                    values += [[test_set, arm, name, part, *row] for part, row in enumerate([whole, *curve])]
    if not rows:
        return None
    head = ["test set", "arm", "networks", *HEAD]
    value_head = ["test set", "arm", "quantity", "bin (0: all)", "values", "rms error", "rms spread", "factor", "rank"]
    notes = (
        "Of the mean of an arm's networks: its error, and the standard deviation between the networks. Factor: by "
        "which the spread has to be multiplied to have the error's root mean square; above 1, the networks share "
        "errors that their spread does not show. The rank correlation is Spearman's. CSV file: eV/Å and eV/atom."
    )
    caption = "What the spread between networks says of their error"
    rows.sort(key=lambda row: row[0])  # by test set
    return Table("committee", caption, head, rows, values, value_head, words=2, notes=notes)


def force_calibrations(run: Run) -> dict[str, dict[str, Calibration]]:
    """Test set -> arm -> calibration of the force spread."""
    found: dict[str, dict[str, Calibration]] = {}
    for arm, result in run.summary.arms.items():
        for test_set, one in result.committee.items():
            if one.forces is not None:
                found.setdefault(test_set, {})[arm] = one.forces
    return found
