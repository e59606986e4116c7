"""Replay: structures of the pretraining set in the batches of finetuning, so that what they taught is not forgotten.

L = L_DFT(B structures with DFT labels) + w · L_teacher(R structures of the pretraining set),    R/(B + R) ≈ share

Finetuning near equilibrium says nothing of how two atoms repel each other where no DFT structure has them so close,
and weights that are free to move there do. The second term holds them. It is the loss of the pretraining stage, with
its weights and tails; the energy reference is one and the same. Every batch keeps its B structures with DFT labels, so
an epoch has as many steps as without replay, and costs 1/(1 − share) as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mdl_physpre.errors import ConfigError
from mdl_physpre.structures.graph import AtomGraph, GraphDataset, batch_by_edges
from mdl_physpre.training.data import GraphBatches, fingerprint
from mdl_physpre.training.settings import TrainingSettings


@dataclass(frozen=True)
class Replay:
    """What is replayed, and how much of it.

    Parameters
    ----------
    dataset : structures with the teacher's labels.
    settings : of the pretraining stage; its loss is taken.
    share : of the structures of each step that are replayed, between 0 and 1; at least one is.
    weight : of their loss.

    Raises
    ------
    ConfigError : share or weight out of range.
    """

    dataset: GraphDataset
    settings: TrainingSettings
    share: float = 0.25
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"replay: share is {self.share}; expected a number between 0 and 1")
        if not self.weight > 0:
            raise ConfigError(f"replay: weight is {self.weight}; expected a positive number")

    def identity(self) -> str:
        """What a training with it depends on."""
        settings = self.settings.asked()
        for work in ("devices", "compile", "recompute_edges"):
            del settings[work]
        settings["device"] = "auto"  # where it runs does not matter
        return f"{fingerprint(self.dataset)} {self.share} {self.weight} {sorted(settings.items())}"

    def indices(self, batches: Sequence[Sequence[int]], seed: int, epoch: int) -> list[list[int]]:
        """Structures that go with each batch of an epoch, drawn by (seed, epoch); none again before all were drawn."""
        wanted = [max(1, round(len(batch) * self.share / (1.0 - self.share))) for batch in batches]
        rng, n = np.random.default_rng([seed, epoch, 1]), len(self.dataset)
        order = np.concatenate([rng.permutation(n) for _ in range(-(-sum(wanted) // n))]).tolist()
        ends = np.cumsum(wanted).tolist()
        return [order[end - count : end] for end, count in zip(ends, wanted)]

    def parts(self, batches: Sequence[Sequence[int]], settings: TrainingSettings, epoch: int) -> list[list[list[int]]]:
        """The same, cut into runs of at most ``max_edges`` edges, each to be evaluated by itself."""
        found = self.indices(batches, settings.seed, epoch)
        if settings.max_edges is None:
            return [[indices] for indices in found]
        return [batch_by_edges(self.dataset.n_edges, settings.max_edges, indices) for indices in found]


class Steps:
    """What each training step of an epoch sees: a batch, and the graphs that are replayed with it with their weights.

    Parameters
    ----------
    batches : of the training set.
    replay : what is replayed; nothing where ``None``.
    settings, epoch : of the training.
    options : of :class:`GraphBatches`, for the replayed graphs.
    """

    def __init__(
        self, batches: GraphBatches, replay: Replay | None, settings: TrainingSettings, epoch: int, **options: Any
    ) -> None:
        self.batches = batches
        self.structures = [len(indices) for indices in batches.batches]  # seen in each step, by all ranks together
        self._weights: list[list[float]] = [[] for _ in batches.batches]
        self._replayed: Iterable[AtomGraph] = ()
        if replay is not None:
            parts = replay.parts(batches.batches, settings, epoch)
            self.structures = [n + sum(map(len, step)) for n, step in zip(self.structures, parts)]
            self._weights = [[replay.weight * len(p) / sum(map(len, step)) for p in step] for step in parts]
            self._replayed = GraphBatches(replay.dataset, [part for step in parts for part in step], **options)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[AtomGraph, list[tuple[AtomGraph, float]]]]:
        replayed = iter(self._replayed)
        for graph, weights in zip(self.batches, self._weights):
            yield graph, [(next(replayed), weight) for weight in weights]
