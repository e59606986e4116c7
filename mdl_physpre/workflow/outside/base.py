"""What a trainer of another package needs: sets of structures in its files, and how it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from ase import Atoms

from mdl_physpre.structures.write import write_structures
from mdl_physpre.utils.registry import Registry

EPOCHS = {"pretrain": 15, "finetune": 150}
"""The trainings in their order, and how long each is."""
CUTOFF = 5.0  # Å


@dataclass(frozen=True)
class Material:
    """What both trainings are made of.

    sets : structures by name: ``pretrain`` and ``pretrain-val``, labelled by the teacher; ``train``, ``val``, ``test``
        and ``test-NAME``, labelled by DFT.
    energies : E0 of each element by symbol, by atomic number, eV; one reference for both trainings.
    stress : whether all structures have a stress.
    seed : of the run.
    """

    sets: Mapping[str, Sequence[Atoms]]
    energies: Mapping[str, float]
    stress: bool
    seed: int

    @property
    def elements(self) -> list[str]:
        """Symbols by atomic number."""
        return list(self.energies)

    def files(self, stage: str, suffix: str = ".extxyz") -> dict[str, str]:
        """Names of the files of ``pretrain`` or ``finetune``: ``train``, ``val`` and ``test``."""
        train, val = ("pretrain", "pretrain-val") if stage == "pretrain" else ("train", "val")
        return {"train": train + suffix, "val": val + suffix, "test": f"test{suffix}"}


@dataclass(frozen=True)
class Recipe:
    """Settings files by name, the commands that pretrain and finetune, and what is to be known, in sentences."""

    commands: Sequence[str]
    files: Mapping[str, str]
    notes: Sequence[str] = ()


class OutsideTrainer(ABC):
    """A trainer of another package.

    Attributes
    ----------
    title : what it is called.
    version : of the package that the recipe was made for.
    units : of the labels and where they stand, in a sentence.
    format, suffix : of the files of structures.
    """

    title: ClassVar[str]
    version: ClassVar[str]
    units: ClassVar[str] = "energy (eV), forces (eV/Å) and stress (eV/Å³, tension positive), as ASE reads them"
    format: ClassVar[str] = "extxyz"
    suffix: ClassVar[str] = ".extxyz"

    def labelled(self, atoms: Atoms) -> Atoms:
        """The structure with its labels where the trainer looks for them."""
        return atoms

    def write(self, folder: Path, material: Material) -> None:
        """The sets in ``folder``. Raises DataError for a structure that the format cannot hold."""
        for name, structures in material.sets.items():
            write_structures(folder / f"{name}{self.suffix}", [self.labelled(a) for a in structures], self.format)

    @abstractmethod
    def recipe(self, material: Material) -> Recipe:
        """How to pretrain and finetune, in a folder with the sets."""


class SettingsTrainer(OutsideTrainer):
    """A trainer that reads a settings file for each training.

    Attributes
    ----------
    ending : of the files: ``pretrain.yaml``, ``finetune.yaml``.
    commands, notes : of the recipe.
    """

    ending: ClassVar[str] = ".yaml"
    commands: ClassVar[Sequence[str]]
    notes: ClassVar[Sequence[str]]

    @abstractmethod
    def settings(self, material: Material, stage: str) -> dict[str, Any]:
        """The settings of ``pretrain`` or ``finetune``."""

    def text(self, content: dict[str, Any], stage: str) -> str:
        """A settings file, here in YAML."""
        return f"# {self.title}: {stage}\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def recipe(self, material: Material) -> Recipe:
        """The commands, and a settings file for each training."""
        files = {f"{stage}{self.ending}": self.text(self.settings(material, stage), stage) for stage in EPOCHS}
        return Recipe(self.commands, files, self.notes)


_HERE = "mdl_physpre.workflow.outside"
TRAINERS = Registry[OutsideTrainer](
    "trainer",
    "mdl_physpre.outside_trainers",
    OutsideTrainer,  # type: ignore[type-abstract]
    {
        "mace": f"{_HERE}.mace:MACE",
        "nequip": f"{_HERE}.nequip:NequIP",
        "graph-pes": f"{_HERE}.graph_pes:GraphPES",
        "deepmd": f"{_HERE}.deepmd:DeePMD",
        "sevennet": f"{_HERE}.sevennet:SevenNet",
        "mattersim": f"{_HERE}.mattersim:MatterSim",
    },
)
