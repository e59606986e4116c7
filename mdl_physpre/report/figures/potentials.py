"""Figures of energy against distance: the embedded-atom potential with its parts, the networks, and what was learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdl_physpre.analysis.energy_curves import EAMElement, EnergyCurves, PairCurves
from mdl_physpre.report.figures.style import INK, SHADE, SOFT, Figure, pair_panels, plain, save, styled, styles_of

LINEAR = 1.0  # eV: linear within, logarithmic beyond
PART_STYLES: dict[str, dict[str, Any]] = {
    "pair": {"color": "#0072b2", "linestyle": "-."},
    "embedding": {"color": "#d55e00", "linestyle": "--"},
    "atomic": {"color": "#009e73", "linestyle": (0, (1, 2))},
}


class DrawnCurves(EnergyCurves):
    """Energy curves with what is drawn beside them.

    key : of the checkpoints. closest : smallest distance of each pair in the training data, Å.
    left_out : pairs that are not drawn. elements : of the embedded-atom potential.
    """

    key: str
    closest: dict[str, float]
    left_out: int
    elements: tuple[EAMElement, ...]


def draw_curves(measured: DrawnCurves, names: Sequence[str], folder: Path, name: str, title: str) -> Figure:
    """Energy of two atoms against their distance by several potentials, a panel for each pair of elements."""
    pairs = {p: c for p, c in measured.pairs.items() if any(n in c.curves for n in names)}
    styles = styles_of(names)
    r = np.asarray(measured.distances)
    with styled() as plt:
        figure, axes = pair_panels(plt, list(pairs))
        for axis, (pair, found) in zip(axes, pairs.items()):
            for one in names:
                if one in found.curves:
                    axis.plot(r, np.asarray(found.curves[one], float), label=plain(one), **styles[one])
            _dress(axis, pair, found, measured, [c for n, c in found.curves.items() if n in names])
        _legend(figure, axes)
        save(figure, folder / name)
    return Figure(
        folder, name, title,
        f"Energy of two atoms against their distance for {', '.join(pairs)}, by {', '.join(names)}. "
        + _walls(measured, names, pairs),
        "Energy of two atoms alone, less that of the two far apart. The axis is linear within ±1 eV and logarithmic "
        "beyond, so that wells and walls are both seen. " + _legend_words(measured),
    )  # fmt: skip


def draw_eam_parts(measured: DrawnCurves, folder: Path) -> Figure:
    """The embedded-atom potential and its parts."""
    pairs = {p: c for p, c in measured.pairs.items() if "EAM" in c.parts}
    r = np.asarray(measured.distances)
    with styled() as plt:
        figure, axes = pair_panels(plt, list(pairs))
        for axis, (pair, found) in zip(axes, pairs.items()):
            parts = found.parts["EAM"]
            for part, style in PART_STYLES.items():
                values = np.zeros_like(r) if part == "atomic" else np.asarray(getattr(parts, part))
                axis.plot(r, values, label=part, **{**style, "linewidth": 1.3})
            axis.plot(r, np.asarray(found.curves["EAM"], float), color=INK, label="total")
            _dress(axis, pair, found, measured, [parts.pair, parts.embedding, found.curves["EAM"]])
        _legend(figure, axes)
        save(figure, folder / "eam-parts")
    constants = "; ".join(f"{p}: {c.parts['EAM'].atomic:.2f} eV" for p, c in pairs.items())
    return Figure(
        folder, "eam-parts", "The embedded-atom potential and its parts",
        f"Energy of two atoms against distance for {', '.join(pairs)}: pair, embedding and atomic term, and total.",
        "Each part less its value at infinite distance. The atomic energies do not depend on distance and are 0 by "
        f"this choice (their sums are {constants}). " + _legend_words(measured),
    )  # fmt: skip


def _legend_words(measured: DrawnCurves) -> str:
    left = measured.left_out
    text = (
        "Shaded: distances that occur in the training data; vertical line: covalent distance (sum of covalent radii). "
        "Left of the shade no potential has been shown a label of the reference method."
    )
    return text + (f" {left} further pairs of elements are not drawn." if left else "")


def _walls(measured: DrawnCurves, names: Sequence[str], pairs: Mapping[str, PairCurves]) -> str:
    """The lowest energy of each curve on the short side of the data, for those who cannot see it."""
    r = np.asarray(measured.distances)
    said = []
    for pair, found in pairs.items():
        inside = r < measured.closest.get(pair, found.covalent_distance)
        for name in names:
            curve = np.asarray(found.curves.get(name, []), float)
            if len(curve) and inside.any():
                k = int(np.argmin(curve[inside]))
                said.append(f"{pair} {name}: lowest {curve[inside][k]:.3g} eV at {r[inside][k]:.2f} Å")
    return "Below the distances of the data: " + "; ".join(said[:24]) + "."


def _dress(axis: Any, pair: str, found: PairCurves, measured: DrawnCurves, drawn: Sequence[Sequence[float]]) -> None:
    end = measured.distances[-1]
    closest = measured.closest.get(pair)
    if closest:
        axis.axvspan(closest, end, color=SHADE, zorder=-2, linewidth=0)
    axis.axvline(found.covalent_distance, color=SOFT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=-1)
    axis.axhline(0.0, color=SOFT, linewidth=0.6, zorder=-1)
    axis.set_yscale("symlog", linthresh=LINEAR, linscale=1.2)
    lowest = min((float(np.nanmin(np.asarray(c, float))) for c in drawn), default=-1.0)
    axis.set_ylim(min(-2.0, max(lowest * 1.6, -2000.0)), 3000.0)
    ticks = [t for t in (-1000, -100, -10, -1, 0, 1, 10, 100, 1000) if t > axis.get_ylim()[0]]
    axis.set_yticks(ticks, [f"{t:g}".replace("-", "−") for t in ticks])
    axis.minorticks_off()
    axis.set(xlabel="distance (Å)", xlim=(0.3, end), ylabel="energy (eV)")


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, text in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(text, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 4))
