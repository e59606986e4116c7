"""What a stress test is: a scale that rises until a structure breaks, and how one goes along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ase import Atoms
from pydantic import BaseModel, ValidationError

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.stress_tests.result import BreakingPoint
from mdl_physpre.utils.registry import Registry
from mdl_physpre.utils.settings import Settings, explained


class StressTest:
    """One kind of stress test.

    Attributes
    ----------
    quantity, unit : of its scale, such as ``temperature`` and ``K``.
    Settings : its settings.

    Parameters
    ----------
    settings : an instance of ``Settings``.
    """

    quantity: ClassVar[str]
    unit: ClassVar[str]
    Settings: ClassVar[type[Settings]]

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def check(self, structures: Sequence[Atoms]) -> None:
        """Raise DataError for a structure that the test is not for; called before any test of several begins."""

    def ends(self) -> tuple[float, float]:
        """Between which points of the scale errors by an oracle are binned, in ten bins; beyond, in more of them."""
        return 0.0, 1.0

    def run(
        self, potential: Potential, structures: Sequence[Atoms], out: Path | None, progress: bool = True
    ) -> list[BreakingPoint]:
        """Where each structure breaks, in order.

        Parameters
        ----------
        potential : forces come from it, on its device and in its precision.
        structures : where each begins.
        out : folder for the state to continue from and for the frames at which structures broke; ``None``: neither.
        """
        raise NotImplementedError


STRESS_TESTS: Registry[StressTest] = Registry(
    "stress test",
    "mdl_physpre.stress_tests",
    StressTest,
    {
        "heating": "mdl_physpre.stress_tests.heating:Heating",
        "compression": "mdl_physpre.stress_tests.compression:Compression",
        "collisions": "mdl_physpre.stress_tests.collisions:Collisions",
        "random_starts": "mdl_physpre.stress_tests.random_starts:RandomStarts",
    },
)


def make_test(name: str, settings: BaseModel | Mapping[str, Any] | None = None, section: str = "") -> StressTest:
    """The test of a name with its settings; ``section`` stands before the key in errors, such as ``physpre.stress``.

    Raises
    ------
    ConfigError : an unknown name, or settings that cannot be used, by their keys.
    """
    cls = STRESS_TESTS.find(name)
    if isinstance(settings, cls.Settings):
        return cls(settings)
    values = settings.model_dump() if isinstance(settings, BaseModel) else dict(settings or {})
    try:
        return cls(cls.Settings.model_validate(values))
    except ValidationError as error:
        raise ConfigError(explained(error, cls.Settings, f"{section}.{name}".lstrip("."))) from None
