"""Arms: the ways of training that a run compares, by name.

A name is one of ``baseline``, ``sam``, ``pretrain``, ``hybrid`` and ``replay``, or several of the last four joined by
``+``. ``replay`` alone stands for ``pretrain+replay``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mdl_physpre.errors import ConfigError, nearest

PARTS = ("sam", "pretrain", "hybrid", "replay")


@dataclass(frozen=True)
class Arm:
    """What an arm is made of.

    name : as the configuration writes it; folders and reports carry it.
    sam : finetuned with sharpness-aware minimisation (:mod:`mdl_physpre.training.sam`).
    pretrain : trained on the labels of the teacher first.
    hybrid : E = E_network + E_EAM (:mod:`mdl_physpre.potentials.sum`).
    replay : labels of the teacher in the batches of finetuning, too (:mod:`mdl_physpre.training.replay`).
    """

    name: str
    sam: bool = False
    pretrain: bool = False
    hybrid: bool = False
    replay: bool = False

    @property
    def parts(self) -> tuple[bool, ...]:
        """What distinguishes it from other arms."""
        return self.sam, self.pretrain, self.hybrid, self.replay

    @property
    def uses_pretraining_set(self) -> bool:
        """Whether structures labelled by the teacher are needed."""
        return self.pretrain

    @property
    def uses_eam(self) -> bool:
        """Whether the embedded-atom potential is a part of the trained potential."""
        return self.hybrid


def parse_arm(name: str) -> Arm:
    """The arm of a name.

    Raises
    ------
    ConfigError : an unknown part, one given twice, or parts that have no meaning together.
    """
    words = [word.strip() for word in name.split("+")]
    for word in words:
        if word != "baseline" and word not in PARTS:
            raise ConfigError(f"arm {name!r}: unknown part {word!r}; {nearest(word, ('baseline', *PARTS))}")
        if words.count(word) > 1:
            raise ConfigError(f"arm {name!r}: {word!r} stands there more than once")
    if words == ["baseline"]:
        return Arm(name)
    if "baseline" in words:
        raise ConfigError(f"arm {name!r}: baseline is training without any of {', '.join(PARTS)}; leave it out")
    if words == ["replay"]:
        words = ["pretrain", "replay"]
    if "replay" in words and "pretrain" not in words:
        raise ConfigError(
            f"arm {name!r}: replay repeats structures of the pretraining set, and this arm has no pretraining; "
            f"write {'+'.join(['pretrain', *words])!r}"
        )
    return Arm(name, **{part: part in words for part in PARTS})


def parse_arms(names: Sequence[str]) -> list[Arm]:
    """The arms of several names. Raises ConfigError as :func:`parse_arm`, and where there is none or two are alike."""
    arms = [parse_arm(name) for name in names]
    if not arms:
        raise ConfigError("arms: give at least one arm")
    for k, arm in enumerate(arms):
        for other in arms[:k]:
            if other.parts == arm.parts:
                alike = "stands there twice" if other.name == arm.name else f"is the same as {other.name!r}"
                raise ConfigError(f"arms: {arm.name!r} {alike}; give each arm only once")
    return arms


def eam_is_needed(arms: Sequence[Arm], other_teacher: Any = None) -> bool:
    """Whether the embedded-atom potential is to be fitted: for a hybrid, or as teacher where there is no other."""
    return any(arm.hybrid or (arm.pretrain and other_teacher is None) for arm in arms)
