"""What an oracle says of the arms of a run: a table, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mdl_physpre.dynamics.compare_motion import MotionComparison
from mdl_physpre.dynamics.oracle_errors import OracleErrors
from mdl_physpre.report.figures.style import safe_name
from mdl_physpre.report.tables.page import Table, counted_each
from mdl_physpre.runs import layout
from mdl_physpre.runs.oracle import dynamics_oracle_errors
from mdl_physpre.runs.read import Run
from mdl_physpre.runs.stage import stage_result
from mdl_physpre.utils.text_table import MISSING, shown

COLUMNS = (
    ("energy, meV/atom", "energy_mae", "{:.1f}"),
    ("forces, eV/Å", "forces_mae", "{:.3f}"),
    ("forces (rms), eV/Å", "forces_rmse", "{:.3f}"),
    ("oracle's forces (rms), eV/Å", "oracle_forces_rms", "{:.3f}"),
    ("cosine", "forces_cosine", "{:.3f}"),
)


def oracle_table(found: Mapping[str, OracleErrors], test: str = "") -> Table | None:
    """Errors along the simulations of each arm, over all times and by time, and how many structures are wrong."""
    if not found:
        return None
    rows, values = [], []
    for arm, errors in found.items():
        counts = [counted_each(errors.wrong), counted_each(errors.whole_and_wrong)]
        means = [shown(getattr(errors.means, key), form) for _, key, form in COLUMNS]
        rows.append([arm, str(errors.means.frames), *means, *counts])
        whole = (0.0, max((one.end_fs for one in errors.bins), default=0.0), errors.means)
        for start, end, own in (whole, *((one.start_fs, one.end_fs, one) for one in errors.bins)):
            values.append(
                [arm, start, end, own.frames, own.energy_error, *(getattr(own, key) for _, key, _ in COLUMNS)]
            )
    names = [text for text, _, _ in COLUMNS]
    head = ["arm", "frames", *names, "wrong", "wrong, of those not failed"]
    left_out = sum(len(errors.left_out) for errors in found.values())
    first = next(iter(found.values()))
    notes = (
        f"By {first.oracle}. Energies are counted from the start of each structure. Wrong: the force error (rms) of a "
        f"frame passes {first.bound:g} of the oracle's forces. Frames at which a structure broke are not in the means."
        + (f" {left_out} frames could not be compared." if left_out else "")
    )
    value_head = ["arm", "from_fs", "to_fs", "frames", "energy_error_mev_per_atom", *(key for _, key, _ in COLUMNS)]
    file = f"oracle-errors-{safe_name(test)}" if test else "oracle-errors"
    caption = f"Errors along the stress test {test}" if test else "Errors along the simulations"
    return Table(file, caption, head, rows, values, value_head, notes=notes)


def motion_of(run: Run) -> dict[str, MotionComparison]:
    """The first network of each arm against the oracle's own dynamics; empty where that was not asked for."""
    stored = stage_result(run.folder / layout.ORACLE_RUN / layout.MOTION) if run.plan.oracle_trajectory else {}
    return {arm: MotionComparison.model_validate(one) for arm, one in stored.get("arms", {}).items()}


def motion_table(found: Mapping[str, MotionComparison]) -> Table | None:
    """How far atoms move, and how they vibrate, against the oracle."""
    values: list[list[Any]] = [
        [arm, len(one.structures), element, one.msd_ratio[element], one.dos_overlap.get(element)]
        for arm, one in found.items()
        for element in one.msd_ratio
    ]
    if not values:
        return None
    rows = [[arm, element, str(n), shown(ratio, "{:.2f}"), shown(o, "{:.3f}")] for arm, n, element, ratio, o in values]
    head = ["arm", "element", "structures", "mean square displacement, of the oracle's", "overlap of vibrations"]
    value_head = ["arm", "structures", "element", "msd_ratio", "dos_overlap"]
    caption = "Motion against the oracle's own"
    return Table("oracle-motion", caption, head, rows, values, value_head, words=2)


def whole_and_wrong(run: Run, arm: str) -> str:
    """Structures of an arm that did not fail and are wrong all the same."""
    errors = dynamics_oracle_errors(run.summary).get(arm)
    return MISSING if errors is None else counted_each(errors.whole_and_wrong)
