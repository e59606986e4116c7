"""MatterTune's data sources ``physpre-structures`` and ``physpre-pretraining``. Importing this imports the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from ase import Atoms
from mattertune.data import DatasetConfig, DatasetConfigBase
from mattertune.registry import data_registry
from torch.utils.data import Dataset, get_worker_info

from mdl_physpre.hosts.mattertune.settings import fit_teacher
from mdl_physpre.pretraining.perturbation import PerturbationSettings
from mdl_physpre.pretraining.pretraining_set import OnlinePretrainingSet, make_pretraining_set
from mdl_physpre.structures.read import read_structures
from mdl_physpre.structures.splits import split_structures
from mdl_physpre.workflow.config.file import expand


class Structures(Dataset[Atoms]):
    """A list of structures as the host takes them."""

    def __init__(self, structures: Sequence[Atoms]) -> None:
        super().__init__()
        self.structures = list(structures)

    def __getitem__(self, index: int) -> Atoms:
        return self.structures[index]

    def __len__(self) -> int:
        return len(self.structures)


class DrawnAnew(Dataset[Atoms]):
    """A pretraining set that is another one in every epoch, in an order of its own.

    An epoch ends where a structure is asked for that it has given already; of a process that loads data for another,
    and begins anew in every epoch, where the loader's random numbers do.
    """

    def __init__(self, sets: OnlinePretrainingSet) -> None:
        super().__init__()
        self.sets, self.epoch, self.given = sets, 0, set[int]()
        self.structures = self._drawn()
        self.size = len(self.structures)

    def _drawn(self) -> list[Atoms]:
        made = self.sets.epoch(self.epoch).structures
        return [made[k] for k in np.random.default_rng([self.sets.seed, self.epoch]).permutation(len(made))]

    def __getitem__(self, index: int) -> Atoms:
        worker = get_worker_info()
        epoch = self.epoch + (index in self.given) if worker is None else (worker.seed - worker.id) % 2**31
        if epoch != self.epoch:
            self.epoch, self.given = epoch, set()
            self.structures = self._drawn()
        self.given.add(index)
        return self.structures[index % len(self.structures)]

    def __len__(self) -> int:
        return self.size


@data_registry.register
class PhyspreStructuresConfig(DatasetConfigBase):
    """Structures in any format that mdl-physpre reads, whole or one part of a split that keeps groups together."""

    type: Literal["physpre-structures"] = "physpre-structures"

    src: str
    """File: extended XYZ (.gz), ASE database, MatDeepLearn or MPtrj JSON; ``load-atoms:NAME``. ``~`` and ``$VARIABLES``
    are put in."""

    part: Literal["all", "train", "val", "test"] = "all"
    """All structures, or one part of the split that the following keys describe."""

    test: float | int = 0
    """Size of the test part: a fraction (below 1, with a point) or a number of structures."""

    val: float | int = 0.1
    """Size of the validation part, of what the test part leaves."""

    by: str | None = None
    """Key of ``info``: structures that share its value stay in one part."""

    fraction: float = 1.0
    """Part of the training and validation structures that is used."""

    seed: int = 0
    """Of the random numbers of the split."""

    options: dict[str, Any] = {}
    """Further arguments of the reader, for MPtrj JSON and load-atoms."""

    def create_dataset(self) -> Structures:
        """Read the file and take the part. Raises DataError, ConfigError."""
        structures = read_structures(expand(self.src), **self.options)
        if self.part == "all":
            return Structures(structures)
        split = split_structures(structures, self.test, self.val, self.by, self.seed, self.fraction)
        return Structures([structures[k] for k in getattr(split, self.part)])


@data_registry.rebuild_on_registers
@data_registry.register
class PhysprePretrainingConfig(DatasetConfigBase):
    """Perturbed copies of the structures of another data source, labelled by an embedded-atom potential."""

    type: Literal["physpre-pretraining"] = "physpre-pretraining"

    source: DatasetConfig
    """Any data source of the host: the structures that are perturbed."""

    teacher: str | None = None
    """Who labels: a checkpoint, a name such as ``calculator:package.module.Class``; null: an embedded-atom potential,
    fitted to ``fit_to``."""

    fit_to: DatasetConfig | None = None
    """Labelled structures to which the embedded-atom potential is fitted; null: those of ``source``."""

    eam: dict[str, Any] = {}
    """Keys of mdl-physpre's section ``physpre.eam``, for the fit."""

    perturbation: dict[str, Any] = {}
    """Keys of mdl-physpre's section ``physpre.perturbation``."""

    seed: int = 0
    """Of perturbation and fit."""

    online: bool = False
    """Perturb and label anew for each epoch."""

    def prepare_data(self) -> None:
        """What the sources prepare."""
        for config in filter(None, (self.source, self.fit_to)):
            config.prepare_data()

    def create_dataset(self) -> Dataset[Atoms]:
        """Fit the potential if none is named, perturb, label. Raises DataError, ConfigError, FitError."""
        settings = PerturbationSettings(**self.perturbation)
        structures = listed(self.source.create_dataset())
        teacher: Any = expand(self.teacher) if self.teacher is not None else None
        if teacher is None:
            labelled = structures if self.fit_to is None else listed(self.fit_to.create_dataset())
            teacher = fit_teacher(labelled, [], self.eam, self.seed).potential
        if self.online:
            # the cutoff is for graphs, which the host makes itself
            return DrawnAnew(OnlinePretrainingSet(structures, settings, teacher, self.seed, 0.0, progress=False))
        return Structures(make_pretraining_set(structures, settings, teacher, self.seed).structures)


def listed(dataset: Any) -> list[Atoms]:
    """The structures of a data set of the host, of either kind."""
    return [dataset[k] for k in range(len(dataset))] if hasattr(dataset, "__len__") else list(dataset)
