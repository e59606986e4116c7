"""The section ``physpre`` of a MatterTune configuration, and the fit that it describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ase import Atoms
from pydantic import ValidationError

from mdl_physpre.eam_fit.fit import EAMFit, fit_eam
from mdl_physpre.errors import ConfigError
from mdl_physpre.utils.settings import Settings, explained, setting
from mdl_physpre.workflow.config.schema import EAM, Perturbation


class Pretrain(Settings):
    """The pretraining stage. A key that is left at ``null`` has the value of ``trainer``, ``model`` or ``data``."""

    max_epochs: int | None = setting(None, "Passes through the pretraining set.", ge=1)
    lr: float | None = setting(None, "Learning rate at the start.", gt=0)
    batch_size: int | None = setting(None, "Structures in a batch.", ge=1)
    online: bool = setting(False, "Perturb and label anew for each epoch; data.train has to be there.")


class Physpre(Settings):
    """What comes before the finetuning."""

    seed: int = setting(0, "Of the fit, the perturbation and the training.", ge=0)
    energy_reference: bool = setting(
        True,
        "Whether the energies of the elements are fitted to the training structures for both stages, and put into the "
        "network of physpre-m3gnet, or before the normalizers of another backbone; not where a normalizer does it.",
    )
    eam: EAM = setting(EAM(), "The embedded-atom potential.")
    perturbation: Perturbation = setting(Perturbation(), "How structures are perturbed.")
    pretrain: Pretrain | None = setting(
        Pretrain(), "The pretraining; null leaves it out, and the embedded-atom potential with it."
    )


def parse_physpre(raw: Any, source: str) -> Physpre:
    """The section, checked. Raises ConfigError that names each wrong key, with the nearest known one."""
    try:
        return Physpre.model_validate(raw or {})
    except ValidationError as error:
        raise ConfigError(f"{source}: {explained(error, Physpre, 'physpre')}") from None


def fit_teacher(train: Sequence[Atoms], val: Sequence[Atoms], settings: Mapping[str, Any], seed: int) -> EAMFit:
    """An embedded-atom potential fitted with the keys of ``physpre.eam``.

    Raises ConfigError for an unknown key, and what :func:`mdl_physpre.fit_eam` raises.
    """
    try:
        section = EAM.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(explained(error, EAM, "eam")) from None
    return fit_eam(train, val, section, seed=seed)
