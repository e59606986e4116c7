"""Losses by name: the error function of a loss, e(d, δ), that :mod:`mdl_physpre.training.loss` averages over labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor

from mdl_physpre.utils.registry import Registry


class Loss(ABC):
    """The error function of a loss.

    A derived class is found by its name in the settings (``loss``, in a configuration ``optim.loss_function``): that
    of an entry point of the group ``mdl_physpre.losses``, or its import path. It is made without arguments.
    """

    @abstractmethod
    def error(self, d: Tensor, delta: float, label: Tensor, kind: str) -> Tensor:
        """e of each number of a label, differentiable in ``d``.

        Parameters
        ----------
        d : |predicted − label|, in eV (eV/atom with ``energy_per_atom``), eV/Å or eV/Å³; 0 where the label is missing.
            Of shape (n_structures,) for energies, (n_atoms, 3) for forces, (n_structures, 3, 3) for stress.
        delta : ``huber_energy``, ``huber_force`` or ``huber_stress`` of the settings, in the same unit.
        label : the label itself, of the same shape; NaN where it is missing.
        kind : ``energy``, ``forces`` or ``stress``.

        Returns
        -------
        The errors, of the shape of ``d``; 0 where ``d`` is 0.
        """


class MAE(Loss):
    """e = d, the absolute error: the loss of the paper."""

    def error(self, d: Tensor, delta: float, label: Tensor, kind: str) -> Tensor:
        return d


class Huber(Loss):
    """e = d − δ/2 beyond δ, and d²/(2δ) below.

    It has the slope of the absolute error, so the weights keep their meaning, and a gradient that vanishes as the
    error does.
    """

    def error(self, d: Tensor, delta: float, label: Tensor, kind: str) -> Tensor:
        return huber(d, delta)


class ConditionalHuber(Loss):
    """Huber, with 0.7, 0.4, 0.1 of δ and of the slope on atoms whose labelled force exceeds 100, 200, 300 eV/Å.

    Source: Batatia et al., arXiv:2401.00096, the force term.
    """

    STEPS = ((100.0, 0.7), (200.0, 0.4), (300.0, 0.1))

    def error(self, d: Tensor, delta: float, label: Tensor, kind: str) -> Tensor:
        if kind != "forces":
            return huber(d, delta)
        length = torch.nan_to_num(label).norm(dim=-1, keepdim=True)
        slope = torch.ones_like(length)
        for limit, fraction in self.STEPS:
            slope = torch.where(length >= limit, torch.full_like(slope, fraction), slope)
        return huber(d, delta * slope) * slope


def huber(d: Tensor, delta: float | Tensor) -> Tensor:
    """d − δ/2 beyond δ, d²/(2δ) below."""
    return torch.where(d < delta, d.square() / (2 * delta), d - delta / 2)


LOSSES: Registry[Loss] = Registry(
    "loss",
    "mdl_physpre.losses",
    Loss,  # type: ignore[type-abstract]
    {
        "mae": f"{__name__}:MAE",
        "huber": f"{__name__}:Huber",
        "conditional_huber": f"{__name__}:ConditionalHuber",
    },
)


@lru_cache
def find_loss(name: str) -> Loss:
    """The loss of a name. Raises ConfigError as :meth:`.Registry.find`."""
    return LOSSES.find(name)()
