"""Several potentials that were trained alike, as one: their mean, and how far they are apart.

With E_k and F_k,i of member k of K, for each structure and each atom i,

    E = mean_k E_k,      energy_spread  = sqrt( Σ_k (E_k − E)² / (K − 1) ),
    F_i = mean_k F_k,i,  force_spread_i = sqrt( Σ_k |F_k,i − F_i|² / (K − 1) ).

The second is the model deviation of forces by which DP-GEN chooses structures, its largest value over the atoms of a
structure (L. Zhang, D.-Y. Lin, H. Wang, R. Car, W. E, Phys. Rev. Materials 3, 023804 (2019); Y. Zhang et al., Comput.
Phys. Commun. 253, 107206 (2020)), but with K − 1 in place of K, because members are few: with two it is larger by a
factor of 1.41.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdl_physpre.errors import CheckpointError, ConfigError
from mdl_physpre.potentials.base import Potential, Predictions, element_names, worth_cutting
from mdl_physpre.structures.graph import AtomGraph


class Committee(Potential):
    """The mean of several potentials, with the spread between them (see the module).

    All members see one graph, which reaches to the largest cutoff; each counts the edges within its own. They are
    evaluated one after another, so that it costs as much as all of them.

    Parameters
    ----------
    members : two potentials or more, of the same elements and the same precision. They are not copied.

    Raises
    ------
    ConfigError : fewer than two members, other elements or another precision than the first has.
    """

    gives_spread = True

    def __init__(self, members: Sequence[Potential]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ConfigError(f"a committee needs two potentials or more, found {len(members)}")
        self.members = nn.ModuleList(members)
        first = members[0]
        for number, member in enumerate(members[1:], 2):
            if member.known_elements() != first.known_elements():
                raise ConfigError(
                    f"committee: member {number} ({type(member).__name__}) knows {element_names(member)}, the first "
                    f"{element_names(first)}; take potentials of the same elements"
                )
        learned = [parameter for member in members if (parameter := next(member.parameters(), None)) is not None]
        if len(kinds := {parameter.dtype for parameter in learned}) > 1:
            found = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            raise ConfigError(f"committee: its members are {found}; bring them to one precision with .to(dtype)")
        self.elements = first.elements
        self.cutoff = max(member.cutoff for member in members)
        self.training_energies = getattr(first, "training_energies", None)  # the members have seen the same
        self.gives_stress = all(member.gives_stress for member in members)
        self.concurrent = all(member.concurrent for member in members)

    @property
    def potentials(self) -> list[Potential]:
        """The members, in order."""
        return list(self.members)  # type: ignore[arg-type]

    def known_elements(self) -> frozenset[int] | None:
        """Those of the members, which are the same."""
        return self.potentials[0].known_elements()

    def predictions(self, graph: AtomGraph, forces: bool = True, stress: bool = True) -> Predictions:
        """Means of energies, forces and stress, with ``energy_spread`` and, with forces, ``force_spread``."""
        each = []
        for member in self.potentials:
            seen = worth_cutting(graph, member.cutoff) if member.cutoff < self.cutoff else graph
            each.append(member.predictions(seen, forces, stress))
        energies, apart = _mean_and_differences([one.energies for one in each])
        found = Predictions(energies, energy_spread=_deviation(apart.square().sum(0), len(each)))
        if forces:
            found.forces, apart = _mean_and_differences([one.forces for one in each])
            found.force_spread = _deviation(apart.square().sum((0, 2)), len(each))
        if stress:
            found.stress, _ = _mean_and_differences([one.stress for one in each])
        return found

    def get_extra_state(self) -> Tensor:
        """Class, cutoff and hyperparameters of the members as bytes: stored results tell potentials apart by them."""
        told = []
        for member in self.potentials:
            told += [type(member).__qualname__, repr(member.cutoff)]
            with contextlib.suppress(CheckpointError):
                told.append(repr(sorted(member.hyperparameters().items())))
        return torch.frombuffer(bytearray("\n".join(told).encode()), dtype=torch.uint8)

    def hyperparameters(self) -> dict[str, Any]:
        """Raises CheckpointError: a committee is opened from the checkpoints of its members."""
        raise CheckpointError(
            "a committee is not saved as one file; keep the checkpoints of its members, and open committee:a.pt,b.pt"
        )


def _mean_and_differences(values: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """The mean, and what each is apart from it, (K, …); both exact where all are the same."""
    stacked = torch.stack([value for value in values if value is not None])
    beyond = stacked - stacked[:1]  # of the first, so that nothing is lost to large energies
    mean = beyond.mean(0)
    return stacked[0] + mean, beyond - mean


def _deviation(squares: Tensor, n: int) -> Tensor:
    return (squares / (n - 1)).sqrt()
