"""Figure of errors along simulations, by an oracle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mdl_physpre.dynamics.oracle_errors import OracleErrors
from mdl_physpre.report.figures.style import SOFT, Figure, plain, safe_name, save, styled, styles_of
from mdl_physpre.report.tables.breaking import shown_unit


def draw_oracle_errors(found: Mapping[str, OracleErrors], folder: Path, test: str = "") -> Figure:
    """Error of the forces over the oracle's forces, and error of the energy, along the scale: time, or the test's.

    ``found`` : by the name of an arm or potential; all by one oracle. ``test`` : the stress test that they are of.
    """
    file = f"oracle-errors-{safe_name(test)}" if test else "oracle-errors"
    styles, first = styles_of(found), next(iter(found.values()))
    unit, factor = shown_unit(first.unit)
    scale = f"{first.quantity} ({unit})"
    with styled() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.1))
        for name, errors in found.items():
            bins = [one for one in errors.bins if one.relative_error is not None]
            t = [(one.start + one.end) / 2 * factor for one in bins]
            ratio = [one.relative_error for one in bins]
            wrong = errors.wrong
            left.plot(t, ratio, label=f"{plain(name)}: {wrong.count} of {wrong.n} wrong", **styles[name])
            right.plot(t, [one.energy_error for one in bins], **styles[name])
        left.axhline(first.bound, color=SOFT, linewidth=0.8, linestyle=":")
        left.set(xlabel=scale, ylabel="force error / forces of the oracle", ylim=(0, None))
        right.axhline(0.0, color=SOFT, linewidth=0.8, linestyle=":")
        right.set(xlabel=scale, ylabel="energy error (meV/atom)")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        save(figure, folder / file)
    said = "; ".join(f"{name} {e.wrong.count} of {e.wrong.n} structures" for name, e in found.items())
    return Figure(
        folder,
        file,
        f"Errors along the stress test {test}" if test else "Errors along the simulations",
        f"Curves of the errors of forces and energies against {first.quantity}, by {first.oracle}. Wrong: {said}.",
        f"Frames along each {'stress test' if test else 'simulation'} evaluated by {first.oracle}. Left: root mean "
        "square error of the forces over the root mean square of the oracle's forces (at least 0.05 eV/Å, in a "
        f"relaxation 1 eV/Å), mean over frames; dotted: {first.bound:g}, beyond which a frame is wrong. Right: mean "
        "error of the energy, counted from the start of each structure. Frames at which a structure broke are left "
        "out.",
    )
