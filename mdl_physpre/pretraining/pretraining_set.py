"""The pretraining set: structures perturbed, filtered and labelled by a teacher, with an account of every draw.

A draw is rejected where a pair comes closer than ``min_distance`` or a force of the teacher passes ``max_force``, and
is made anew, with weaker strengths after some attempts (:class:`PerturbationSettings`). Everything is a pure function
of structures, settings, teacher and seed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.pretraining.labelling import LabelFailure, compute_labels, labelled_copy
from mdl_physpre.pretraining.perturbation import PerturbedParent, structure_key
from mdl_physpre.pretraining.perturbation_settings import PerturbationSettings
from mdl_physpre.pretraining.set_report import (
    GivenUpDraw,
    RoundReport,
    SetReport,
    format_report,
    label_quantiles,
    smallest_distances,
)
from mdl_physpre.pretraining.teacher import Teacher, resolve_teacher
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.labels import Labels, largest_force, set_labels
from mdl_physpre.utils.progress import progress as show_progress

logger = logging.getLogger(__name__)


@dataclass
class PretrainingSet:
    """Perturbed structures, labelled unless there was no teacher, and the report of how they came about.

    Attributes
    ----------
    structures : parent by parent, round by round; originals, where asked for, last.
    report : what was drawn, rejected and kept.
    """

    structures: list[Atoms]
    report: SetReport


def make_pretraining_set(
    structures: Sequence[Atoms],
    settings: PerturbationSettings,
    teacher: Teacher | None,
    seed: int = 0,
    *,
    epoch: int = 0,
    kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    workers: int | None = None,
    progress: bool = True,
    distances: bool = True,
) -> PretrainingSet:
    """``n_aug`` perturbed copies of each structure, labelled by a teacher.

    Parameters
    ----------
    structures : training (or validation) structures; test structures do not belong here.
    settings : strengths and filters.
    teacher : as in :func:`mdl_physpre.label`. ``None`` leaves the copies unlabelled: only ``min_distance`` filters.
    seed : with the structure's ``structure_id`` (its index where it has none), the round, the epoch and the number of
        the attempt it fixes each draw, whatever else is drawn.
    epoch : epoch of online pretraining; 0 is the set that is made once.
    kwargs, dtype, workers : as in :func:`mdl_physpre.label`.
    progress : show how far it is.
    distances : gather the smallest distances for the report.

    Returns
    -------
    PretrainingSet : structures whose ``info`` says ``parent``, ``round``, ``attempt``, ``pull_strength`` and
        ``perturb_strength`` (Å, after weakening), and the report.

    Raises
    ------
    DataError : no structures, a structure that cannot be perturbed, or not one draw that passes the filters.
    ConfigError : a negative seed, or a teacher that cannot be found.
    """
    structures = list(structures)
    if not structures:
        raise DataError("pretraining set: no structures to perturb")
    if seed < 0 or epoch < 0:
        raise ConfigError(f"pretraining set: seed {seed} and epoch {epoch} must not be negative")
    draws = _Draws(structures, settings, seed, epoch, progress)
    if teacher is not None:
        resolved = resolve_teacher(teacher, kwargs)
        draws.labels = partial(compute_labels, teacher=resolved, dtype=dtype, workers=workers, progress=progress)
    draws.make()
    made = draws.made()
    if not made:
        raise DataError(f"pretraining set: not one draw passes the filters; {draws.reasons()}")
    report = draws.report(made, distances)
    logger.info("%s", format_report(report))
    if draws.given_up:
        names = sorted({entry.parent for entry in draws.given_up})
        told = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
        text = "%d draws of %d structures were given up (%s): %s"
        logger.warning(text, len(draws.given_up), len(names), draws.reasons(), told)
    return PretrainingSet(made + (draws.originals if settings.originals else []), report)


class OnlinePretrainingSet:
    """A pretraining set that is drawn and labelled anew for every epoch, the same for the same seed and epoch.

    Epoch 0 equals the set that :func:`make_pretraining_set` makes once.

    Parameters
    ----------
    structures, settings, teacher, seed : as in :func:`make_pretraining_set`.
    cutoff : of the graphs that training works on, Å.
    dtype : precision of labelling and graphs.
    options : further arguments of :func:`make_pretraining_set`.
    """

    def __init__(
        self,
        structures: Sequence[Atoms],
        settings: PerturbationSettings,
        teacher: Teacher,
        seed: int,
        cutoff: float,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        self.structures, self.settings, self.seed = list(structures), settings, seed
        self.teacher = resolve_teacher(teacher, options.pop("kwargs", None))
        self.cutoff, self.dtype, self.options = cutoff, dtype, options

    def epoch(self, epoch: int) -> PretrainingSet:
        """The set of an epoch, counted from 0."""
        options = {"distances": False, "dtype": self.dtype, **self.options}
        return make_pretraining_set(self.structures, self.settings, self.teacher, self.seed, epoch=epoch, **options)

    def __call__(self, epoch: int) -> GraphDataset:
        """The graphs of an epoch, with labels."""
        return GraphDataset(self.epoch(epoch).structures, self.cutoff, dtype=self.dtype)


Slot = tuple[int, int]  # number of the structure, and round


class _Draws:
    """The draws of a set and what became of them.

    Attributes
    ----------
    labels : of structures by the teacher, or why there are none; None where there is no teacher.
    pending : the attempt that each slot without a structure has next.
    """

    def __init__(
        self, structures: list[Atoms], settings: PerturbationSettings, seed: int, epoch: int, progress: bool
    ) -> None:
        self.structures, self.settings, self.seed, self.epoch = structures, settings, seed, epoch
        self.progress = progress
        self.labels: Callable[[list[Atoms]], list[Labels | LabelFailure]] | None = None
        self.pending: dict[Slot, int] = {(k, r): 0 for k in range(len(structures)) for r in range(settings.n_aug)}
        self.done: dict[Slot, Atoms] = {}
        self.originals: list[Atoms] = []
        self.rejected: Counter[str] = Counter()
        self.given_up: list[GivenUpDraw] = []

    def make(self) -> None:
        """Draw, filter and draw again, until every slot has a structure or is given up."""
        self._label_parents()
        while self.pending:
            drawn = self._draw()
            failed = self._label(drawn)
            for slot, atoms in drawn.items():
                attempt = atoms.info["attempt"]
                if slot not in failed:
                    self.done[slot] = atoms
                    del self.pending[slot]
                    continue
                self.rejected[failed[slot]] += 1
                self.pending[slot] = attempt + 1
                if attempt + 1 == self.settings.max_attempts:
                    self._give_up(slot, failed[slot])

    def made(self) -> list[Atoms]:
        """The structures, parent by parent, round by round."""
        return [self.done[slot] for slot in sorted(self.done)]

    def _label_parents(self) -> None:
        """The unperturbed structures. One beyond the bound as it stands has no draws: none could pass."""
        if self.labels is None:
            return
        for k, (atoms, found) in enumerate(zip(self.structures, self.labels(self.structures))):
            if isinstance(found, LabelFailure):
                reason = f"no label of the unperturbed structure: {found.reason}"
            elif self._too_strong(found):
                reason = "max_force in the unperturbed structure"
            else:
                copy = labelled_copy(atoms, found)
                key = structure_key(atoms, k)
                copy.info["parent"], copy.info["structure_id"] = key, f"{key}-original"
                self.originals.append(copy)
                continue
            for r in range(self.settings.n_aug):
                self._give_up((k, r), reason)

    def _draw(self) -> dict[Slot, Atoms]:
        """The next draw of every pending slot that passes ``min_distance``."""
        rounds: dict[int, list[int]] = {}
        for k, r in self.pending:
            rounds.setdefault(k, []).append(r)
        drawn = {}
        items = rounds.items()
        for k, numbers in show_progress(items, len(rounds), "perturbed structures") if self.progress else items:
            parent = PerturbedParent(self.structures[k], k, self.settings)
            for r in numbers:
                first = self.pending[k, r]
                atoms, attempt = parent.draw(r, first, self.seed, self.epoch)
                if attempt > first:
                    self.rejected["min_distance"] += attempt - first
                if atoms is None:
                    self._give_up((k, r), "min_distance")
                else:
                    drawn[k, r] = atoms
        return drawn

    def _label(self, drawn: dict[Slot, Atoms]) -> dict[Slot, str]:
        """Put labels on the draws; why not, for those that are rejected."""
        failed: dict[Slot, str] = {}
        if self.labels is None:
            return failed
        for (slot, atoms), found in zip(drawn.items(), self.labels(list(drawn.values()))):
            if isinstance(found, LabelFailure):
                logger.debug("no labels for %s: %s", atoms.info["structure_id"], found.reason)
                failed[slot] = "no_label"
            elif self._too_strong(found):
                failed[slot] = "max_force"
            else:
                set_labels(atoms, found.energy, found.forces, found.stress)
        return failed

    def _too_strong(self, labels: Labels) -> bool:
        return self.settings.max_force is not None and largest_force(labels) > self.settings.max_force

    def _give_up(self, slot: Slot, reason: str) -> None:
        del self.pending[slot]
        k, r = slot
        key = structure_key(self.structures[k], k)
        self.given_up.append(GivenUpDraw(parent=key, index=k, round=r, reason=reason))

    def reasons(self) -> str:
        """Why draws were given up, with their numbers."""
        counts = Counter(entry.reason for entry in self.given_up)
        return ", ".join(f"{reason}: {n}" for reason, n in counts.items())

    def report(self, made: list[Atoms], distances: bool) -> SetReport:
        """What was drawn, rejected and kept."""
        settings = self.settings
        by_round: list[list[int]] = [[] for _ in range(settings.n_aug)]
        for atoms in made:
            by_round[atoms.info["round"]].append(settings.weakenings(atoms.info["attempt"]))
        halvings = Counter(w for part in by_round for w in part)
        return SetReport(
            parents=len(self.structures),
            wanted=len(self.structures) * settings.n_aug,
            drawn=len(made) + sum(self.rejected.values()),
            structures=len(made),
            rejected=dict(self.rejected),
            redrawn=sum(atoms.info["attempt"] > 0 for atoms in made),
            weakened=sum(n for w, n in halvings.items() if w),
            by_halvings={str(w): halvings[w] for w in sorted(halvings)},
            given_up=len(self.given_up),
            given_up_draws=tuple(self.given_up),
            rounds=tuple(
                RoundReport(
                    pull=float(pull),
                    perturb=float(perturb),
                    structures=len(part),
                    weakened=sum(w > 0 for w in part),
                    mean_scale=float(np.mean([0.5**w for w in part])) if part else None,
                )
                for part, pull, perturb in zip(by_round, *settings.round_strengths())
            ),
            originals=len(self.originals) if settings.originals else 0,
            seed=self.seed,
            epoch=self.epoch,
            labels={"perturbed": label_quantiles(made), "unperturbed": label_quantiles(self.originals)},
            smallest_distances=smallest_distances(self.structures, made) if distances else None,
        )
