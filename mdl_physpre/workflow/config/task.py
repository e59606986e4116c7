"""The section ``task`` of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from typing_extensions import Self

from mdl_physpre.utils.settings import Settings, setting


class Task(Settings):
    """The run as a whole: its name, its random numbers, and where it computes."""

    identifier: str | None = setting(None, "Name of the run; null: that of the file.")
    seed: int = setting(12345678, "Of split, weights, order of structures, perturbation and velocities.", ge=0)
    threads: int | None = setting(None, "Threads of each process; null: as PyTorch decides.", ge=1)
    processes: int = setting(1, "Networks that are trained and simulated at the same time, a process each.", ge=1)
    device: str = setting(
        "auto",
        "auto (GPUs where there are any), cpu, cuda or cuda:1: where networks are trained and simulated. Several "
        "networks take the GPUs in turn where the name leaves open which.",
    )
    devices: int = setting(1, "Devices that train each network together.", ge=1)
    compile: bool | Literal["auto"] = setting(
        "auto", "Whether networks are compiled, for training and dynamics; auto: on a GPU."
    )

    @model_validator(mode="after")
    def _a_device_is_used_once(self) -> Self:
        if self.processes > 1 and self.devices > 1:
            raise ValueError(
                f"processes is {self.processes} and devices is {self.devices}: either several networks at a time, a "
                "device each, or one network on several devices; set one of the two to 1"
            )
        return self

    def compiles_on(self, device: str) -> bool:
        """Whether networks on a device are compiled."""
        return device.startswith("cuda") if self.compile == "auto" else self.compile
