"""The section ``physpre.teacher``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator
from typing_extensions import Self

from mdl_physpre.eam_fit.angular import AngularEAMSettings
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.zbl import RADII, short_range_repulsion
from mdl_physpre.utils.settings import Settings, setting


class Teacher(Settings):
    """What labels the pretraining set in place of the EAM: ``fit``, ``potential`` or ``calculator``."""

    LATER: ClassVar[dict[str, Any]] = {"fit": None}

    fit: Literal["angular_eam"] | None = setting(
        None, "Fit it to the training structures: angular_eam, the embedded-atom potential with angular densities."
    )

    potential: str | None = setting(
        None, "A checkpoint in any format that is read, calculator:… or torchsim:…, or a registered name."
    )
    calculator: str | None = setting(
        None, "Import path of an ASE calculator, or of a function that returns one, called with arguments."
    )
    arguments: dict[str, Any] = setting({}, "Arguments of the calculator, or settings of the fit.")
    short_range: Literal["zbl"] | None = setting(None, "Add the repulsion of the nuclei: zbl.")
    short_range_radii: dict[str, float] = setting({}, RADII, "Å")
    processes: int | None = setting(None, "Processes that label; null: as many as there are cores.", ge=1)

    @property
    def source(self) -> str:
        """The name under which it is opened; of a fit, what is fitted."""
        return self.fit or self.potential or f"calculator:{self.calculator}"

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.fit or self.potential or self.calculator}{' + ZBL' if self.short_range else ''}"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.fit, self.potential, self.calculator)) != 1:
            raise ValueError("give one of fit, potential and calculator")
        if self.fit:
            if self.short_range or self.short_range_radii:
                raise ValueError("angular_eam has the repulsion of the nuclei already; leave short_range out")
            try:
                AngularEAMSettings(**self.arguments)
            except ConfigError as error:
                raise ValueError(f"arguments: {error}") from None
        short_range_repulsion(self.short_range, self.short_range_radii)
        return self
