"""Arms: the ways of training that a run compares, each made of parts.

The name of an arm is ``baseline``, or the names of its parts joined by ``+``: ``sam+pretrain``. A part is a class
derived from :class:`Part` in one file: those of this package (:mod:`mdl_physpre.training.parts`), those that installed
packages register in the entry-point group ``mdl_physpre.arms``, and any by its import path, ``package.module:Class``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.utils import settings
from mdl_physpre.utils.registry import Registry

if TYPE_CHECKING:
    from ase import Atoms

    from mdl_physpre.potentials.base import Backbone
    from mdl_physpre.potentials.eam.angular import AngularEAM
    from mdl_physpre.potentials.eam.potential import EAMInteraction
    from mdl_physpre.structures.graph import GraphDataset
    from mdl_physpre.training.replay import Replay
    from mdl_physpre.training.settings import TrainingSettings

BASELINE = "baseline"
FINETUNE = "finetune"

Structures = Sequence["Atoms"]
Online = Callable[[int], "GraphDataset"]
"""Gives the training set of an epoch, counted from 0; the same for the same epoch."""


@dataclass(frozen=True)
class Training:
    """One training of an arm: on what, and how.

    name : ``finetune``, or that of a training before it; also that of its folder.
    train, val : training and validation set.
    online : gives a training set for each epoch in place of ``train``.
    replay : structures of another training that take part in each step.
    """

    name: str
    settings: TrainingSettings
    train: GraphDataset
    val: GraphDataset
    online: Online | None = None
    replay: Replay | None = None


def _nothing(*_: Any) -> Any:
    raise ConfigError("a part of the arm asks for what it does not declare: set uses_eam or uses_pretraining_set")


@dataclass(frozen=True)
class Material:
    """What the parts of an arm can use. What takes time to make or to read is a function.

    train, val : structures with DFT labels.
    isolated : energies of isolated atoms, eV, by symbol; see :func:`.fit_energy_reference`.
    eam : the fitted embedded-atom potential, with angles or without, for parts with ``uses_eam``.
    pretraining_set : structures with the teacher's labels, for training and validation, for parts with
        ``uses_pretraining_set``.
    online : the same drawn anew for each epoch, as graphs that reach to a cutoff in Å.
    """

    train: Structures
    val: Structures
    eam: Callable[[], EAMInteraction | AngularEAM] = _nothing
    pretraining_set: Callable[[], tuple[Structures, Structures]] = _nothing
    online: Callable[[float], Online] = _nothing
    isolated: Mapping[str, float] = field(default_factory=dict)


class Part:
    """One part of an arm. What it changes is said by the methods that a derived class overrides; here they do nothing.

    Attributes
    ----------
    name : in names of arms; its settings are the section ``physpre.NAME`` of the configuration.
    description : what it does, a sentence.
    Settings : its settings, with a default for each.
    uses_eam : whether the run must have an embedded-atom potential (:attr:`Material.eam`).
    uses_pretraining_set : whether the run must have structures labelled by a teacher.
    brings_energies : whether another potential than was given, from :meth:`build`, has energies of the elements of its
        own, which then are not fitted to the DFT labels.
    needs : parts that it cannot be without, each with the reason. Where it is named alone, they are added.
    stages : names of the trainings that it adds before finetuning.
    acts_before_finetuning : whether trainings before finetuning depend on it in another way than by their settings.
        Arms that do not differ there share these trainings.
    """

    class Settings(settings.Settings):
        """Nothing to set."""

    name: ClassVar[str]
    description: ClassVar[str] = ""
    uses_eam: ClassVar[bool] = False
    uses_pretraining_set: ClassVar[bool] = False
    brings_energies: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = {}
    stages: ClassVar[tuple[str, ...]] = ()
    acts_before_finetuning: ClassVar[bool] = True

    def __init__(self, settings: Any = None) -> None:
        self._given = settings

    @cached_property
    def settings(self) -> Any:
        """Those given, or the defaults. Raises ConfigError where none are given and one has no default."""
        return self.Settings() if self._given is None else self._given

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._given == other._given

    def __hash__(self) -> int:
        return hash(self.name)

    def build(self, potential: Backbone, material: Material) -> Backbone:
        """The potential that is trained, from the one so far, which has random weights.

        The energies of the elements are fitted to the DFT labels afterwards, unless it is another one than was given
        and ``brings_energies``.
        """
        return potential

    def settings_of(self, stage: str, settings: TrainingSettings) -> TrainingSettings:
        """Settings of a training, from those so far, which begin as those of finetuning."""
        return settings

    def structures(self, stage: str, material: Material) -> tuple[Structures, Structures]:
        """Labelled structures for training and validation of one of its ``stages``."""
        raise NotImplementedError(f"{type(self).__name__} names stages, so it must define structures()")

    def online(self, stage: str, cutoff: float, material: Material) -> Online | None:
        """A training set for each epoch of one of its ``stages``, as graphs that reach to ``cutoff``, Å."""
        return None

    def prepare(self, stage: str, potential: Backbone) -> None:
        """Called before each training, also before one that goes on, to say which parameters are trained in it."""

    def finetuning(self, training: Training, before: Sequence[Training]) -> Training:
        """What finetuning sees, from what it would see without this part; ``before``: the trainings before it."""
        return training


PARTS: Registry[Part] = Registry(
    "part of an arm",
    "mdl_physpre.arms",
    Part,
    {
        "sam": "mdl_physpre.training.parts:SAM",
        "pretrain": "mdl_physpre.training.parts:Pretrain",
        "zbl": "mdl_physpre.training.parts:Repulsion",
        "hybrid": "mdl_physpre.training.parts:Hybrid",
        "replay": "mdl_physpre.training.parts:Replay",
    },
)


@dataclass(frozen=True)
class Arm:
    """An arm: its name, as folders and reports carry it, and its parts with their settings."""

    name: str
    parts: tuple[Part, ...] = ()

    def has(self, part: str) -> bool:
        """Whether a part is in it, by name."""
        return any(own.name == part for own in self.parts)

    @property
    def uses_pretraining_set(self) -> bool:
        """Whether structures labelled by the teacher are needed."""
        return any(part.uses_pretraining_set for part in self.parts)

    @property
    def uses_eam(self) -> bool:
        """Whether the embedded-atom potential is needed, as a part of the trained potential or in another way."""
        return any(part.uses_eam for part in self.parts)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the trainings before finetuning, in their order."""
        return tuple(stage for part in self.parts for stage in part.stages)

    def settings_of(self, stage: str, finetuning: TrainingSettings) -> TrainingSettings:
        """Settings of one of its trainings, from those of finetuning without any part."""
        settings = finetuning
        if stage != FINETUNE:  # a shift towards another zero of energy would only have to be unlearnt
            settings = settings.changed(refit_reference=False)
        for part in self.parts:
            settings = part.settings_of(stage, settings)
        return settings


def parts_by_name(arms: Sequence[str] = ()) -> dict[str, type[Part]]:
    """All registered parts, and those that names of arms give by import path, by their own names.

    Raises ConfigError for a part that cannot be imported.
    """
    paths = [word.strip() for arm in arms for word in arm.split("+") if set(word) & set(".:")]
    found = [PARTS.find(name) for name in [*PARTS.built_in, *PARTS.paths(), *paths]]
    return {part.name: part for part in found}


def parse_arm(name: str, sections: Mapping[str, Any] | None = None) -> Arm:
    """The arm of a name.

    Parameters
    ----------
    name : such as ``sam+pretrain``. A part that is given by its import path has its own name in that of the arm.
    sections : settings by the names of parts, as objects or mappings; a part that has none here has its defaults.

    Raises
    ------
    ConfigError : an unknown part, one given twice, or parts that have no meaning together; wrong settings.
    """
    words = [word.strip() for word in name.split("+")]
    known = PARTS.paths()
    for word in words:
        if word not in (BASELINE, *known) and not set(word) & set(".:"):
            hint = f"{nearest(word, (BASELINE, *known))} (or give an import path, module:Class)"
            raise ConfigError(f"arm {name!r}: unknown part {word!r}; {hint}")
    if words == [BASELINE]:
        return Arm(name)
    if BASELINE in words:
        parts = ", ".join([*PARTS.built_in, *(other for other in known if other not in PARTS.built_in)])
        raise ConfigError(f"arm {name!r}: {BASELINE} is training without any of {parts}; leave it out")
    classes = [PARTS.find(word) for word in words]
    if not set(words) <= set(known):  # import paths are no names of folders
        name = "+".join(word if word in known else part.name for word, part in zip(words, classes))
    names = [part.name for part in classes]
    for own_name in names:
        if names.count(own_name) > 1:
            raise ConfigError(f"arm {name!r}: {own_name!r} stands there more than once")
    if len(classes) == 1:
        classes += [PARTS.find(needed) for needed in classes[0].needs]
    own = {part.name: part for part in classes}
    for part in classes:
        for needed, reason in part.needs.items():
            if needed not in own:
                raise ConfigError(f"arm {name!r}: {reason}; write {'+'.join([needed, *own])!r}")
    order = [*PARTS.built_in, *sorted(set(own) - set(PARTS.built_in))]
    return Arm(name, tuple(own[key](_section(own[key], sections)) for key in order if key in own))


def _section(part: type[Part], sections: Mapping[str, Any] | None) -> Any:
    given = (sections or {}).get(part.name)
    return part.Settings(**given) if isinstance(given, Mapping) else given


def parse_arms(names: Sequence[str], sections: Mapping[str, Any] | None = None) -> list[Arm]:
    """The arms of several names. Raises ConfigError as :func:`parse_arm`, and where there is none or two are alike."""
    arms = [parse_arm(name, sections) for name in names]
    if not arms:
        raise ConfigError("arms: give at least one arm")
    for k, arm in enumerate(arms):
        for other in arms[:k]:
            if other.parts == arm.parts:
                alike = "stands there twice" if other.name == arm.name else f"is the same as {other.name!r}"
                raise ConfigError(f"arms: {arm.name!r} {alike}; give each arm only once")
    return arms
