"""The configuration: MatDeepLearn's five sections with their meaning there, and ``physpre`` for what it does not know.

Every key has a default but ``dataset.src`` and ``model.name``. An unknown key is an error that names the nearest one.
Keys that only MatDeepLearn acts on are accepted, so that one file serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.eam_fit.settings import EAMFitSettings
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.zbl import core_for
from mdl_physpre.pretraining.perturbation import PerturbationSettings
from mdl_physpre.training.arms import FINETUNE, Arm, parse_arms, parts_by_name
from mdl_physpre.training.parts import SAM, Hybrid, Pretrain, Replay
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.utils.settings import Settings, explained


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Section(BaseModel):
    """A section of the configuration. ``HOST_KEYS`` are accepted and left to MatDeepLearn."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    HOST_KEYS: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _leave_host_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {k: v for k, v in values.items() if k in cls.model_fields or k not in cls.HOST_KEYS}
        return values


def section_of(settings: type[Settings], name: str, leave_out: Sequence[str] = (), **changed: Any) -> type[Section]:
    """A section with the fields of a settings class, some left out, some changed: (type, default)."""
    fields = {key: (field.annotation, field) for key, field in settings.model_fields.items() if key not in leave_out}
    return create_model(name, __base__=Section, **{**fields, **changed})


class Split(Section):
    """Sizes of the test set (of all) and the validation set (of the rest), as fractions or numbers of structures."""

    test: float | int = 0.05
    val: float | int = 0.1
    by: str | None = None


class PreprocessParams(Section):
    HOST_KEYS = _names(
        "edge_calc_method n_neighbors num_offsets edge_steps self_loop all_neighbors use_degree "
        "node_representation preprocess_edges preprocess_edge_features preprocess_node_features "
        "preprocess_nodes node_dim edge_dim prediction_level output_dim"
    )
    cutoff_radius: float = Field(8.0, gt=0)


class Dataset(Section):
    HOST_KEYS = _names(
        "name target_path pt_path prediction_level transforms data_format additional_attributes verbose "
        "train_ratio val_ratio test_ratio processed num_workers otf_edge_index otf_edge_attr "
        "otf_node_attr dataset_device use_precomputed_edges predict_ratio image_selfloop self_loop device"
    )
    src: str | dict[Literal["train", "val", "test"], str]
    keys: dict[str, str] | None = None
    options: dict[str, Any] = {}
    fraction: float = Field(1.0, gt=0, le=1)
    split: Split = Split()
    extra_tests: dict[str, str] = {}
    preprocess_params: PreprocessParams = PreprocessParams()

    @model_validator(mode="after")
    def _names_of_test_sets(self) -> Dataset:
        taken = {"train", "val", "test", "seconds"} & set(self.extra_tests)
        if taken:
            raise ValueError(f"extra_tests: {', '.join(sorted(taken))} has a meaning already; give another name")
        return self


class Model(Section):
    """``name`` and the hyperparameters of the backbone, which it checks itself."""

    model_config = ConfigDict(extra="allow", frozen=True)
    HOST_KEYS = _names(
        "model_ensemble edge_steps self_loop prediction_level gradient load_model otf_edge_index otf_edge_attr "
        "otf_node_attr"
    )
    name: str

    def hyperparameters(self) -> dict[str, Any]:
        return {k: v for k, v in (self.model_extra or {}).items() if k not in self.HOST_KEYS}


class LossArgs(Section):
    weight_energy: float = Field(0.01, ge=0)
    weight_force: float = Field(50.0, ge=0)
    weight_stress: float = Field(50.0, ge=0)


class Loss(Section):
    loss_type: Literal["ForceStressLoss", "ForceLoss"] = "ForceStressLoss"
    loss_args: LossArgs = LossArgs()

    def weights(self) -> dict[str, float]:
        """Weights of the three terms; ``ForceLoss`` has no stress term."""
        found = self.loss_args.model_dump()
        if self.loss_type == "ForceLoss":
            found["weight_stress"] = 0.0
        return found

    def weights_by_label(self) -> dict[str, float]:
        """The same by label: energy, forces, stress."""
        found = self.weights()
        return {"energy": found["weight_energy"], "forces": found["weight_force"], "stress": found["weight_stress"]}


class OptimizerArgs(Section):
    HOST_KEYS = frozenset({"betas", "eps"})
    weight_decay: float = Field(0.01, ge=0)


class Optimizer(Section):
    optimizer_type: Literal["AdamW"] = "AdamW"
    optimizer_args: OptimizerArgs = OptimizerArgs()


class SchedulerArgs(Section):
    HOST_KEYS = frozenset({"mode"})
    factor: float = 0.8
    patience: int = 10
    threshold: float = 2e-4
    min_lr: float = 1e-5


class Scheduler(Section):
    scheduler_type: Literal["ReduceLROnPlateau"] = "ReduceLROnPlateau"
    scheduler_args: SchedulerArgs = SchedulerArgs()


# What optim says once for both stages, in the host's words, is not repeated in the section of a stage.
_SAID_BY_HOST_KEYS = (
    "weight_energy",
    "weight_force",
    "weight_stress",
    "weight_decay",
    "scheduler_factor",
    "scheduler_patience",
    "scheduler_threshold",
    "min_lr",
    "seed",
    "sam_rho",
    "sam_adaptive",
    # the section task says it for the whole run
    "device",
    "devices",
    "compile",
)

_OptimBase: Any = section_of(
    TrainingSettings,
    "_OptimBase",
    leave_out=_SAID_BY_HOST_KEYS,
    loss=(Loss, Loss()),
    loss_function=(str, "mae"),
    optimizer=(Optimizer, Optimizer()),
    scheduler=(Scheduler, Scheduler()),
)


class Optim(_OptimBase):
    HOST_KEYS = frozenset(["max_checkpoint_epochs", "verbosity", "batch_tqdm"])

    @model_validator(mode="before")
    @classmethod
    def _device_of_the_run(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "device" not in values:
            return values
        if values["device"] != "auto":
            raise ValueError("device: is that of the whole run; give it as task.device")
        return {key: value for key, value in values.items() if key != "device"}  # in a run's config.yml of before

    def settings(self, seed: int, **where: Any) -> TrainingSettings:
        """Settings of the finetuning stage; ``where`` it runs."""
        own = {f: getattr(self, f) for f in type(self).model_fields}
        loss, scheduler = own.pop("loss"), own.pop("scheduler").scheduler_args
        decay = own.pop("optimizer").optimizer_args.weight_decay
        return TrainingSettings(
            loss=own.pop("loss_function"),
            weight_decay=decay,
            seed=seed,
            **loss.weights(),
            scheduler_factor=scheduler.factor,
            scheduler_patience=scheduler.patience,
            scheduler_threshold=scheduler.threshold,
            min_lr=scheduler.min_lr,
            **own,
            **where,
        )


_EAMBase: Any = section_of(EAMFitSettings, "_EAMBase")


class EAM(_EAMBase):
    """The embedded-atom potential that labels the pretraining set. ``checkpoint`` names one that is fitted already."""

    checkpoint: str | None = None

    @model_validator(mode="after")
    def _core_is_fitted_with(self) -> EAM:
        if self.checkpoint and self.short_range:
            raise ValueError(
                "checkpoint: says itself whether it has a core; leave short_range out, or add a core to a finished "
                "potential by physpre.teacher: {potential: FILE, short_range: zbl}"
            )
        core_for(self.short_range, self.short_range_radii)
        return self

    def settings(self) -> EAMFitSettings:
        """Settings of the fit."""
        return EAMFitSettings(**self.model_dump(exclude={"checkpoint"}))


class Teacher(Section):
    """What labels the pretraining set in place of the embedded-atom potential: ``potential`` or ``calculator``.

    ``potential`` is a checkpoint in any format that is read, ``calculator:…`` or ``torchsim:…``, or a registered name;
    ``calculator`` the import path of an ASE calculator, or of a function that returns one, called with ``arguments``.
    """

    potential: str | None = None
    calculator: str | None = None
    arguments: dict[str, Any] = {}
    short_range: Literal["zbl"] | None = None
    short_range_radii: dict[str, float] = {}
    processes: int | None = Field(None, ge=1)

    @property
    def source(self) -> str:
        """The name under which it is opened."""
        return self.potential if self.potential is not None else f"calculator:{self.calculator}"

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.potential or self.calculator}{' + ZBL' if self.short_range else ''}"

    @model_validator(mode="after")
    def _one_source(self) -> Teacher:
        if (self.potential is None) == (self.calculator is None):
            raise ValueError("give one of potential and calculator")
        core_for(self.short_range, self.short_range_radii)
        return self


_PerturbationBase: Any = section_of(PerturbationSettings, "_PerturbationBase")
_DynamicsBase: Any = section_of(DynamicsSettings, "_DynamicsBase", leave_out=("seed", "compile"))


class Perturbation(_PerturbationBase):
    """How structures are perturbed, and whether those of the validation set are too."""

    validation: bool = True


class Dynamics(_DynamicsBase):
    """Molecular dynamics of ``n_structures`` test structures; 0 leaves it out.

    Structures of fewer than ``min_atoms`` atoms are doubled along their shortest vector until they are large enough.
    """

    n_structures: int = Field(100, ge=0)
    min_atoms: int = Field(1, ge=1)


class Report(Section):
    """What the report is written as; an empty list writes none."""

    formats: list[Literal["html", "pdf", "png", "csv"]] = ["html", "png", "csv"]


class Physpre(Section):
    """The method. ``n_networks`` are trained for each arm, from the seeds ``task.seed``, ``task.seed`` + 1, …"""

    HOST_KEYS = frozenset({"energy_reference"})

    arms: list[str] = ["baseline", "pretrain"]
    eam: EAM = EAM()
    teacher: Teacher | None = None
    perturbation: Perturbation = Perturbation()
    pretrain: Pretrain.Settings = Pretrain.Settings()
    sam: SAM.Settings = SAM.Settings()
    hybrid: Hybrid.Settings = Hybrid.Settings()
    replay: Replay.Settings = Replay.Settings()
    n_networks: int = Field(1, ge=1)
    dynamics: Dynamics = Dynamics()
    report: Report = Report()
    cache_dir: str | None = None
    _other_parts: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def parts(self) -> dict[str, Any]:
        """Settings of the parts of arms by their names."""
        return {**dict(self), **self._other_parts}

    @model_validator(mode="wrap")
    @classmethod
    def _with_other_parts(cls, values: Any, validate: ModelWrapValidatorHandler[Physpre]) -> Physpre:
        """Take the sections of parts of arms that are not of this package."""
        if not isinstance(values, Mapping) or not (keys := values.keys() - cls.model_fields.keys() - cls.HOST_KEYS):
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

    @field_validator("arms")
    @classmethod
    def _arms_have_a_meaning(cls, arms: list[str]) -> list[str]:
        try:
            parse_arms(arms)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return arms


class Task(Section):
    """``threads`` of each process; ``processes`` that train and simulate networks at the same time.

    ``device`` : ``auto`` (GPUs where there are any), ``cpu``, ``cuda`` or ``cuda:1``, of everything that a run computes
    with networks. Several networks take the GPUs in turn where the name leaves open which.
    ``devices`` : how many of them train each network together.
    ``compile`` : whether networks are compiled, for training and dynamics; ``auto``: on a GPU.
    """

    HOST_KEYS = _names(
        "run_mode parallel save_dir continue_job load_training_state checkpoint_path write_output "
        "use_amp log_id max_epochs_per_job output_frequency model_save_frequency labels"
    )
    identifier: str | None = None
    seed: int = Field(12345678, ge=0)
    threads: int | None = Field(None, ge=1)
    processes: int = Field(1, ge=1)
    device: str = "auto"
    devices: int = Field(1, ge=1)
    compile: bool | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _a_device_is_used_once(self) -> Task:
        if self.processes > 1 and self.devices > 1:
            raise ValueError(
                f"processes is {self.processes} and devices is {self.devices}: either several networks at a time, a "
                "device each, or one network on several devices; set one of the two to 1"
            )
        return self

    def compiles_on(self, device: str) -> bool:
        """Whether networks on a device are compiled."""
        return device.startswith("cuda") if self.compile == "auto" else self.compile


class Config(Section):
    """A whole configuration; see ``configs/`` for commented examples."""

    trainer: str = "property"
    task: Task = Task()
    model: Model
    optim: Optim = Optim()
    dataset: Dataset
    physpre: Physpre = Physpre()

    @property
    def arms(self) -> list[Arm]:
        """The arms with their settings."""
        return parse_arms(self.physpre.arms, self.physpre.parts)

    def training_settings(self, arm: Arm | None = None) -> TrainingSettings:
        """Settings of the finetuning stage, of an arm where one is given."""
        task = self.task
        where = {"device": task.device, "devices": task.devices, "compile": task.compiles_on(task.device)}
        settings = self.optim.settings(task.seed, **where)
        return settings if arm is None else arm.settings_of(FINETUNE, settings)

    def pretraining_settings(self, arm: Arm | None = None) -> TrainingSettings:
        """Settings of the pretraining stage, of an arm where one is given."""
        arm = arm or Arm("pretrain", (Pretrain(self.physpre.pretrain),))
        return arm.settings_of("pretrain", self.training_settings())

    def perturbation_settings(self) -> PerturbationSettings:
        return PerturbationSettings(**self.physpre.perturbation.model_dump(exclude={"validation"}))

    def dynamics_settings(self) -> DynamicsSettings:
        own = self.physpre.dynamics.model_dump(exclude={"n_structures", "min_atoms"})
        return DynamicsSettings(seed=self.task.seed, **own)
