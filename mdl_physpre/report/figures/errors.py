"""Figures of predictions: parity plots, and angles between the forces of the teacher and of the networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mdl_physpre.analysis.force_alignment import ForceAlignment
from mdl_physpre.analysis.parity import LabelledPredictions
from mdl_physpre.report.figures.style import INK, MARKERS, SOFT, Figure, plain, safe_name, save, styled, styles_of

MIDDLE = "#7a828a"
QUANTITIES = (
    ("energy", "energy, DFT (eV/atom)", "predicted (eV/atom)"),
    ("forces", "force component, DFT (eV/Å)", "predicted (eV/Å)"),
    ("stress", "stress component, DFT (eV/Å³)", "predicted (eV/Å³)"),
)


def draw_parity(predictions: Mapping[str, LabelledPredictions], test_set: str, folder: Path) -> Figure:
    """Predicted against labelled energy, force and stress; a row for each potential, on common axes."""
    names = list(predictions)
    shown = {name: [_points(predictions[name], q) for q, _, _ in QUANTITIES] for name in names}
    styles = styles_of(names)
    safe = safe_name(test_set)
    missing = []
    with styled() as plt:
        figure, axes = plt.subplots(len(names), 3, figsize=(7.4, 2.35 * len(names) + 0.2), squeeze=False)
        for column, (quantity, below, beside) in enumerate(QUANTITIES):
            limits = _limits([shown[name][column] for name in names])
            for row, name in enumerate(names):
                axis, (true, ours) = axes[row][column], shown[name][column]
                if limits is None or not len(true):
                    axis.set_axis_off()
                    axis.text(0.5, 0.5, f"no {quantity} labels", ha="center", va="center", transform=axis.transAxes)
                    missing.append(quantity)
                    continue
                axis.plot(limits, limits, color=SOFT, linewidth=0.8, zorder=0)
                colour = styles[name]["color"]
                colour = MIDDLE if colour == INK else colour  # points are a picture, whose ink does not turn on dark
                axis.plot(
                    true, ours, MARKERS[row % len(MARKERS)], color=colour, markersize=2.6, alpha=0.5,
                    markeredgewidth=0, rasterized=True,
                )  # fmt: skip
                outside = int((np.abs(ours - np.mean(limits)) > np.ptp(limits) / 2).sum())
                title = f"{plain(name)}\n{beside}" if column == 0 else beside
                axis.set(xlim=limits, ylim=limits, xlabel=below, ylabel=title)
                axis.set_aspect("equal")
                axis.locator_params(nbins=4)
                note = f"{len(true):,} points" + (f"\n{outside:,} outside" if outside else "")
                axis.text(0.04, 0.96, note, transform=axis.transAxes, va="top", fontsize=7)
        save(figure, folder / f"parity-{safe}")
    without = f" There are no {' and no '.join(dict.fromkeys(missing))} labels." if missing else ""
    some = next(iter(predictions.values()))
    return Figure(
        folder, f"parity-{safe}", f"Parity, {test_set}",
        f"Scatter plots of predicted against labelled energy, force and stress for {', '.join(names)} on the test set "
        f"{test_set}.{without}",
        f"Test set {test_set}, {len(some.n_atoms):,} structures; line: prediction equals label. Axes span the "
        "labels; how many predictions lie outside is written in the panel. Of many components an even selection is "
        f"drawn; the errors in the table are of all.{without}",
    )  # fmt: skip


def _points(found: LabelledPredictions, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    if quantity == "energy":
        true, ours = found.energy_label / found.n_atoms, found.energy / found.n_atoms
        known = np.isfinite(true)
        return true[known], ours[known]
    return getattr(found, f"{quantity}_label"), getattr(found, quantity)


def _limits(points: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float] | None:
    """Of the labels, with a margin; predictions far off would shrink all the others to a dot."""
    labels = np.concatenate([true for true, _ in points])
    if not len(labels):
        return None
    low, high = float(labels.min()), float(labels.max())
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def draw_force_angles(angles: Mapping[str, ForceAlignment], test_set: str, folder: Path) -> Figure:
    """Distribution of the angle between the forces of the teacher and of each arm's networks (Figure B.1)."""
    styles = styles_of(angles)
    name_of_file = f"force-angles-{safe_name(test_set)}"
    said, atoms = [], 0
    with styled() as plt:
        figure, axis = plt.subplots(figsize=(6.4, 3.2))
        for name, found in angles.items():
            edges, counts = np.asarray(found.edges), np.asarray(found.atoms, float)
            density = counts / max(counts.sum(), 1) / np.diff(edges)
            atoms = max(atoms, int(counts.sum()))
            known = found.mean is not None
            text = f"{name}: mean {found.mean:.0f}°, {found.share_above_90:.0%} beyond 90°" if known else name
            axis.stairs(density, edges, label=plain(text), **{**styles[name], "linewidth": 1.6})
            said.append(text)
        angle = np.linspace(0, 180, 181)
        random = np.sin(np.radians(angle)) / 2 * np.pi / 180
        axis.plot(angle, random, color=SOFT, linewidth=0.9, label="independent directions")
        axis.set(xlabel="angle between the two forces on an atom (degrees)", ylabel="density (1/degree)", xlim=(0, 180))
        axis.set_ylim(bottom=0)
        axis.set_xticks(range(0, 181, 30))
        axis.legend()
        save(figure, folder / name_of_file)
    return Figure(
        folder,
        name_of_file,
        f"Angles between forces, {test_set}",
        f"Histograms of the angle between the forces of two potentials. {'; '.join(said)}.",
        f"Angle between the force of the embedded-atom potential and that of the network on each of {atoms:,} atoms of "
        f"{test_set} (hybrid: between its two parts). 0°: they agree, 180°: they are opposed. Thin line: what "
        "independent directions would give. Where forces are small their direction is mostly noise.",
    )
