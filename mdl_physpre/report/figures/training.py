"""Figures of how the networks came about: the pretraining set, and losses and learning rates of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdl_physpre.pretraining.set_report import DistanceReport
from mdl_physpre.report.figures.style import INK, Figure, pair_panels, plain, save, styled, styles_of
from mdl_physpre.training.arms import FINETUNE

SETS = {"original": ("#56b4e9", None), "perturbed": ("#d55e00", "////")}
LABELS = (
    ("energy_per_atom", "energy (eV/atom)", False),
    ("largest_force", "largest force of a structure (eV/Å)", True),
    ("largest_stress", "largest stress component (eV/Å³)", True),
)


def draw_smallest_distances(distances: DistanceReport, folder: Path) -> Figure:
    """Distribution over structures of the smallest distance of each pair, original and perturbed (Figure 6b)."""
    edges = np.asarray(distances.edges)
    pairs = dict(list(distances.pairs.items())[:12])
    said = []
    with styled() as plt:
        figure, axes = pair_panels(plt, list(pairs), (4.6, 2.75, 2.75), 2.4)
        for axis, (pair, found) in zip(axes, pairs.items()):
            used = np.zeros(len(edges) - 1, bool)
            for name, (colour, hatch) in SETS.items():
                own = found.get(name)
                if own is None:
                    continue
                counts = np.asarray(own.counts, float)
                used |= counts > 0
                share = counts / max(counts.sum(), 1)
                axis.stairs(share, edges, fill=True, color=colour, alpha=0.35, label=name)
                axis.stairs(share, edges, color=colour, linewidth=1.1, hatch=hatch)
                said.append(f"{pair} {name}: smallest {own.minimum:.2f} Å, median {own.median:.2f} Å")
            if used.any():
                first, last = np.flatnonzero(used)[[0, -1]]
                axis.set_xlim(max(edges[first] - 0.2, 0), edges[last + 1] + 0.2)
            axis.set(xlabel="smallest distance (Å)", ylabel="fraction of structures")
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=2)
        save(figure, folder / "smallest-distances")
    left = len(distances.pairs) - len(pairs)
    return Figure(
        folder, "smallest-distances", "Smallest distances",
        "Histograms of the smallest distance in a structure. " + "; ".join(said[:24]) + ".",
        "Of each structure the smallest distance of a pair of elements, before and after perturbation. Bins of 0.05 Å, "
        "each set by itself adds up to 1." + (f" {left} further pairs are not drawn." if left else ""),
    )  # fmt: skip


def draw_label_spread(labels: Mapping[str, Mapping[str, Mapping[str, float]]], folder: Path) -> Figure:
    """Quantiles of the teacher's labels of the unperturbed and the perturbed structures."""
    kinds = [one for one in LABELS if any(one[0] in found for found in labels.values())]
    named = (("original", "unperturbed"), ("perturbed", "perturbed"))
    rows = [(name, labels[key]) for name, key in named if labels.get(key)]
    with styled() as plt:
        figure, axes = plt.subplots(1, len(kinds), figsize=(7.6, 1.75), squeeze=False, sharey=True)
        for axis, (kind, text, logarithmic) in zip(axes[0], kinds):
            for row, (name, found) in enumerate(rows):
                if kind not in found:
                    continue
                q = {float(k): v for k, v in found[kind].items()}
                colour, hatch = SETS[name]
                if logarithmic:
                    q = {k: max(v, 1e-4) for k, v in q.items()}
                axis.plot([q[0.0], q[1.0]], [row, row], color=colour, linewidth=1, linestyle=":")
                axis.plot([q[0.05], q[0.95]], [row, row], color=colour, linewidth=1.6)
                axis.barh(row, q[0.75] - q[0.25], left=q[0.25], height=0.45, color=colour, alpha=0.45, hatch=hatch)
                axis.plot([q[0.5]], [row], "|", color=INK, markersize=11, markeredgewidth=1.6)
            if logarithmic:
                axis.set_xscale("log")
            axis.set(xlabel=text, ylim=(len(rows) - 0.5, -0.5))
            axis.set_yticks(range(len(rows)), [name for name, _ in rows])
        save(figure, folder / "pretraining-labels")
    return Figure(
        folder, "pretraining-labels", "Labels of the pretraining set",
        "Spread of energies, largest forces and largest stresses of the original and the perturbed structures.",
        "Labels of the teacher for the structures before and after perturbation. Dotted: whole range; "
        "line: 5 to 95 %; box: 25 to 75 %; mark: median.",
    )  # fmt: skip


def draw_training(logs: Mapping[str, Mapping[tuple[str, str], Sequence[Mapping[str, float]]]], folder: Path) -> Figure:
    """Losses and learning rate against the steps taken, a column for each stage of training."""
    stages = list(dict.fromkeys(stage for own in logs.values() for _, stage in own))
    stages.sort(key=lambda stage: stage == FINETUNE)
    styles = styles_of(logs)
    said = []
    with styled() as plt:
        figure, axes = plt.subplots(
            2, len(stages), figsize=(3.7 * len(stages) + 0.4, 4.4), squeeze=False, sharex="col",
            gridspec_kw={"height_ratios": [2.4, 1]},
        )  # fmt: skip
        for column, stage in enumerate(stages):
            upper, lower = axes[0][column], axes[1][column]
            for arm, own in logs.items():
                for (network, name), rows in own.items():
                    if name != stage:
                        continue
                    steps = np.cumsum([row.get("steps", 1.0) for row in rows])
                    first = network == min(n for n, s in own if s == stage)
                    curve = [row.get("validation_loss", np.nan) for row in rows]
                    upper.plot(steps, curve, label=plain(arm) if first else None, linewidth=1.2, **styles[arm])
                    train = [row.get("train_loss", np.nan) for row in rows]
                    upper.plot(steps, train, color=styles[arm]["color"], linewidth=0.7, alpha=0.45)
                    lower.plot(steps, [row.get("lr", np.nan) for row in rows], linewidth=1.2, **styles[arm])
                    if first and np.isfinite(curve).any():
                        said.append(f"{arm}, {stage}: lowest validation loss {np.nanmin(curve):.3g}")
            upper.set_yscale("log")
            lower.set_yscale("log")
            upper.set(title=f"{stage}", ylabel="loss (validation; faint: training)" if column == 0 else "")
            lower.set(xlabel="optimiser steps", ylabel="learning rate" if column == 0 else "")
            upper.legend()
            for axis in (upper, lower):
                axis.grid(axis="y", which="major")
                _few_ticks(axis)
        save(figure, folder / "training")
    return Figure(
        folder, "training", "Training",
        "Losses and learning rates against optimiser steps. " + "; ".join(said) + ".",
        "Loss on the validation set (line) and on the training set (faint), and the learning rate. The losses of "
        "pretraining and finetuning are of different labels and cannot be compared with each other.",
    )  # fmt: skip


def _few_ticks(axis: Any) -> None:
    """Ticks at 1, 2, 5, 10, … of a logarithmic axis; its ends where that gives fewer than two."""
    low, high = axis.get_ylim()
    every = [m * 10.0**e for e in range(-12, 13) for m in (1, 2, 5)]
    ticks = [t for t in every if low <= t <= high]
    if len(ticks) > 6:
        ticks = [t for t in ticks if f"{t:e}"[0] == "1"]
    if len(ticks) < 2:
        values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.get_lines()] or [np.ones(1)])
        values = values[np.isfinite(values)]
        ticks = sorted({float(f"{v:.2g}") for v in (values.min(), values.max())}) if len(values) else []
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
