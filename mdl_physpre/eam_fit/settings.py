"""Settings of a fit of the embedded-atom potential."""

from __future__ import annotations

from typing import Any, Literal

from mdl_physpre.potentials.zbl import RADII
from mdl_physpre.utils.settings import Settings, setting


class EAMFitSettings(Settings):
    """The form of an embedded-atom potential, and the route by which it is fitted; see :func:`mdl_physpre.fit_eam`."""

    cutoff: float = setting(8.0, "Distance at which all interactions have vanished.", "Å", gt=0)
    n_basis: int = setting(10, "Exponentials in the density of a pair.", ge=1)
    init: Literal["spread", "reference"] = setting(
        "spread",
        "Start values: spread over the ranges in which they have a meaning, or those of the paper's code, all 1.",
    )
    signed_embedding: bool = setting(
        False, "Let the embedding energy of an element have either sign, as in the paper's code."
    )
    short_range: Literal["zbl"] | None = setting(
        None, "Add the repulsion of the nuclei: zbl. It is there during the fit, so that the sum fits the data."
    )
    short_range_radii: dict[str, float] = setting({}, RADII, "Å")
    route: Literal["fast", "reference"] = setting(
        "fast", "Minimiser: L-BFGS on all structures at once, or the paper's AdamW on mini-batches."
    )
    epochs: int = setting(200, "Passes over the training data; the fast route takes at most as many evaluations.", ge=1)
    lr: float = setting(2e-3, "Learning rate of the reference route.", gt=0)
    batch_size: int = setting(4, "Structures in a mini-batch of the reference route.", ge=1)
    weight_energy: float = setting(
        0.01, "Weight of the error of total energies in eV, in the fit alone; the network has weights of its own.", ge=0
    )
    weight_force: float = setting(50.0, "Weight of the error of forces in eV/Å, in the fit alone.", ge=0)
    weight_stress: float = setting(
        50.0, "Weight of the error of stresses in eV/Å³, in the fit alone; where the data have stresses.", ge=0
    )

    @property
    def weights(self) -> tuple[float, float, float]:
        """Those of energy (1/eV), forces (Å/eV) and stress (Å³/eV)."""
        return self.weight_energy, self.weight_force, self.weight_stress

    @property
    def potential(self) -> dict[str, Any]:
        """Those that :class:`~mdl_physpre.potentials.eam.potential.EAMInteraction` takes."""
        names = {"cutoff", "n_basis", "init", "signed_embedding", "short_range", "short_range_radii"}
        return self.model_dump(include=names)
