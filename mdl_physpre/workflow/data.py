"""The data of a run: structures read, checked, split, and counted by label."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from mdl_physpre.analysis.errors import Errors, null_model_errors
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.runs.results import SetCounts
from mdl_physpre.runs.stage import hash_of, hash_of_file
from mdl_physpre.structures.check import require_labels
from mdl_physpre.structures.duplicates import also_in_training
from mdl_physpre.structures.isolated import take_isolated
from mdl_physpre.structures.labels import label_counts
from mdl_physpre.structures.read import read_structures
from mdl_physpre.structures.sources import Source, files_of
from mdl_physpre.structures.splits import format_label_counts, split_structures
from mdl_physpre.structures.supercell import enlarge
from mdl_physpre.workflow.by_data import suited
from mdl_physpre.workflow.config.schema import Config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """Training, validation and test structures, further test sets by name, and a hash of each part.

    isolated : energies of isolated atoms, eV, by symbol, which decide what composition leaves open.
    """

    train: list[Atoms]
    val: list[Atoms]
    test: list[Atoms]
    extra_tests: dict[str, list[Atoms]] = field(default_factory=dict)
    key: str = ""
    extra_key: str = ""
    isolated: dict[str, float] = field(default_factory=dict)

    @property
    def elements(self) -> list[str]:
        """Elements of the training and validation structures, by atomic number."""
        return [chemical_symbols[z] for z in sorted({int(z) for a in self.train + self.val for z in a.numbers})]

    @property
    def test_sets(self) -> dict[str, list[Atoms]]:
        """All test sets by name, ``test`` first."""
        return {"test": self.test, **self.extra_tests}

    @property
    def sets(self) -> dict[str, list[Atoms]]:
        """All sets by name."""
        return {"train": self.train, "val": self.val, **self.test_sets}

    def drawn_tests(self, n: int, min_atoms: int, seed: int) -> list[Atoms]:
        """``n`` test structures of two atoms or more, drawn at random by seed, enlarged; all where there are fewer."""
        order = np.random.default_rng([seed, 4]).permutation(len(self.test))
        picked = [k for k in order if len(self.test[k]) > 1][:n]  # one atom cannot fail
        return [enlarge(self.test[k], min_atoms) for k in sorted(picked)]

    def counts(self) -> dict[str, SetCounts]:
        """Structures, atoms and labels of each set, and how many of its structures are in the training set, too."""
        return {
            name: SetCounts(
                structures=len(s),
                atoms=sum(len(a) for a in s),
                labels=label_counts(s),
                in_training=len(self.in_training.get(name, ())),
            )
            for name, s in self.sets.items()
        }

    @cached_property
    def in_training(self) -> dict[str, list[int]]:
        """By set, the places of structures that are suspected to be among the training structures, too."""
        return also_in_training(self.train, {"val": self.val, **self.test_sets})

    @cached_property
    def null_model(self) -> dict[str, Errors]:
        """Errors of a model that has learnt composition alone, on the validation and test sets."""
        known = TrainingEnergies.of(self.train)
        reference = None if known is None else known.reference
        return {name: null_model_errors(s, reference) for name, s in self.sets.items() if name != "train"}

    def hashes(self) -> dict[str, str]:
        """What tells these data from others: ``data.json`` has it."""
        return {"key": self.key, "extra_key": self.extra_key}


def load_data(config: Config) -> RunData:
    """Read what ``dataset`` names, split it, and log how many structures of each set carry each label.

    Raises
    ------
    DataError : unreadable or wrong data, a set that comes out empty, test elements that no training structure holds.
    """
    dataset = config.dataset

    def read(path: Source) -> list[Atoms]:
        drop, units = dataset.drop_unconverged, dataset.units
        found = read_structures(path, keys=dataset.keys, units=units, drop_unconverged=drop, **dataset.options)
        if dataset.energies_of_elements != "isolated_atoms":
            return found
        rest, energies = take_isolated(found)
        for symbol, energy in energies.items():
            isolated[symbol] = min(energy, isolated.get(symbol, energy))
        taken.append(len(found) - len(rest))
        return rest

    given = dataset.energies_of_elements
    isolated = dict(given) if isinstance(given, dict) else {}
    taken: list[int] = []
    if isinstance(dataset.src, dict):
        train, val, test = _given_files(config, read)
        sources: dict[str, Source] = {str(role): path for role, path in dataset.src.items()}
    else:
        structures = read(dataset.src)
        size = dataset.split
        split = split_structures(
            structures, test=size.test, val=size.val, by=size.by, seed=config.task.seed, fraction=dataset.fraction
        )
        train, val, test = ([structures[k] for k in part] for part in (split.train, split.val, split.test))
        sources = {"all": dataset.src}
    extra = {name: read(path) for name, path in dataset.extra_tests.items()}
    for name, part in (("training", train), ("validation", val), ("test", test)):
        if not part:
            raise DataError(
                f"the {name} set is empty; give dataset.split sizes, or files, that leave structures for it"
            )
    how = {key: value for key, value in dataset.asked().items() if key not in ("src", "extra_tests")}
    key = hash_of({"files": _hashes(sources), "dataset": how, "seed": config.task.seed})
    others: dict[str, Any] = {"files": _hashes(dataset.extra_tests), "keys": dataset.keys, "options": dataset.options}
    # settings that ask for nothing are left out, so that older runs go on
    others |= {k: v for k, v in dataset.asked().items() if k in ("units", "drop_unconverged")}
    extra_key = hash_of(others)
    data = RunData(train, val, test, extra, key, extra_key, isolated)
    _tell_of_isolated(data, given, sum(taken))
    weights = suited(config, train, val)[0].optim.weights()
    for name, part in (("training set", train), ("validation set", val)):
        require_labels(part, weights, name)
    for name, part in data.test_sets.items():
        strange = sorted({s for a in part for s in a.symbols} - set(data.elements))
        if strange:
            raise DataError(
                f"{name}: holds {', '.join(strange)}, which no training or validation structure does; "
                "train on structures with the element, or leave these out of the test set"
            )
    logger.info("labels\n%s", format_label_counts({name: label_counts(s) for name, s in data.sets.items()}))
    return data


def _tell_of_isolated(data: RunData, given: str | dict[str, float], taken: int) -> None:
    """Say which isolated atoms there are; where some are missing, those that are there decide nothing.

    Raises DataError where the configuration names energies, but not of all elements.
    """
    missing = [symbol for symbol in data.elements if symbol not in data.isolated]
    if isinstance(given, dict) and missing:
        raise DataError(
            f"dataset.energies_of_elements names {', '.join(given)}; the training and validation structures hold "
            f"{', '.join(missing)}, too: give the energy of an isolated atom of each"
        )
    if given != "isolated_atoms" or not taken:
        return
    told = ", ".join(f"{symbol} {energy:g} eV" for symbol, energy in data.isolated.items()) or "none"
    logger.info("isolated atoms: %s; %d structures, which are not trained on", told, taken)
    if missing and data.isolated:
        logger.warning("no isolated atom of %s: energies of the elements are fitted alone", ", ".join(missing))
    if missing:
        data.isolated.clear()


def _hashes(sources: Mapping[str, Source]) -> dict[str, str | list[str]]:
    """A hash of each file; a list of them where there are several."""
    found: dict[str, str | list[str]] = {}
    for role, source in sources.items():
        hashes = [hash_of_file(Path(f)) if Path(f).is_file() else f for f in files_of(source)]
        found[role] = hashes[0] if len(hashes) == 1 else hashes
    return found


def _given_files(config: Config, read: Any) -> tuple[list[Atoms], list[Atoms], list[Atoms]]:
    """Training, validation and test structures from files of their own; validation is cut off training if not given."""
    files, size = config.dataset.src, config.dataset.split
    assert isinstance(files, dict)
    missing = [k for k in ("train", "test") if k not in files]
    if missing:
        raise DataError(f"dataset.src names {', '.join(files)}; {' and '.join(missing)} must be given too")
    train, test = read(files["train"]), read(files["test"])
    seed, fraction = config.task.seed, config.dataset.fraction
    if "val" not in files:
        split = split_structures(train, test=0, val=size.val, by=size.by, seed=seed, fraction=fraction)
        return [train[k] for k in split.train], [train[k] for k in split.val], test
    val = read(files["val"])
    if fraction < 1:
        rng = np.random.default_rng(seed)
        train, val = (
            [part[k] for k in sorted(rng.permutation(len(part))[: max(1, round(fraction * len(part)))])]
            for part in (train, val)
        )
    return train, val, test
