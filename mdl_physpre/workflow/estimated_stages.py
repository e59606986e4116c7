"""What a few trial steps say of each stage of a run that is not done."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ase import Atoms

from mdl_physpre.eam_fit.angular import AngularEAMSettings, fit_angular_eam
from mdl_physpre.errors import FitError
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential
from mdl_physpre.potentials.base import Backbone, Potential
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.runs import layout
from mdl_physpre.runs.layout import Network, Plan
from mdl_physpre.runs.stage import stage_key
from mdl_physpre.stress_tests.run import folder_of
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.arms import FINETUNE, Arm, Material, Part
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.two_stage import initial_potential, trainings_of
from mdl_physpre.utils.record import Record
from mdl_physpre.workflow import trials
from mdl_physpre.workflow.by_data import steps_of_epoch
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.setup import device_of, network_of
from mdl_physpre.workflow.stages.eam import hybrid_file
from mdl_physpre.workflow.stages.hot_frames import FAR, STARTS
from mdl_physpre.workflow.stages.network import dynamics_structures, pretraining_key
from mdl_physpre.workflow.stages.stress import stress_structures
from mdl_physpre.workflow.stages.teacher import named_teacher
from mdl_physpre.workflow.stages.training import stage_of
from mdl_physpre.workflow.trials import Cost

FEW = 16  # structures that are tried, where a batch is filled up to a number of atoms


class StageEstimate(Record):
    """What is known of a stage beforehand.

    stage : its folder, with the name of the arm for that of each of its networks.
    work : steps or structures, in words.
    networks : for how many networks it is done; 1 for what they share.
    seconds : for each of them, if nothing stops early; ``None``: not known.
    memory : bytes at the peak beyond what the program has before; ``None``: not known.
    """

    stage: str
    work: str
    networks: int = 1
    seconds: float | None = None
    memory: float | None = None


class StageEstimates:
    """The stages of a run that are not done, with what trial steps say of them."""

    def __init__(self, folder: Path, config: Config, data: RunData, plan: Plan) -> None:
        self.folder, self.config, self.data, self.plan = folder, config, data, plan
        self.device = device_of(config)
        self.settings = config.training_settings()
        self._costs: dict[Any, Cost | None] = {}
        self._before: set[Any] = set()  # trainings before finetuning, which arms share

    def all(self) -> list[StageEstimate]:
        """In the order in which they are done."""
        found = self._shared() + [row for arm in self.plan.arms for row in self._of_arm(arm)]
        if self.plan.oracle_trajectory and not stage_key(self.folder / layout.ORACLE_RUN):
            found.append(StageEstimate(stage=layout.ORACLE_RUN, work="dynamics by the oracle"))
        return found

    # --- what networks share ------------------------------------------------------------------------------------------

    def _shared(self) -> list[StageEstimate]:
        data, physpre, found = self.data, self.config.physpre, []
        n = len(data.train) + len(data.val)
        if self.plan.eam and not self._done(layout.EAM) and not physpre.eam.checkpoint:
            cost = None if self._fit is None else self._fit[0]
            found.append(_row(layout.EAM, f"fit, at most {physpre.eam.epochs} passes", cost, 1))
        if self.plan.teacher and not self._done(layout.TEACHER):
            if physpre.teacher is not None and physpre.teacher.fit:
                cost = None if self._fitted_teacher is None else self._fitted_teacher[0]
                found.append(_row(layout.TEACHER, f"fit to {len(data.train)} structures", cost, len(data.train)))
            else:
                found.append(StageEstimate(stage=layout.TEACHER, work=f"labels of {n} structures"))
        if self.plan.pretraining_set and not self._done(layout.PRETRAINING_SET):
            each = physpre.perturbation.n_aug + physpre.hot_frames.n
            made = len(data.train) * each + len(data.val) * (each if physpre.perturbation.validation else 1)
            cost = None if physpre.hot_frames.n else self._perturbing  # dynamics of the teacher are not tried
            found.append(_row(layout.PRETRAINING_SET, f"labels of {made:,} structures", cost, made))
        return found

    def _done(self, name: str) -> bool:
        return bool(stage_key(self.folder / name))

    @cached_property
    def _fit(self) -> tuple[Cost, EAMInteraction] | None:
        """A trial fit of the embedded-atom potential; ``None`` where even a few structures cannot be fitted."""
        data, settings = self.data, self.config.physpre.eam
        return _unless_it_fails(lambda: trials.fit_cost(data.train, data.val, settings, data.elements))

    @cached_property
    def _fitted_teacher(self) -> tuple[Cost, Potential] | None:
        """A trial fit of the teacher that the run fits, its cost for each structure."""
        section = self.config.physpre.teacher
        assert section is not None
        settings, train = AngularEAMSettings(**section.arguments), self.data.train
        runs = min(STARTS, len(train)) if settings.weight_far else 0
        return _unless_it_fails(
            lambda: trials.teacher_cost(train, lambda few: fit_angular_eam(few, settings), runs, FAR)
        )

    def _eam(self) -> Any:
        """The potential that the run fits, or what stands for it in trials: one fitted to a few structures."""
        section, file = self.config.physpre.teacher, self.folder / hybrid_file(self.config)
        if section is not None and section.fit:
            if file.is_file():
                return open_potential(file)
            if self._fitted_teacher is None:
                raise FitError("a few structures give no teacher")
            return self._fitted_teacher[1]
        checkpoint = self.config.physpre.eam.checkpoint
        if file.is_file() or checkpoint:
            return open_potential(checkpoint or file)
        if self._fit is None:
            raise FitError("a few structures give no embedded-atom potential")
        return self._fit[1]

    @cached_property
    def _perturbing(self) -> Cost | None:
        """Of a structure of the pretraining set; ``None`` for calculators, which may be slow, or write files."""

        def measured() -> Cost | None:
            section = self.config.physpre.teacher
            if section is None or section.fit:
                teacher = self._eam()
            else:
                teacher = named_teacher(section, self.device, self.data.train)
            if isinstance(getattr(teacher, "base", None), CalculatorPotential):
                return None
            return trials.perturbing_cost(self.data.train, self.config.physpre.perturbation, teacher)

        return _unless_it_fails(measured)

    # --- networks -----------------------------------------------------------------------------------------------------

    def _of_arm(self, arm: Arm) -> list[StageEstimate]:
        networks = self.plan.of_arm(arm.name)
        new = [network for network in networks if not self._trained(network)]
        steps = {stage: arm.settings_of(stage, self.settings) for stage in (*arm.stages, FINETUNE)}
        needed = [stage for stage in steps if stage == FINETUNE or not self._shares(arm, stage, steps[stage])]
        costs = self._training_costs(arm) if new else {}
        found = [self._training(arm, stage, steps[stage], costs.get(stage), len(new)) for stage in needed if new]
        tests = sum(map(len, self.data.test_sets.values()))
        if new:
            cost = costs.get(FINETUNE)
            judged = cost and Cost(cost.validation)
            found.append(_row(_place(arm, layout.ERRORS), f"{tests} test structures", judged, tests, len(new)))
        return found + self._after(arm, new, networks)

    def _after(self, arm: Arm, new: Sequence[Network], networks: Sequence[Network]) -> list[StageEstimate]:
        """Dynamics, oracle and stress tests of an arm whose networks ``new`` are not trained."""

        def left(folder: str) -> int:
            return sum(network in new or not stage_key(network.folder(self.folder) / folder) for network in networks)

        found, physpre = [], self.config.physpre
        moved = left(layout.DYNAMICS) if self.plan.dynamics else 0
        if moved:
            structures = dynamics_structures(self.config, self.data)
            settings = self.config.dynamics_settings()
            cost, atoms = self._dynamics(arm, structures), sum(map(len, structures))
            work = f"{settings.steps:,} steps of {len(structures)} structures"
            found.append(_row(_place(arm, layout.DYNAMICS), work, cost, atoms * settings.steps, moved))
            if self.plan.oracle:
                work = f"{physpre.dynamics.oracle_frames} frames of each"
                found.append(StageEstimate(stage=_place(arm, layout.ORACLE), work=work, networks=moved))
        for test in self.plan.stress:
            if n := left(f"{layout.STRESS}/{folder_of(test)}"):
                work = f"{test}, {len(stress_structures(self.config, self.data))} structures"
                found.append(StageEstimate(stage=_place(arm, layout.STRESS), work=work, networks=n))
        return found

    def _trained(self, network: Network) -> bool:
        if not stage_key(network.folder(self.folder)):
            return False
        if network.arm.uses_eam and not (self.folder / hybrid_file(self.config)).is_file():
            return False
        device = device_of(self.config, self.plan.networks.index(network))
        key = pretraining_key(self.folder, network)
        return stage_of(self.folder, self.config, self.data, network, key, device).done

    def _shares(self, arm: Arm, stage: str, settings: TrainingSettings) -> bool:
        """Whether an earlier arm does a training before finetuning for this one, too."""
        parts = tuple(part.name for part in arm.parts if part.acts_before_finetuning)
        known, key = len(self._before), (stage, settings.model_dump_json(), parts)
        self._before.add(key)
        return len(self._before) == known

    def _training(
        self, arm: Arm, stage: str, settings: TrainingSettings, cost: Cost | None, networks: int
    ) -> StageEstimate:
        train, val = self._sets(stage)
        per_epoch = steps_of_epoch(train, settings)
        steps = settings.max_steps or settings.max_epochs * per_epoch
        passes = math.ceil(steps / per_epoch)
        batch = f"{settings.batch_atoms} atoms" if settings.batch_atoms else f"{settings.batch_size} structures"
        work = f"{steps:,} steps, {passes:,} epochs of {len(train):,} structures, batches of {batch}"
        found = _row(_place(arm, stage), work, cost, steps, networks)
        if cost is None or found.seconds is None:
            return found
        seconds = found.seconds + passes * len(val) * cost.validation
        if stage != FINETUNE and self.config.physpre.pretrain.online and self._perturbing is not None:
            seconds += passes * len(train) * self._perturbing.seconds
        return found.model_copy(update={"seconds": min(seconds, settings.max_seconds or math.inf)})

    def _sets(self, stage: str) -> tuple[list[Atoms], list[Atoms]]:
        """As many structures as a training has, of the sizes that they have; perturbed ones are as large."""
        settings = self.config.physpre.perturbation
        if stage == FINETUNE:
            return self.data.train, self.data.val
        times = settings.n_aug + settings.originals + self.config.physpre.hot_frames.n
        return self.data.train * times, self.data.val * (times if settings.validation else 1)

    # --- trials of networks -------------------------------------------------------------------------------------------

    def _potential(self, arm: Arm) -> tuple[Backbone, Material]:
        """A network of the arm with random weights, and as many structures of each kind as a batch has."""
        data, own, before = self.data, self.settings, self.config.pretraining_settings()
        sizes = [FEW if s.batch_atoms else s.batch_size for s in (own, before)]
        train, val = (trials.of_all_sizes(part, min(len(part), sizes[0])) for part in (data.train, data.val))
        made = [trials.with_all_labels(trials.of_all_sizes(part, sizes[1])) for part in (data.train, data.val)]
        material = Material(
            train,
            val,
            self._eam,
            lambda: (made[0], made[1]),
            lambda cutoff: lambda _: GraphDataset([], cutoff),
            data.isolated,
        )
        build = partial(network_of, self.config, data)
        trained_before = self.config.model.start_from is not None
        return initial_potential(build, arm, material, self.config.task.seed, trained_before), material

    def _training_costs(self, arm: Arm) -> dict[str, Cost | None]:
        """Of each training of an arm by name; those that are alike in several arms are tried once."""
        changed = tuple(part.name for part in arm.parts if type(part).build is not Part.build)

        def measured() -> dict[str, Cost | None]:
            potential, material = self._potential(arm)
            found = {}
            for one in trainings_of(arm, potential, material, self.settings):
                for part in arm.parts:
                    part.prepare(one.name, potential)
                key = (changed, one.settings.model_dump_json(), one.replay is not None)
                if key not in self._costs:
                    self._costs[key] = trials.training_cost(potential, one, self.device)
                found[one.name] = self._costs[key]
            return found

        return _unless_it_fails(measured) or {}

    def _dynamics(self, arm: Arm, structures: Sequence[Atoms]) -> Cost | None:
        key = ("dynamics", *(part.name for part in arm.parts if type(part).build is not Part.build))
        if key not in self._costs:
            settings = self.config.dynamics_settings()
            self._costs[key] = _unless_it_fails(
                lambda: trials.dynamics_cost(self._potential(arm)[0], structures, settings, self.device)
            )
        return self._costs[key]


def _unless_it_fails(measure: Callable[[], Any]) -> Any:
    """What is measured; ``None`` where a trial fails: the run itself then says what is wrong, or goes on."""
    try:
        return measure()
    except Exception:
        return None


def _row(stage: str, work: str, cost: Cost | None, times: float, networks: int = 1) -> StageEstimate:
    if cost is None:
        return StageEstimate(stage=stage, work=work, networks=networks)
    memory = None if math.isnan(cost.memory) else cost.memory
    return StageEstimate(stage=stage, work=work, networks=networks, seconds=cost.seconds * times, memory=memory)


def _place(arm: Arm, stage: str) -> str:
    return f"{layout.NETWORKS}/{arm.name}/{stage}"
