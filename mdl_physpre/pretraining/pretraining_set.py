"""The pretraining set: structures perturbed, filtered and labelled by a teacher, with an account of every draw.

A draw is rejected where a pair comes closer than ``min_distance`` or a force of the teacher passes ``max_force``, and
is made anew, with weaker strengths after some attempts (:class:`PerturbationSettings`). Everything is a pure function
of structures, settings, teacher and seed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.pretraining.labelling import LabelFailure, Teacher, compute_labels, resolve_teacher, without_labels
from mdl_physpre.pretraining.perturbation import PerturbationSettings, PerturbedParent, structure_key
from mdl_physpre.pretraining.set_report import format_report, label_quantiles, largest_force, smallest_distances
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.labels import set_labels
from mdl_physpre.utils.progress import progress as show_progress

logger = logging.getLogger(__name__)


@dataclass
class PretrainingSet:
    """Perturbed structures, labelled unless there was no teacher, and the report of how they came about.

    Attributes
    ----------
    structures : parent by parent, round by round; originals, where asked for, last.
    report : plain values, ready for JSON. ``drawn`` = ``structures`` + the sum of ``rejected``, originals aside.
    """

    structures: list[Atoms]
    report: dict[str, Any]


@dataclass
class _Tally:
    """What happened to the draws."""

    rejected: Counter[str] = field(default_factory=Counter)
    redrawn: int = 0
    halvings: Counter[int] = field(default_factory=Counter)
    given_up: list[dict[str, Any]] = field(default_factory=list)


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
    if teacher is not None:
        teacher = resolve_teacher(teacher, kwargs)
    tally = _Tally()
    pending = {(k, r): 0 for k in range(len(structures)) for r in range(settings.n_aug)}
    done: dict[tuple[int, int], Atoms] = {}
    originals: list[Atoms] = []
    if teacher is not None:
        originals = _label_parents(structures, settings, teacher, dtype, workers, progress, pending, tally)
    while pending:
        drawn = _draw(structures, settings, seed, epoch, pending, tally, progress)
        if teacher is None:
            failed: dict[tuple[int, int], str] = {}
        else:
            failed = _label_draws(drawn, settings, teacher, dtype, workers, progress)
        for slot, atoms in drawn.items():
            attempt = atoms.info["attempt"]
            if slot not in failed:
                done[slot] = atoms
                del pending[slot]
                tally.redrawn += attempt > 0
                tally.halvings[settings.weakenings(attempt)] += 1
                continue
            tally.rejected[failed[slot]] += 1
            if attempt + 1 < settings.max_attempts:
                pending[slot] = attempt + 1
            else:
                del pending[slot]
                _give_up(structures, slot, failed[slot], tally)
    if not done:
        raise DataError(f"pretraining set: not one draw passes the filters; {_reasons(tally)}")
    made = [done[slot] for slot in sorted(done)]
    report = _report(structures, made, originals, settings, seed, epoch, tally, distances)
    logger.info("%s", format_report(report))
    if tally.given_up:
        names = sorted({str(entry["parent"]) for entry in tally.given_up})
        logger.warning(
            "%d draws of %d structures were given up (%s): %s%s",
            len(tally.given_up),
            len(names),
            _reasons(tally),
            ", ".join(names[:10]),
            " ..." if len(names) > 10 else "",
        )
    return PretrainingSet(made + (originals if settings.originals else []), report)


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


def _draw(
    structures: list[Atoms],
    settings: PerturbationSettings,
    seed: int,
    epoch: int,
    pending: dict[tuple[int, int], int],
    tally: _Tally,
    progress: bool,
) -> dict[tuple[int, int], Atoms]:
    """The next draw of every pending slot (structure, round) that passes ``min_distance``."""
    rounds: dict[int, list[int]] = {}
    for k, r in pending:
        rounds.setdefault(k, []).append(r)
    drawn = {}
    parents = show_progress(rounds.items(), len(rounds), "perturbed structures") if progress else rounds.items()
    for k, numbers in parents:
        parent = PerturbedParent(structures[k], k, settings)
        for r in numbers:
            atoms, attempt = parent.draw(r, pending[k, r], seed, epoch)
            if attempt > pending[k, r]:
                tally.rejected["min_distance"] += attempt - pending[k, r]
            if atoms is None:
                _give_up(structures, (k, r), "min_distance", tally)
                del pending[k, r]
            else:
                drawn[k, r] = atoms
    return drawn


def _label_draws(
    drawn: dict[tuple[int, int], Atoms],
    settings: PerturbationSettings,
    teacher: Teacher,
    dtype: torch.dtype,
    workers: int | None,
    progress: bool,
) -> dict[tuple[int, int], str]:
    """Put labels on the draws; why not, for those that are rejected."""
    slots = list(drawn)
    found = compute_labels([drawn[s] for s in slots], teacher, dtype=dtype, workers=workers, progress=progress)
    failed = {}
    for slot, result in zip(slots, found):
        if isinstance(result, LabelFailure):
            logger.debug("no labels for %s: %s", drawn[slot].info["structure_id"], result.reason)
            failed[slot] = "no_label"
        elif settings.max_force is not None and largest_force(result) > settings.max_force:
            failed[slot] = "max_force"
        else:
            set_labels(drawn[slot], result.energy, result.forces, result.stress)
    return failed


def _label_parents(
    structures: list[Atoms],
    settings: PerturbationSettings,
    teacher: Teacher,
    dtype: torch.dtype,
    workers: int | None,
    progress: bool,
    pending: dict[tuple[int, int], int],
    tally: _Tally,
) -> list[Atoms]:
    """The unperturbed structures with labels. One beyond the bound as it stands has no draws: none could pass."""
    found = compute_labels(structures, teacher, dtype=dtype, workers=workers, progress=progress)
    labelled = []
    for k, (atoms, result) in enumerate(zip(structures, found)):
        if isinstance(result, LabelFailure):
            reason = f"no label of the unperturbed structure: {result.reason}"
        elif settings.max_force is not None and largest_force(result) > settings.max_force:
            reason = "max_force in the unperturbed structure"
        else:
            copy = set_labels(without_labels(atoms), result.energy, result.forces, result.stress)
            key = structure_key(atoms, k)
            copy.info["parent"], copy.info["structure_id"] = key, f"{key}-original"
            labelled.append(copy)
            continue
        for r in range(settings.n_aug):
            del pending[k, r]
            _give_up(structures, (k, r), reason, tally)
    return labelled


def _give_up(structures: list[Atoms], slot: tuple[int, int], reason: str, tally: _Tally) -> None:
    k, r = slot
    tally.given_up.append({"parent": structure_key(structures[k], k), "index": k, "round": r, "reason": reason})


def _reasons(tally: _Tally) -> str:
    counts = Counter(entry["reason"] for entry in tally.given_up)
    return ", ".join(f"{reason}: {n}" for reason, n in counts.items())


def _report(
    structures: list[Atoms],
    made: list[Atoms],
    originals: list[Atoms],
    settings: PerturbationSettings,
    seed: int,
    epoch: int,
    tally: _Tally,
    distances: bool,
) -> dict[str, Any]:
    by_round: list[list[int]] = [[] for _ in range(settings.n_aug)]
    for atoms in made:
        by_round[atoms.info["round"]].append(settings.weakenings(atoms.info["attempt"]))
    pull, perturb = settings.round_strengths()
    report: dict[str, Any] = {
        "parents": len(structures),
        "wanted": len(structures) * settings.n_aug,
        "drawn": len(made) + sum(tally.rejected.values()),
        "structures": len(made),
        "rejected": dict(tally.rejected),
        "redrawn": tally.redrawn,
        "weakened": sum(n for w, n in tally.halvings.items() if w),
        "by_halvings": {str(w): tally.halvings[w] for w in sorted(tally.halvings)},
        "given_up": len(tally.given_up),
        "given_up_draws": tally.given_up,
        "rounds": [
            {
                "pull": float(pull[r]),
                "perturb": float(perturb[r]),
                "structures": len(halvings),
                "weakened": sum(w > 0 for w in halvings),
                "mean_scale": float(np.mean([0.5**w for w in halvings])) if halvings else None,
            }
            for r, halvings in enumerate(by_round)
        ],
        "originals": len(originals) if settings.originals else 0,
        "seed": seed,
        "epoch": epoch,
        "labels": {"perturbed": label_quantiles(made), "unperturbed": label_quantiles(originals)},
    }
    if distances:
        report["smallest_distances"] = smallest_distances(structures, made)
    return report
