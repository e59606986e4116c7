"""The configuration as models: each key with its default, range, unit and a sentence; ``docs/configuration.md``.

Every key has a default but ``dataset.src`` and ``model.name``. An unknown key is an error that names the nearest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ase.data import atomic_numbers
from pydantic import (
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)  # fmt: skip
from typing_extensions import Self

from mdl_physpre.dynamics.oracle import OracleRunSettings
from mdl_physpre.dynamics.settings import DynamicsProtocol, DynamicsSettings
from mdl_physpre.eam_fit.settings import EAMFitSettings
from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.potentials.zbl import short_range_repulsion
from mdl_physpre.pretraining.perturbation_settings import PerturbationSettings
from mdl_physpre.structures.units import check_units
from mdl_physpre.training.arms import FINETUNE, Arm, Part, parse_arms, parts_by_name
from mdl_physpre.training.parts import SAM, Hybrid, Pretrain, Replay, Repulsion
from mdl_physpre.training.settings import OptimSettings, TrainingSettings
from mdl_physpre.utils.settings import Settings, explained, setting
from mdl_physpre.workflow.config.hot_frames import HotFrames
from mdl_physpre.workflow.config.recipes import Recipe
from mdl_physpre.workflow.config.stress import Stress
from mdl_physpre.workflow.config.task import Task
from mdl_physpre.workflow.config.teacher import Teacher


class Split(Settings):
    """Sizes of the test and validation set; a number below 1 with a point is a fraction, a whole one a count."""

    test: float | int = setting(0.05, "Test set, of all structures.")
    val: float | int = setting(0.1, "Validation set, of the rest.")
    by: str | None = setting(
        None, "Key of info: structures that share its value stay in one set; null: each structure by itself."
    )


class Dataset(Settings):
    """Structures with DFT labels."""

    LATER: ClassVar[dict[str, Any]] = {"units": {}, "energies_of_elements": "fit", "drop_unconverged": False}

    src: str | list[str] | dict[Literal["train", "val", "test"], str | list[str]] = setting(
        ...,
        "File (extended XYZ, ASE database, JSON of MatDeepLearn or MPtrj), load-atoms:NAME, a folder, a pattern "
        "such as data/*.xyz, a list of these, or one of them for each of train, val and test. ~ and $VARIABLES are put "
        "in; relative paths are looked for from the working directory, then from the folder of this file.",
    )
    keys: dict[str, str] | None = setting(
        None, "Names of labels in the file, such as {energy: dft_energy}, {virial: dft_virial}."
    )
    units: dict[str, str] = setting(
        {}, "Units of labels that are not in eV and Å, such as {stress: kbar, energy: Hartree}; -kbar: the other sign."
    )
    drop_unconverged: bool = setting(
        False, "Leave out structures whose electrons did not converge: steps of VASP without EDIFF, converged=F."
    )
    energies_of_elements: Literal["fit", "isolated_atoms"] | dict[str, float] = setting(
        "fit",
        "The energy of each element that counts as none: fitted to the composition of the training structures. "
        "isolated_atoms: where composition leaves it open, isolated atoms in the data decide, which are then "
        "structures of no set. Or their energies, as {Si: -0.8, O: -1.9}.",
        "eV",
    )
    options: dict[str, Any] = setting({}, "Further arguments of the reader of the format.")
    fraction: float = setting(1.0, "Part of the training and validation structures that is used.", gt=0, le=1)
    split: Split = setting(Split(), "How one file is divided.")
    extra_tests: dict[str, str] = setting({}, "Further test sets: a name and a file for each.")

    @field_validator("units")
    @classmethod
    def _units_are_known(cls, units: dict[str, str]) -> dict[str, str]:
        try:
            check_units(units)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return units

    @field_validator("energies_of_elements")
    @classmethod
    def _elements_are_known(cls, given: str | dict[str, float]) -> str | dict[str, float]:
        for symbol in given if isinstance(given, dict) else ():
            if symbol not in atomic_numbers:
                raise ValueError(f"{symbol!r} is no element; {nearest(symbol, atomic_numbers)}")
        return given

    @field_validator("extra_tests")
    @classmethod
    def _names_of_test_sets(cls, named: dict[str, str]) -> dict[str, str]:
        if taken := {"train", "val", "test", "seconds"} & set(named):
            raise ValueError(f"{', '.join(sorted(taken))} has a meaning already; give another name")
        return named


class Model(Settings):
    """The network. Further keys are hyperparameters of the backbone, which checks them itself."""

    model_config = ConfigDict(extra="allow")

    name: str = setting(
        ..., "Backbone: CGCNN, torchmd_etEarly, M3GNet, MACE, another registered name or an import path (module:Class)."
    )
    start_from: str | None = setting(
        None,
        "Checkpoint of a trained network, in any format that is read, in place of random weights; name, cutoff and "
        "hyperparameters are those of the file.",
    )
    cutoff: float = setting(8.0, "Distance up to which atoms are neighbours.", "Å", gt=0)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those of the backbone."""
        return dict(self.model_extra or {})


class EAM(EAMFitSettings):
    """The embedded-atom potential that labels the pretraining set."""

    checkpoint: str | None = setting(None, "File of a potential that is fitted already; null: it is fitted.")

    @model_validator(mode="after")
    def _repulsion_is_fitted_with(self) -> Self:
        if self.checkpoint and self.short_range:
            raise ValueError(
                "checkpoint: says itself whether it has short-range repulsion; leave short_range out, or add it to a "
                "finished potential by physpre.teacher: {potential: FILE, short_range: zbl}"
            )
        short_range_repulsion(self.short_range, self.short_range_radii)
        return self


class Perturbation(PerturbationSettings):
    """How structures are perturbed for pretraining (Algorithm 1 of the paper)."""

    validation: bool = setting(True, "Perturb the validation structures, too; else they are labelled as they are.")


class Dynamics(OracleRunSettings, DynamicsProtocol):
    """Molecular dynamics of test structures: the run, when a structure has failed, what is measured, and the work."""

    n_structures: int = setting(100, "Test structures, drawn at random; 0: no dynamics.", ge=0)
    min_atoms: int = setting(
        1, "Smaller structures are doubled along their shortest vector until they have so many atoms.", ge=1
    )


class Report(Settings):
    """The report."""

    formats: list[Literal["html", "pdf", "png", "csv"]] = setting(
        ["html", "png", "csv"], "What it is written as; an empty list writes none."
    )


class Physpre(Settings):
    """The method: arms that are compared, teacher, perturbation, pretraining, dynamics."""

    arms: list[str] = setting(
        ["baseline", "pretrain"], "Ways of training that are compared: baseline, or parts joined by +, as sam+pretrain."
    )
    n_networks: int = setting(
        1, "Networks of each arm (replicas), from the seeds task.seed, task.seed + 1, and so on.", ge=1
    )
    cache_dir: str | None = setting(None, "Folder in which graphs of structures are kept for further runs; null: none.")
    eam: EAM = setting(EAM(), "The embedded-atom potential.")
    teacher: Teacher | None = setting(None, "Another teacher; null: the embedded-atom potential.")
    perturbation: Perturbation = setting(Perturbation(), "How structures are perturbed.")
    hot_frames: HotFrames = setting(HotFrames(), "Frames of hot dynamics of the teacher.")
    pretrain: Pretrain.Settings = setting(Pretrain.Settings(), "The pretraining.")
    sam: SAM.Settings = setting(SAM.Settings(), "Arms with sam.")
    zbl: Repulsion.Settings = setting(Repulsion.Settings(), "Arms with zbl.")
    hybrid: Hybrid.Settings = setting(Hybrid.Settings(), "Arms with hybrid.")
    replay: Replay.Settings = setting(Replay.Settings(), "Arms with replay.")
    dynamics: Dynamics = setting(Dynamics(), "Molecular dynamics.")
    stress: Stress = setting(Stress(), "Stress tests.")
    report: Report = setting(Report(), "The report.")
    _other_parts: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def parts(self) -> dict[str, Any]:
        """Settings of the parts of arms by their names."""
        return {**dict(self), **self._other_parts}

    @model_validator(mode="wrap")
    @classmethod
    def _with_other_parts(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Take the sections of parts of arms that are not of this package."""
        if not isinstance(values, Mapping) or not (keys := values.keys() - cls.model_fields.keys()):
            return validate(values)
        parts = parts_by_name([arm for arm in values.get("arms") or () if isinstance(arm, str)])
        sections = {}
        for key in keys & parts.keys():
            try:
                sections[key] = parts[key].Settings.model_validate(values[key])
            except ValidationError as error:
                raise ConfigError(explained(error, parts[key].Settings, f"physpre.{key}")) from None
        found = validate({k: v for k, v in values.items() if k not in sections})
        found._other_parts = sections
        return found

    @model_serializer(mode="wrap")
    def _each_in_its_section(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return {**dump(self), **{name: part.model_dump(mode=info.mode) for name, part in self._other_parts.items()}}

    @model_validator(mode="after")
    def _hot_frames_are_made_once(self) -> Self:
        if self.pretrain.online and self.hot_frames.n:
            raise ValueError("pretrain.online draws perturbed structures alone; set hot_frames.n to 0")
        return self

    @field_validator("arms")
    @classmethod
    def _arms_have_a_meaning(cls, arms: list[str]) -> list[str]:
        try:
            parse_arms(arms)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return arms


class Config(Settings):
    """A whole configuration; see ``configs/`` for commented examples."""

    recipe: Recipe = setting("paper", "What fills in keys that are not given: paper (the defaults here), or default.")
    task: Task = setting(Task(), "The run.")
    model: Model = setting(..., "The network.")
    optim: OptimSettings = setting(OptimSettings(), "How networks are trained.")
    dataset: Dataset = setting(..., "The data.")
    physpre: Physpre = setting(Physpre(), "The method.")
    _left_to_data: frozenset[str] = PrivateAttr(default=frozenset())

    @property
    def arms(self) -> list[Arm]:
        """The arms with their settings."""
        return parse_arms(self.physpre.arms, self.physpre.parts)

    @model_validator(mode="after")
    def _a_trained_network_is_whole(self) -> Self:
        for arm in self.arms if self.model.start_from else ():
            if added := [part.name for part in arm.parts if type(part).build is not Part.build]:
                raise ValueError(
                    f"physpre.arms: {arm.name!r}: {', '.join(added)} adds energies to those of the network, and that "
                    "of model.start_from gives whole ones already; leave the arm out"
                )
        return self

    def training_settings(self, arm: Arm | None = None) -> TrainingSettings:
        """Settings of the finetuning stage, of an arm where one is given."""
        task = self.task
        where = {"device": task.device, "devices": task.devices, "compile": task.compiles_on(task.device)}
        settings = TrainingSettings(seed=task.seed, **where, **dict(self.optim))
        return settings if arm is None else arm.settings_of(FINETUNE, settings)

    def pretraining_settings(self, arm: Arm | None = None) -> TrainingSettings:
        """Settings of the pretraining stage, of an arm where one is given."""
        arm = arm or Arm("pretrain", (Pretrain(self.physpre.pretrain),))
        return arm.settings_of("pretrain", self.training_settings())

    def dynamics_settings(self) -> DynamicsSettings:
        """Settings of the dynamics."""
        own = {key: getattr(self.physpre.dynamics, key) for key in DynamicsProtocol.model_fields}
        return self.physpre.dynamics.with_frames(DynamicsSettings(seed=self.task.seed, **own))
