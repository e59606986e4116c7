"""What an oracle says: of one potential as text, of the arms of a run as tables, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from mdl_physpre.dynamics.compare_motion import MotionComparison
from mdl_physpre.dynamics.oracle_errors import OracleErrors, OracleMeans
from mdl_physpre.report.figures.style import safe_name
from mdl_physpre.report.tables.breaking import shown_unit
from mdl_physpre.report.tables.page import Table, counted_each
from mdl_physpre.runs import layout
from mdl_physpre.runs.oracle import dynamics_oracle_errors
from mdl_physpre.runs.read import Run
from mdl_physpre.runs.stage import stage_result
from mdl_physpre.utils.text_table import MISSING, shown, text_table

COLUMNS = (
    ("energy, meV/atom", "energy_mae", "{:.1f}"),
    ("forces, eV/Å", "forces_mae", "{:.3f}"),
    ("forces (rms), eV/Å", "forces_rmse", "{:.3f}"),
    ("oracle's forces (rms), eV/Å", "oracle_forces_rms", "{:.3f}"),
    ("cosine", "forces_cosine", "{:.3f}"),
    ("spread, eV/Å", "force_spread", "{:.3f}"),
)


def oracle_table(found: Mapping[str, OracleErrors], test: str = "") -> Table | None:
    """Errors along the simulations or a stress test of each arm, over all and by bins, and what is wrong."""
    if not found:
        return None
    first = next(iter(found.values()))
    columns = [column for column in COLUMNS if any(getattr(e.means, column[1]) is not None for e in found.values())]
    rows, values = [], []
    for arm, errors in found.items():
        counts = [counted_each(errors.wrong), counted_each(errors.whole_and_wrong)]
        means = [shown(getattr(errors.means, key), form) for _, key, form in columns]
        rows.append([arm, str(errors.means.frames), *means, break_words(errors) or MISSING, *counts])
        whole = (min((b.start for b in errors.bins), default=None), max((b.end for b in errors.bins), default=None),
                 errors.means)  # fmt: skip
        for start, end, own in (whole, *((one.start, one.end, one) for one in errors.bins)):
            values.append(
                [arm, start, end, own.frames, own.energy_error, *(getattr(own, key) for _, key, _ in columns)]
            )
    names = [text for text, _, _ in columns]
    head = ["arm", "frames", *names, "where it broke: forces, energy", "wrong", "wrong, of those not failed"]
    left_out = sum(len(errors.left_out) for errors in found.values())
    notes = (
        f"By {first.oracle}. Energies are counted from the start of each structure. Wrong: the force error (rms) of a "
        f"frame passes {first.bound:g} of the oracle's forces. Frames at which a structure broke are not in the means; "
        "their medians stand apart." + (f" {left_out} frames could not be compared." if left_out else "")
    )
    value_head = ["arm", f"from_{first.unit}", f"to_{first.unit}", "frames", "energy_error_mev_per_atom",
                  *(key for _, key, _ in columns)]  # fmt: skip
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


def format_oracle_errors(errors: OracleErrors) -> str:
    """What an oracle says as text: over all frames, along the run, and how many structures are wrong."""
    m, wrong, whole = errors.means, errors.wrong, errors.whole_and_wrong
    lines = [f"Against {errors.oracle}, {m.frames} frames:"]
    if m.frames:
        unit, factor = shown_unit(errors.unit)
        head = [f"{errors.quantity}, {unit}", "frames", "T, K", "energy, meV/atom", "forces, eV/Å", "oracle's forces",
                "cosine", "spread, eV/Å"]  # fmt: skip
        rows = [head, *(_cells(one.words(factor), one) for one in errors.bins), _cells("all", m)]
        lines.append(text_table([row if m.force_spread is not None else row[:-1] for row in rows]))
        lines.append(
            "(energy: mean absolute error after the start's; forces: root mean squares of error and of forces)"
        )
    if at_break := break_words(errors):
        lines.append(f"Where structures broke (medians): {at_break}")
    lines.append(
        f"Wrong by the oracle (force error above {errors.bound:g} of its forces): {wrong.count} of {wrong.n}; of those "
        f"that did not fail {whole.count} of {whole.n}"
    )
    if errors.left_out:
        lines.append(f"Left out: {len(errors.left_out)} frames, first {errors.left_out[0]}")
    return "\n".join(lines)


def break_words(errors: OracleErrors) -> str:
    """Median errors at the frames at which structures broke; empty where none broke, or none could be compared."""
    broke = [one for one in errors.structures if one.break_forces_rmse is not None]
    if not broke:
        return ""
    forces = median(one.break_forces_rmse or 0.0 for one in broke)
    energies = [abs(one.break_energy_error) for one in broke if one.break_energy_error is not None]
    return f"{forces:.3g} eV/Å" + (f", {median(energies):.3g} meV/atom" if energies else "")


def _cells(name: str, means: OracleMeans) -> list[str]:
    values = (means.temperature, means.energy_mae, means.forces_rmse, means.oracle_forces_rms, means.forces_cosine,
              means.force_spread)  # fmt: skip
    forms = ("{:.0f}", "{:.1f}", "{:.3f}", "{:.3f}", "{:.3f}", "{:.3f}")
    return [name, str(means.frames), *(shown(value, form) for value, form in zip(values, forms))]
