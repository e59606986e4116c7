"""The parts of a sum of potentials that a training does not change: evaluated once for each structure."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.potentials.base import AtomicPotential, Potential, Predictions
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.sum import SumPotential
from mdl_physpre.structures.graph import AtomGraph


class ConstantParts:
    """What potentials that stay as they are give for structures: computed when first asked for, kept as long as those.

    Parameters
    ----------
    parts : by name. They are shared, not copied.
    """

    def __init__(self, parts: Mapping[str, Potential]) -> None:
        self._sum = SumPotential(**parts)
        self._known: dict[int, tuple[weakref.ref[Atoms], Predictions]] = {}  # by the identity of the structure

    def predictions(self, graph: AtomGraph, forces: bool, stress: bool) -> Predictions:
        """Energies, forces and stress of a graph, as :func:`.evaluate` gives them, without a gradient."""
        structures, whole = graph.structures, self._sum.to(graph.pos.device)
        if structures is None:
            return evaluate(whole, graph, forces=forces, stress=stress)
        found = [self._of(atoms, graph, forces, stress) for atoms in structures]
        if not all(found):
            with torch.autocast(graph.pos.device.type, enabled=False):
                self._keep(structures, graph, evaluate(whole, graph, forces=forces, stress=stress))
            found = [self._of(atoms, graph, forces, stress) for atoms in structures]
        known = [one for one in found if one is not None]
        return Predictions(
            torch.cat([one.energies for one in known]),
            torch.cat([one.forces for one in known if one.forces is not None]) if forces else None,
            torch.cat([one.stress for one in known if one.stress is not None]) if stress else None,
        )

    def _of(self, atoms: Atoms, graph: AtomGraph, forces: bool, stress: bool) -> Predictions | None:
        """Of a structure, where all that is asked for is known on the device of the graph."""
        _, found = self._known.get(id(atoms), (None, None))
        if found is None or found.energies.device != graph.pos.device:
            return None
        return None if (forces and found.forces is None) or (stress and found.stress is None) else found

    def _keep(self, structures: Sequence[Atoms], graph: AtomGraph, found: Predictions) -> None:
        sizes = [len(atoms) for atoms in structures]

        def one_each(values: Tensor | None, lengths: list[int]) -> Sequence[Tensor | None]:
            return [None] * len(lengths) if values is None else [part.clone() for part in values.split(lengths)]

        ones = [1] * len(sizes)
        energies, forces, stress = one_each(found.energies, ones), one_each(found.forces, sizes), found.stress
        for atoms, *values in zip(structures, energies, forces, one_each(stress, ones)):
            key = id(atoms)
            gone = weakref.ref(atoms, lambda _, key=key: self._known.pop(key, None))  # type: ignore[misc]
            self._known[key] = (gone, Predictions(*values))  # type: ignore[arg-type]


def taken_apart(potential: AtomicPotential) -> tuple[AtomicPotential, ConstantParts | None]:
    """What of a potential is trained, and the parts of a sum without a parameter that is; ``None`` where all are."""
    parts = potential.parts if isinstance(potential, SumPotential) else {}
    constant = {name: p for name, p in parts.items() if not any(q.requires_grad for q in p.parameters())}
    if not constant or len(constant) == len(parts):
        return potential, None
    assert isinstance(potential, SumPotential)
    return potential.without(*constant), ConstantParts(constant)
