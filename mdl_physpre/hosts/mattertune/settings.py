"""The section ``physpre`` of a MatterTune configuration, and the fit that it describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ase import Atoms
from pydantic import Field, ValidationError

from mdl_physpre.eam_fit.fit import EAMFit, fit_eam
from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.pretraining.perturbation import PerturbationSettings
from mdl_physpre.utils.settings import explained
from mdl_physpre.workflow.config.schema import EAM, Perturbation, Section


class Pretrain(Section):
    """The pretraining stage. A key that is left at ``null`` has the value of ``trainer``, ``model`` or ``data``."""

    max_epochs: int | None = Field(None, ge=1)
    lr: float | None = Field(None, gt=0)
    batch_size: int | None = Field(None, ge=1)


class Physpre(Section):
    """What comes before the finetuning.

    energy_reference : whether the energies of the elements are fitted to the training structures and put into
        the network, for both stages; only for the backbone physpre-m3gnet, where no normalizer does it.
    pretrain : null leaves out the embedded-atom potential and pretraining.
    """

    seed: int = Field(0, ge=0)
    energy_reference: bool = True
    eam: EAM = EAM()
    perturbation: Perturbation = Perturbation()
    pretrain: Pretrain | None = Pretrain()

    def perturbation_settings(self) -> PerturbationSettings:
        """Settings of the perturbation. Raises ConfigError."""
        return PerturbationSettings(**self.perturbation.model_dump(exclude={"validation"}))


def parse_physpre(raw: Any, source: str) -> Physpre:
    """The section, checked. Raises ConfigError that names each wrong key, with the nearest known one."""
    try:
        section = Physpre.model_validate(raw or {})
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "\n  ".join(_told(problem) for problem in error.errors())) from None
    section.perturbation_settings()
    return section


def _told(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(["physpre", *location])
    if problem["type"] != "extra_forbidden":
        return f"{key}: found {problem.get('input')!r}; {problem['msg'].removeprefix('Value error, ')}"
    section: Any = Physpre()
    for part in location[:-1]:
        section = getattr(section, part)
    return f"{key}: unknown key; {nearest(location[-1], type(section).model_fields)}"


def fit_teacher(train: Sequence[Atoms], val: Sequence[Atoms], settings: Mapping[str, Any], seed: int) -> EAMFit:
    """An embedded-atom potential fitted with the keys of ``physpre.eam``.

    Raises ConfigError for an unknown key, and what :func:`mdl_physpre.fit_eam` raises.
    """
    try:
        section = EAM.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(explained(error, EAM, "eam")) from None
    return fit_eam(train, val, section.settings(), seed=seed)
