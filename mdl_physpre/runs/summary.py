"""What a run found, as types: ``summary.json`` is a :class:`Summary`, written and read here."""

from __future__ import annotations

from typing import Any

from mdl_physpre.analysis.errors import Errors
from mdl_physpre.analysis.force_alignment import ForceAlignment
from mdl_physpre.dynamics.verdicts.verdict import Counts
from mdl_physpre.utils.record import Record


class SetCounts(Record):
    """Structures, atoms, and structures with each label, of a set of structures."""

    structures: int
    atoms: int
    labels: dict[str, int]


class FittedEAM(Record):
    """The embedded-atom potential of a run.

    table : a row for each pair of elements. fit_errors : on training and validation set. errors : on each test set.
    """

    table: tuple[dict[str, Any], ...] = ()
    fit_errors: dict[str, Errors] = {}
    errors: dict[str, Errors] = {}
    seconds: float


class TeacherResult(Record):
    """Another teacher than the embedded-atom potential: its zero of energy, and its errors on each test set."""

    name: str
    zero_of_energy: dict[str, Any]
    errors: dict[str, Errors] = {}
    seconds: float


class PretrainingSet(Record):
    """Structures made for training and validation, and how many draws were rejected: by set, then by reason."""

    structures: int
    validation: int
    rejected: dict[str, dict[str, int]]
    seconds: float


class TrainingStage(Record):
    """One stage of a training: its lowest validation loss, the epoch of that, what ended it, and what it spent."""

    best_loss: float | None
    best_epoch: int
    stopped_by: str
    epochs: int
    steps: int
    gradients: int
    structures: int
    seconds: float


class Dynamics(Record):
    """Molecular dynamics of test structures with one network, or with all of an arm.

    failing_steps : first failing step (``None``: none) and steps run, of each structure.
    settings : as :class:`~mdl_physpre.dynamics.DynamicsSettings` has them.
    """

    counts: Counts
    settings: dict[str, Any]
    seconds: float


class NetworkResult(Record):
    """What became of one network.

    checkpoint : its file, from the folder of the run on.
    errors, errors_before_finetuning, force_angles : by test set; the second where it was pretrained.
    training : by stage, ``pretrain`` and ``finetune``.
    """

    name: str
    seed: int
    checkpoint: str
    errors: dict[str, Errors]
    errors_before_finetuning: dict[str, Errors] = {}
    force_angles: dict[str, ForceAlignment] = {}
    training: dict[str, TrainingStage]
    dynamics: Dynamics | None = None


class ArmResult(Record):
    """What the networks of an arm say. Means and counts over them are computed here and nowhere else.

    dynamics : of all its networks together; the counts have the spread between networks in their intervals.
    """

    networks: tuple[NetworkResult, ...] = ()
    dynamics: Dynamics | None = None


class Summary(Record):
    """What a run found. A part that is not there yet is ``None``, or empty.

    data : by set. arms : by the name of an arm. pairs : the first arm with each of the others.
    """

    data: dict[str, SetCounts] = {}
    eam: FittedEAM | None = None
    teacher: TeacherResult | None = None
    pretraining_set: PretrainingSet | None = None
    arms: dict[str, ArmResult] = {}
    pairs: tuple[dict[str, Any], ...] = ()
