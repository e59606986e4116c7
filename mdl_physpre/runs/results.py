"""What the stages of a run found before there are networks, and what a training took, as types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdl_physpre.analysis.errors import Errors
from mdl_physpre.eam_fit.report import FittedPair
from mdl_physpre.runs.layout import EAM, ERRORS, PRETRAINING_SET, TEACHER
from mdl_physpre.runs.stage import AnyRecord, record_of, stage_result
from mdl_physpre.utils.record import Record


class SetCounts(Record):
    """Structures, atoms, and structures with each label, of a set of structures.

    in_training : structures that are suspected to be among the training structures, too.
    """

    structures: int
    atoms: int
    labels: dict[str, int] = {}
    in_training: int = 0


class FittedEAM(Record):
    """The embedded-atom potential of a run.

    table : a row for each pair of elements. fit_errors : on training and validation set. errors : on each test set.
    short_range_radii : where its repulsion of nuclei ends, Å by pair; empty where it has none.
    """

    table: tuple[FittedPair, ...] = ()
    short_range_radii: dict[str, float] = {}
    fit_errors: dict[str, Errors] = {}
    errors: dict[str, Errors] = {}
    seconds: float = 0.0


class TeacherResult(Record):
    """Another teacher than the embedded-atom potential: its zero of energy, and its errors on each test set.

    zero_of_energy : as :func:`~mdl_physpre.pretraining.fit_teacher_zero` found it.
    short_range_radii : where its repulsion of nuclei ends, Å by pair; empty where none was added.
    """

    name: str
    zero_of_energy: dict[str, Any]
    short_range_radii: dict[str, float] = {}
    errors: dict[str, Errors] = {}
    seconds: float = 0.0


class PretrainingSetResult(Record):
    """Structures made for training and validation, and how many draws were rejected: by set, then by reason."""

    structures: int
    validation: int = 0
    rejected: dict[str, dict[str, int]] = {}
    seconds: float = 0.0


class Untrained(Record):
    """Networks of an arm whose error is not 2 % below that of the null model: no forces, energies of composition.

    label : ``forces`` (eV/Å) or ``energy`` (meV/atom). networks, of : their names, and how many the arm has.
    error, null : mean absolute error on the test set, of these networks and of the null model.
    """

    arm: str
    label: str
    networks: tuple[str, ...]
    of: int
    error: float
    null: float


class Recommendation(Record):
    """The potential that a run recommends, and why.

    file : its copy, from the folder of the run on. arm, network, checkpoint : whose it is.
    validation_loss : of this network, in its best epoch. validation_losses : means over the networks of each arm.
    looked_at : stress tests, or ``dynamics``, by which arms were left out; empty where there were none.
    worse : arms that were left out, each with the reason.
    untrained : whether no network is better than the null model.
    """

    file: str
    arm: str
    network: str
    checkpoint: str
    validation_loss: float
    validation_losses: dict[str, float]
    looked_at: tuple[str, ...] = ()
    worse: dict[str, str] = {}
    untrained: bool = False


class Spent(Record):
    """What a training took. steps : of the optimiser. structures : seen, repeats counted."""

    epochs: int | float
    steps: int | float
    gradients: int | float
    structures: int | float
    seconds: float


class TrainingStage(Spent):
    """One stage of a training: its lowest validation loss, the epoch of that, what ended it, and what it took."""

    best_loss: float | None
    best_epoch: int | float
    stopped_by: str


def spent_with_total(stages: Mapping[str, Spent]) -> dict[str, Spent]:
    """What each stage of a training took, and under ``total`` all of them together."""
    total = {key: sum(getattr(stage, key) for stage in stages.values()) for key in Spent.model_fields}
    return {**stages, "total": Spent(**total)} if stages else {}


def eam_result(folder: Path) -> FittedEAM:
    """What the fit of the embedded-atom potential, which is done, found."""
    return _with_errors(FittedEAM, folder / EAM)


def teacher_result(folder: Path) -> TeacherResult:
    """What is known of another teacher, whose zero of energy is fitted."""
    return _with_errors(TeacherResult, folder / TEACHER)


def pretraining_set_result(folder: Path) -> PretrainingSetResult:
    """What the pretraining set, which is made, holds."""
    return record_of(PretrainingSetResult, stage_result(folder / PRETRAINING_SET), folder / PRETRAINING_SET)


def _with_errors(kind: type[AnyRecord], folder: Path) -> AnyRecord:
    tests = folder / ERRORS
    return record_of(kind, {**stage_result(tests), **stage_result(folder)}, folder, errors=tests)
