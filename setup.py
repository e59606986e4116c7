"""Puts the compiled C code into the wheel, so that nobody needs a compiler; everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
spec = importlib.util.spec_from_file_location("c_build", ROOT / "mdl_physpre" / "potentials" / "kernels" / "c_build.py")
c_build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(c_build)


class BuildWithLibraries(build_py):
    """The package's files, and its C code for all levels of this machine's family of processors."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # there the code is compiled at first use, for the processor at hand
            return
        output = Path(self.build_lib) / "mdl_physpre" / c_build.FOLDER
        for path in c_build.build_levels(ROOT / "mdl_physpre", output):
            self.announce(f"compiled {path.name}", level=2)


class WheelForOnePlatform(bdist_wheel):
    """A wheel for this platform, and for every version of Python: its libraries know nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class WithLibraries(Distribution):
    """A package that is not the same on every platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(distclass=WithLibraries, cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": WheelForOnePlatform})
