"""The section ``physpre.stress``: which stress tests a run does, and a section of settings for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pydantic import ConfigDict, Field, create_model, field_validator, model_validator
from typing_extensions import Self

from mdl_physpre.dynamics.oracle import OracleSettings
from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.stress_tests.kinds import STRESS_TESTS, make_test
from mdl_physpre.stress_tests.oracle import with_frames
from mdl_physpre.utils.settings import Settings, setting


class StressSection(OracleSettings):
    """Stress tests of test structures: how far each network goes before it breaks. Each test has its own section."""

    model_config = ConfigDict(extra="allow")

    tests: tuple[str, ...] = setting(
        (), "heating, compression, …, other registered names or import paths (module:Class); an empty list: none."
    )
    n_structures: int = setting(12, "Test structures, drawn at random.", ge=1)
    min_atoms: int = setting(
        32, "Smaller structures are doubled along their shortest vector until they have so many atoms.", ge=1
    )

    @field_validator("tests")
    @classmethod
    def _tests_are_there(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for name in names:
                STRESS_TESTS.find(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _sections_of_others(self) -> Self:
        """Check the sections of tests that are not of this package."""
        others = cast("dict[str, Any]", self.__pydantic_extra__)
        for name, values in others.items():
            if name not in self.tests and name not in STRESS_TESTS.paths():
                raise ConfigError(f"physpre.stress.{name}: unknown key; {nearest(name, type(self).model_fields)}")
            others[name] = make_test(name, values, "physpre.stress").settings
        return self

    def chosen(self) -> dict[str, Settings]:
        """The settings of each of ``tests``."""
        sections = dict(self)
        settings = {name: sections.get(name) or STRESS_TESTS.find(name).Settings() for name in self.tests}
        return {name: with_frames(one, self) for name, one in settings.items()}


if TYPE_CHECKING:
    Stress = StressSection
else:
    sections = {name: STRESS_TESTS.find(name).Settings for name in STRESS_TESTS.built_in}
    fields = {name: (cls, Field(default=cls(), description=f"The test {name}.")) for name, cls in sections.items()}
    Stress = create_model(
        "Stress", __base__=StressSection, __module__=__name__, __doc__=StressSection.__doc__, **fields
    )
