"""What a fitted embedded-atom potential is, in a table of its pairs and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from ase.data import chemical_symbols
from pydantic import Field

from mdl_physpre.analysis.errors import Errors
from mdl_physpre.potentials.eam.potential import EAMInteraction, pair_curve
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.labels import LABELS
from mdl_physpre.utils.record import Record
from mdl_physpre.utils.text_table import aligned, shown

WALL = 0.5  # Å: where the height of the wall is read
NUMBER = "{:.4g}"


class FittedPair(Record, populate_by_name=True):
    """A pair of elements in a fitted potential: Morse parameters, and the curve of two atoms alone with embedding.

    well_depth_eV, well_position_A : None where the curve has no well outside 0.5 Å. wall_eV : at 0.5 Å.
    closest_A : in the training data; None where the pair never meets within the cutoff.
    rises : whether the curve at 0.5 Å is above zero and above every point beyond.
    """

    pair: str
    D_eV: float
    alpha_per_A: float
    r_e_A: float
    well_depth_eV: float | None
    well_position_A: float | None
    wall_eV: float = Field(alias="wall_at_0.5_A_eV")
    closest_A: float | None
    rises: bool


def pair_table(potential: EAMInteraction, closest: Sequence[float]) -> list[FittedPair]:
    """A row for each pair; ``closest`` are their smallest distances in the training data, Å, infinite for none."""
    r = torch.arange(WALL, potential.cutoff + 0.005, 0.005, dtype=torch.float64)
    rows = []
    for p, ((zi, zj), name) in enumerate(zip(potential.pairs, potential.pair_names())):
        curve = pair_curve(potential, zi, zj, r).detach()
        lowest = int(curve.argmin())
        has_well = 0 < lowest and float(curve[lowest]) < -1e-6
        row = FittedPair(
            pair=name,
            D_eV=float(potential.D[p].detach()),
            alpha_per_A=float(potential.alpha[p].detach()),
            r_e_A=float(potential.r_e[p].detach()),
            well_depth_eV=-float(curve[lowest]) if has_well else None,
            well_position_A=float(r[lowest]) if has_well else None,
            wall_eV=float(curve[0]),
            closest_A=closest[p] if closest[p] < float("inf") else None,
            rises=bool(curve[0] > curve[1:].max()) and float(curve[0]) > 0.0,
        )
        rows.append(row)
    return rows


def describe(
    potential: EAMInteraction,
    table: Sequence[FittedPair],
    errors: Mapping[str, Errors | None],
    *,
    how: str,
    warnings: Sequence[str],
) -> str:
    """The fit in words: how it was made, pairs, elements, errors in the paper's units and per atom, warnings."""
    symbols = [chemical_symbols[z] for z in potential.elements]
    lines = [
        f"Embedded-atom potential for {', '.join(symbols)}: cutoff {potential.cutoff:g} Å, {potential.n_basis} "
        f"exponentials in the density of each pair, start {potential.init!r}.",
        how,
    ]
    if potential.repulsion is not None:
        named = zip(potential.pair_names(), potential.pairs)
        radii = [f"{name} {potential.repulsion.pair_radius(*pair):.3g}" for name, pair in named]
        lines.append(
            "The repulsion of the nuclei (Ziegler, Biersack, Littmark) is added, and is part of every number here; it "
            f"has vanished at, Å: {', '.join(radii)}."
        )
    lines += ["", "Two atoms alone, embedding included:"]
    head = ["pair", "well depth, eV", "well at, Å", "wall at 0.5 Å, eV", "closest in data, Å"]
    head += ["D, eV", "α, 1/Å", "r_e, Å"]
    keys = ["well_depth_eV", "well_position_A", "wall_eV", "closest_A", "D_eV", "alpha_per_A", "r_e_A"]
    lines += _indented([head, *([row.pair, *(shown(getattr(row, key), NUMBER) for key in keys)] for row in table)])
    lines += ["", "Elements:"]
    b, rho0, e0 = (p.detach().tolist() for p in (potential.B, potential.rho0, potential.E0))
    rows = [[s, f"{e:.4f}", shown(c, NUMBER), shown(x, NUMBER)] for s, e, c, x in zip(symbols, e0, b, rho0)]
    lines += _indented([["element", "E0, eV", "B, eV", "ρ0"], *rows])
    lines += ["", "Mean absolute errors:"]
    head = ["set", "structures", "energy, eV", "energy, meV/atom", "forces, eV/Å", "stress, eV/Å³", "weighted total"]
    rows = [head]
    for name, found in errors.items():
        if found is None:
            continue
        values = (found.energy_mae, found.energy_mae_mev_per_atom, found.forces_mae, found.stress_mae, found.total)
        rows.append([name, str(found.n_structures), *(shown(v, NUMBER) for v in values)])
    lines += _indented(rows)
    if warnings:
        lines += ["", "Take note:", *(f"- {w}" for w in warnings)]
    return "\n".join(lines)


def carries_labels(dataset: GraphDataset, weights: Sequence[float]) -> bool:
    """Whether a structure carries a label that the loss weighs."""
    return any(weight and dataset.label_count(name) for name, weight in zip(LABELS, weights))


def fit_warnings(
    potential: EAMInteraction,
    table: Sequence[FittedPair],
    sets: Mapping[str, GraphDataset],
    weights: Sequence[float],
) -> list[str]:
    """What the training data did not show, and pair curves that attract at short distance."""
    train = sets["train"]
    found = {int(z) for a in train.structures for z in a.numbers}
    lines = [
        f"no training structure holds {chemical_symbols[z]}: its parameters keep their start values"
        for z in potential.elements if z not in found
    ]  # fmt: skip
    lines += [
        f"{row.pair} never meets within {potential.cutoff:g} Å in the training data: its parameters keep their "
        "start values"
        for row in table if row.closest_A is None
    ]  # fmt: skip
    lines += [
        f"{row.pair} does not rise at short distance (two atoms at 0.5 Å: {row.wall_eV:.3g} eV): in the "
        "labels of structures in which this pair is pushed together it would attract"
        for row in table if not row.rises
    ]  # fmt: skip
    lines += [
        f"no training structure carries {name}: that part of the loss (weight {w:g}) counts for nothing"
        for name, w in zip(LABELS, weights) if w and name != "stress" and not train.label_count(name)
    ]  # fmt: skip
    if "val" not in sets or not carries_labels(sets["val"], weights):
        lines.append("no validation structure carries a label of the loss: the training set chose the best state")
    return lines


def _indented(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {line}" for line in aligned(rows)]
