"""Figures of a run: energy of a pair against its distance, and how many structures survive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii

from mdl_physpre.potentials.base import Potential, evaluate
from mdl_physpre.potentials.checkpoints import load_potential
from mdl_physpre.structures.graph import build_graph

# Okabe and Ito's colours, told apart by people with any colour vision, and different dashes for print in grey
STYLES = {
    "EAM": {"color": "#000000", "linestyle": ":"},
    "baseline": {"color": "#D55E00", "linestyle": "--"},
    "pretrain": {"color": "#0072B2", "linestyle": "-"},
    "pretrain, before finetuning": {"color": "#56B4E9", "linestyle": "-."},
}


def dimer_energies(potential: Potential, pair: tuple[int, int], distances: np.ndarray) -> np.ndarray:
    """Energy of two atoms at each distance (Å), less that of the two atoms alone, eV."""
    dimers = [Atoms(numbers=pair, positions=[[0, 0, 0], [r, 0, 0]]) for r in distances]
    dtype = next(potential.parameters()).dtype
    far = Atoms(numbers=pair, positions=[[0, 0, 0], [10 * potential.cutoff, 0, 0]])
    graph = build_graph([*dimers, far], potential.cutoff, dtype=dtype)
    with torch.no_grad():
        energies = evaluate(potential, graph, forces=False, stress=False).energies.cpu().double().numpy()
    return energies[:-1] - energies[-1]


def draw_figures(folder: Path, summary: Mapping[str, Any]) -> list[Path]:
    """``pair_curves.png`` and ``survival.png`` in a run's folder; those there are data for."""
    drawn = []
    potentials: dict[str, Potential] = {}
    if "eam" in summary:
        potentials["EAM"] = load_potential(folder / "1-eam" / "eam.pt")
    for arm in summary["arms"]:
        potentials[arm] = load_potential(folder / summary[arm]["checkpoint"])
    elements = potentials[summary["arms"][0]].elements
    if elements and len(elements) <= 4:
        drawn.append(draw_pair_curves(potentials, elements, folder / "pair_curves.png"))
    if all(summary[arm].get("dynamics") for arm in summary["arms"]):
        drawn.append(draw_survival({arm: summary[arm]["dynamics"] for arm in summary["arms"]}, folder / "survival.png"))
    return drawn


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_pair_curves(potentials: Mapping[str, Potential], elements: Sequence[int], path: Path) -> Path:
    """Energy of a pair of atoms against distance, one panel for each pair of elements."""
    plt = _pyplot()
    from ase.data import chemical_symbols

    pairs = list(combinations_with_replacement(sorted(elements), 2))
    columns = min(len(pairs), 5)
    rows = -(-len(pairs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.3 * columns, 3.0 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(pairs) :]:
        axis.set_visible(False)
    for axis, pair in zip(axes.flat, pairs):
        bond = covalent_radii[pair[0]] + covalent_radii[pair[1]]
        distances = np.linspace(0.3, 5.0, 189)
        for name, potential in potentials.items():
            axis.plot(distances, dimer_energies(potential, pair, distances), label=name, **STYLES.get(name, {}))
        axis.axvline(bond, color="0.75", linewidth=0.8, zorder=0)
        axis.axhline(0.0, color="0.85", linewidth=0.8, zorder=0)
        axis.set(
            title="–".join(chemical_symbols[z] for z in pair), xlabel="distance (Å)", ylabel="energy of the pair (eV)"
        )
        axis.set_xlim(0.3, 5.0)
        axis.set_ylim(-20, 60)
    axes.flat[0].legend(frameon=False, fontsize=8)
    return _save(figure, path)


def draw_survival(dynamics: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Fraction of structures that have not broken, against time."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    for arm, found in dynamics.items():
        n, settings = found["n"], found["settings"]
        end = settings["steps"] * settings["timestep"] / 1000
        times = sorted(
            step * settings["timestep"] / 1000 for step, status in found["failing_steps"] if status == "failed"
        )
        x = [0.0, *times, end]
        y = [1.0, *(1 - (k + 1) / n for k in range(len(times))), 1 - len(times) / n]
        axis.step(x, y, where="post", label=f"{arm}: {len(times)} of {n} broke", **STYLES.get(arm, {}))
    axis.set(xlabel="time (ps)", ylabel="fraction not broken", ylim=(0, 1.04), xlim=(0, None))
    axis.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=160)
    _pyplot().close(figure)
    return path
