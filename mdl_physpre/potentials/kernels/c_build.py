"""How the C code of the package is compiled: at first use for the processor at hand, or into a wheel for several.

A wheel holds the code for the common levels of a processor's family, and the best that the processor at hand can run is
taken. This module imports nothing of the package, because the build of a wheel uses it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

FLAGS = ["-std=c11", "-O3", "-fschedule-insns", "-ffp-contract=fast", "-shared", "-fPIC"]
SOURCES = {
    "potentials/backbones/cgcnn/operators.c": ("float",),
    "potentials/eam/operators.c": ("float", "double"),
    "potentials/backbones/m3gnet/operators.c": ("float",),
    "potentials/backbones/torchmd_et/operators.c": ("float", "double"),
    "dynamics/engine/pairs_cpu.c": ("float", "double"),
}
"""Source files, from the package's folder on, and the precisions each is compiled in."""

LEVELS: dict[str, dict[str, set[str]]] = {
    "x86_64": {
        "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
        "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
        "x86-64": set(),
    },
    "arm64": {"armv8-a": set()},
}
"""Levels of each family of processors, the best first, as compilers name them, and what a processor needs for them."""

FOLDER = "compiled"
HEADERS = Path(__file__).parent


def find_compiler() -> str | None:
    """``CC``, ``cc``, ``gcc`` or ``clang``, or None where there is none."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def family() -> str:
    """The family of this processor, by the names of ``LEVELS`` where it is one of them."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)


def compile_library(compiler: str, source: Path, real: str, architecture: list[str], output: Path) -> None:
    """Compile ``source`` in precision ``real`` with the options ``architecture``.

    Raises OSError, with the compiler's first line, where that fails.
    """
    precision = [f"-DREAL={real}", *(["-DSINGLE"] if real == "float" else [])]
    command = [
        *compiler.split(),
        *FLAGS,
        *precision,
        *architecture,
        f"-I{HEADERS}",
        str(source),
        "-o",
        str(output),
        "-lm",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(f"{compiler}: {lines[0]}")


def built_name(source: Path, real: str, level: str) -> str:
    """Name of the file for a source, a precision and a level."""
    return f"{source.parent.name}-{source.stem}-{real}-{level}.so"


def build_levels(package: Path, output: Path) -> Iterator[Path]:
    """Compile every source of the package in ``package`` for all levels of this machine's family, into ``output``.

    Yields the files. Raises OSError where there is no compiler, or where it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise OSError("no C compiler was found (CC, cc, gcc or clang)")
    output.mkdir(parents=True, exist_ok=True)
    for source, precisions in SOURCES.items():
        for real in precisions:
            for level in LEVELS.get(family(), ()):
                path = output / built_name(Path(source), real, level)
                compile_library(compiler, package / source, real, [f"-march={level}"], path)
                yield path


def built_library(package: Path, source: Path, real: str) -> Path | None:
    """The file that came with the package for the best level that this processor can run, or None."""
    has = processor_flags()
    for level, needs in LEVELS.get(family(), {}).items():
        path = package / FOLDER / built_name(source, real, level)
        if needs <= has and path.exists():
            return path
    return None


def processor_flags() -> set[str]:
    """What Linux says that all of the processor's cores can do; empty elsewhere."""
    found = [set(line.partition(":")[2].split()) for line in cpuinfo() if line.startswith(("flags", "Features"))]
    return set.intersection(*found) if found else set()


def cpuinfo() -> list[str]:
    """What Linux says of each core of the processor, line by line; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
