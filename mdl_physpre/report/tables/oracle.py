"""What an oracle says of the arms of a run: a table, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping

from mdl_physpre.dynamics.oracle_errors import OracleErrors
from mdl_physpre.report.tables.page import Table, counted_each
from mdl_physpre.runs.read import Run
from mdl_physpre.utils.text_table import MISSING, shown

COLUMNS = (
    ("energy, meV/atom", "energy_mae", "{:.1f}"),
    ("forces, eV/Å", "forces_mae", "{:.3f}"),
    ("forces (rms), eV/Å", "forces_rmse", "{:.3f}"),
    ("oracle's forces (rms), eV/Å", "oracle_forces_rms", "{:.3f}"),
    ("cosine", "forces_cosine", "{:.3f}"),
)


def oracle_errors_of(run: Run) -> dict[str, OracleErrors]:
    """What an oracle says of each arm that it was asked about."""
    found = {arm: result.dynamics for arm, result in run.summary.arms.items() if result.dynamics}
    return {arm: dynamics.oracle for arm, dynamics in found.items() if dynamics.oracle is not None}


def oracle_table(found: Mapping[str, OracleErrors]) -> Table | None:
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
    return Table("oracle-errors", "Errors along the simulations", head, rows, values, value_head, notes=notes)


def whole_and_wrong(run: Run, arm: str) -> str:
    """Structures of an arm that did not fail and are wrong all the same."""
    errors = oracle_errors_of(run).get(arm)
    return MISSING if errors is None else counted_each(errors.whole_and_wrong)


def oracle_sentence(run: Run) -> str | None:
    """What is known of structures that did not fail; ``None`` where nothing was simulated."""
    found = oracle_errors_of(run)
    if found:
        first = next(iter(found.values()))
        counts = ", ".join(f"{arm} {e.whole_and_wrong.count} of {e.whole_and_wrong.n}" for arm, e in found.items())
        return (
            f"Of the structures that did not fail, {first.oracle} finds wrong: {counts} (force error above "
            f"{first.bound:g} of its forces)."
        )
    if not any(result.dynamics for result in run.summary.arms.values()):
        return None
    return (
        "A structure that does not fail is not known to be right: no reference has looked at it. "
        "physpre.dynamics.oracle names one."
    )
