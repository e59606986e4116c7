"""What a run in MatDeepLearn consists of: folder, data, energies of the elements, stages."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.hosts.matdeeplearn import checks
from mdl_physpre.hosts.matdeeplearn.data import energy_reference, host_dataset, host_items, usable
from mdl_physpre.hosts.matdeeplearn.job import RUN_FILE, decisive, read_run, reference_of, run_folder
from mdl_physpre.hosts.matdeeplearn.perturb import reference_table
from mdl_physpre.hosts.matdeeplearn.report import report_config
from mdl_physpre.hosts.matdeeplearn.settings import complete, engine_config, stage_optim
from mdl_physpre.potentials.energy_reference import fit_energy_reference
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.pretraining.labelling import label
from mdl_physpre.runs.layout import PRETRAINING_SET
from mdl_physpre.runs.stage import write_json
from mdl_physpre.structures.labels import get_labels, set_labels
from mdl_physpre.structures.read import read_structures
from mdl_physpre.training.arms import Arm
from mdl_physpre.training.parts import SAM
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData, load_data
from mdl_physpre.workflow.setup import device_of
from mdl_physpre.workflow.stages.eam import eam_stage
from mdl_physpre.workflow.stages.pretraining_set import pretraining_set_stage
from mdl_physpre.workflow.stages.teacher import load_teacher, teacher_stage

logger = logging.getLogger(__name__)

LABELS = {"ForceLoss": ("energy", "forces"), "ForceStressLoss": ("energy", "forces", "stress"),
          "TorchLossWrapper": ("energy",)}  # fmt: skip
"""What MatDeepLearn's losses need of every structure."""


@dataclass
class Stage:
    """One training with MatDeepLearn's trainer.

    name : ``ARM/pretrain`` or ``ARM/finetune``; ``finetune`` alone in that run mode.
    optim : MatDeepLearn's section.
    sam : settings of sharpness-aware minimisation, or None.
    """

    plan: Plan
    name: str
    optim: dict[str, Any]
    sam: SAM.Settings | None
    pretraining: bool
    refit_reference: bool

    @property
    def folder(self) -> Path:
        return self.plan.folder / self.name

    @property
    def done(self) -> bool:
        return (self.folder / "done.json").is_file()

    def finish(self, result: dict[str, Any]) -> None:
        """Say that it is done, last of all."""
        write_json(self.folder / "done.json", result)

    def datasets(self) -> list[dict[str, Any]]:
        """MatDeepLearn's section ``dataset`` of this stage, or one for each part where they differ."""
        return self.plan.pretraining_data(self) if self.pretraining else [self.plan.config["dataset"]]

    def config(self, reference: Mapping[str, float]) -> dict[str, Any]:
        """MatDeepLearn's YAML with which the stage's best checkpoint is opened."""
        files = [self.folder / f"checkpoint_{k}" / "best_checkpoint.pt" for k in range(self.plan.ensemble)]
        found = copy.deepcopy({**self.plan.config, "dataset": self.plan.dataset, "optim": self.optim})
        found["task"]["checkpoint_path"] = ",".join(str(file) for file in files)
        found["physpre"] = {**(found.get("physpre") or {}), "energy_reference": dict(reference)}
        known = TrainingEnergies.of([*self.plan.structures["train"].values()])
        if known is not None and not self.pretraining:
            found["physpre"]["training_energies"] = known.plain()
        return found


@dataclass
class Plan:
    """A run in MatDeepLearn.

    config : its configuration, complete, with the data as MatDeepLearn reads them.
    dataset : the section ``dataset`` as the user wrote it, complete.
    engine : what this package reads of it.
    reference : energies of the elements, eV by symbol, that labels in MatDeepLearn are less of.
    reported : the configuration of the report at the end; None: there is none.
    """

    config: dict[str, Any]
    dataset: dict[str, Any]
    engine: Config
    mode: str
    folder: Path
    save_dir: Path
    reference: dict[str, float]
    data: RunData | None = None
    reported: Config | None = None
    structures: dict[str, dict[str, Atoms]] = field(default_factory=dict)

    @property
    def identifier(self) -> str:
        return self.folder.name

    @property
    def ensemble(self) -> int:
        return int(self.config["model"]["model_ensemble"])

    def stages(self) -> list[list[Stage]]:
        """The stages of each arm. Arms with the same pretraining share it: the first one does it."""
        if self.mode == "finetune":
            return [[self._stage("finetune", None, False)]]
        found: list[list[Stage]] = []
        shared: dict[bool, Stage] = {}
        for arm in self.engine.arms:
            own = []
            if arm.has("pretrain"):
                sharp = arm.has("sam") and self.engine.physpre.sam.pretraining
                shared.setdefault(sharp, self._stage(f"{arm.name}/pretrain", arm if sharp else None, True))
                own.append(shared[sharp])
            found.append([*own, self._stage(f"{arm.name}/finetune", arm, False)])
        return found

    def _stage(self, name: str, arm: Arm | None, pretraining: bool) -> Stage:
        engine = self.engine
        settings = engine.pretraining_settings() if pretraining else engine.training_settings()
        optim = stage_optim(self.config["optim"], settings, pretraining)
        sam = engine.physpre.sam if arm is not None and arm.has("sam") else None
        return Stage(self, name, optim, sam, pretraining, settings.refit_reference and not pretraining)

    def pretraining_data(self, stage: Stage) -> list[dict[str, Any]]:
        """The perturbed structures with the teacher's labels; made, and the teacher fitted, where that is not done."""
        assert self.data is not None
        (eam_stage if self.engine.physpre.teacher is None else teacher_stage)(self.folder, self.engine, self.data)
        pretraining_set_stage(self.folder, self.engine, self.data)
        wanted = labels_of(stage.optim["loss"])
        made = self.folder / PRETRAINING_SET
        parts = {name: read_structures(made / f"{name}.extxyz", check=False) for name in ("train", "val")}
        if not self.engine.physpre.pretrain.online:
            return [self._write("data-pretraining", parts, wanted)]
        perturbation = self.engine.physpre.perturbation
        teacher = load_teacher(self.folder, self.engine, device_of(self.engine))
        parents = label(self.data.train, teacher, progress=False)
        copies = [copy.deepcopy(atoms) for atoms in parents for _ in range(perturbation.n_aug)]
        for index, atoms in enumerate(copies):
            atoms.info["structure_id"] = f"{index}"
        arguments = {
            **self.engine.physpre.perturbation.model_dump(exclude={"validation", "originals"}),
            "teacher": teacher,
            "energy_reference": self.reference,
            "seed": self.engine.task.seed,
        }
        train = self._write("data-pretraining", {"train": copies}, wanted)
        fresh = {"name": "mdl_physpre.hosts.matdeeplearn.Perturb", "otf_transform": True, "args": arguments}
        train["transforms"] = [fresh, *train["transforms"]]  # edges are those of where atoms are then
        return [train, self._write("data-pretraining", {"val": parts["val"]}, wanted)]

    def _write(self, folder: str, parts: Mapping[str, Sequence[Atoms]], wanted: Sequence[str]) -> dict[str, Any]:
        table = reference_table(self.reference)
        items = {name: host_items(usable(part, wanted), table, wanted) for name, part in parts.items()}
        return host_dataset(self.folder / folder, items, self.dataset, wanted)

    def write_data(self, parts: Mapping[str, Sequence[Atoms]], wanted: Sequence[str]) -> None:
        """Hand the DFT data to MatDeepLearn. Raises DataError where a part has no structure that it can use."""
        kept = {name: usable(part, wanted) for name, part in parts.items()}
        for name, part in kept.items():
            if not part:
                raise DataError(f"the {name} set holds no structure that MatDeepLearn can use; see the warnings above")
        items = {name: host_items(part, reference_table(self.reference), wanted) for name, part in kept.items()}
        self.structures = {
            name: {item["structure_id"]: atoms for item, atoms in zip(items[name], part)} for name, part in kept.items()
        }
        self.config["dataset"] = host_dataset(self.folder / "data", items, self.dataset, wanted)

    def shifted_reference(self, train: Mapping[str, float], val: Mapping[str, float]) -> dict[str, float]:
        """Energies of the elements after training: shifted by what composition explains of the training errors.

        Kept only where that lowers the mean absolute error per atom of the validation set.

        Parameters
        ----------
        train, val : labelled less predicted energy by structure, eV.
        """
        left = [set_labels(self.structures["train"][name].copy(), energy=e) for name, e in train.items()]
        shift = fit_energy_reference(left).energies.numpy()
        errors = [(e, self.structures["val"][name]) for name, e in val.items()]
        before = np.mean([abs(e) / len(atoms) for e, atoms in errors])
        after = np.mean([abs(e - shift[atoms.numbers].sum()) / len(atoms) for e, atoms in errors])
        if not after < before:
            return self.reference
        logger.info("energy reference fitted again: validation error %.4g → %.4g meV/atom", 1e3 * before, 1e3 * after)
        table = reference_table(self.reference) + shift
        return {chemical_symbols[z]: float(table[z]) for z in np.flatnonzero(table)}


def labels_of(loss: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels that a loss of MatDeepLearn needs of every structure."""
    if loss["loss_type"] == "PhyspreLoss":
        weights = {"energy": "weight_energy", "forces": "weight_force", "stress": "weight_stress"}
        return tuple(name for name, key in weights.items() if loss["loss_args"].get(key, 1))
    return LABELS.get(loss["loss_type"], ("energy",))


def prepare(config: dict[str, Any]) -> Plan:
    """Complete MatDeepLearn's configuration in place, check it and the data, and write the data for MatDeepLearn.

    Raises
    ------
    ConfigError, DataError, CheckpointError : each with what to do.
    """
    engine = engine_config(config)
    mode = str((config.get("task") or {}).get("run_mode") or "train")
    if mode not in ("train", "finetune", "predict"):
        raise ConfigError(f"task.run_mode is {mode!r}; expected train, finetune or predict")
    source = engine.dataset.src
    data = None if mode == "predict" else load_data(engine)
    if data is not None:
        parts: dict[str, list[Atoms]] = {"train": data.train, "val": data.val, "test": data.test}
    elif not isinstance(source, dict):
        dataset = engine.dataset
        parts = {"predict": read_structures(source, keys=dataset.keys, units=dataset.units, **dataset.options)}
    else:
        raise ConfigError("dataset.src: give one path of what is to be predicted")
    structures = [atoms for part in parts.values() for atoms in part]
    cutoff = engine.model.cutoff
    report = (config.get("physpre") or {}).get("report") is True
    said = complete(config, engine, checks.images_needed(structures, cutoff))
    reported = None
    if report and mode == "train" and data is not None:
        reported = report_config(engine, data, config["model"]["model_ensemble"])
    wanted = labels_of(config["optim"]["loss"])
    if mode == "predict":
        wanted = tuple(n for n in wanted if all(getattr(get_labels(a), n) is not None for a in structures))
        config["task"]["labels"] = wanted == labels_of(config["optim"]["loss"])
    said += [
        *checks.about_structures(structures, wanted),
        *checks.about_neighbours(structures, cutoff, config["dataset"]["preprocess_params"]),
        *checks.about_source(source),
        *checks.about_model(config["model"]),
    ]
    if mode == "train":
        stages = {"finetune": engine.training_settings(), "pretrain": engine.pretraining_settings()}
        said += checks.about_training(stages, config["task"]["use_amp"], any(arm.has("sam") for arm in engine.arms))
        if engine.physpre.n_networks > 1:
            said.append("physpre.n_networks has no effect in MatDeepLearn: each arm is trained once; change task.seed")
    for sentence in said:
        logger.warning("MatDeepLearn: %s", sentence)
    plan = _begin(config, engine, mode, structures if data is None else data.train)
    plan.data, plan.reported = data, reported
    plan.write_data(parts, wanted)
    return plan


def _begin(config: dict[str, Any], engine: Config, mode: str, structures: Sequence[Atoms]) -> Plan:
    """Folder and energies of the elements: new ones, or those of the job or checkpoint that is gone on from."""
    task = config["task"]
    dataset = {**config["dataset"], "src": copy.deepcopy(config["dataset"]["src"])}
    key = decisive(config)
    if mode == "train" and task["continue_job"]:
        folder = run_folder(task["checkpoint_path"])
        started = read_run(folder)
        changed = [k for k in key if key[k] != started["keys"].get(k)]
        if changed:
            raise ConfigError(
                f"{folder}: was started with another {', '.join(changed)}; continue it with the same, or start anew "
                "without task.continue_job"
            )
        return Plan(config, dataset, engine, mode, folder, folder.parents[1], started["reference"])
    if mode == "train":
        given = (config.get("physpre") or {}).get("energy_reference")
        reference = energy_reference(structures) if given is None else dict(given)
    else:
        reference = reference_of(task["checkpoint_path"])
    save_dir = Path(task["save_dir"] or Path.cwd()).absolute()
    name = datetime.now().strftime("%Y-%m-%d-%H-%M-%S-%f")[:-3]
    folder = save_dir / "results" / "-".join(filter(None, [name, task.get("identifier")]))
    plan = Plan(config, dataset, engine, mode, folder, save_dir, reference)
    write_json(folder / RUN_FILE, {"keys": key, "reference": reference})
    return plan
