"""Checkpoints from one format into another: read by whoever recognises the file, written in the format asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.graph_pes import write_graph_pes_model
from mdl_physpre.potentials.checkpoints.mace import write_mace_model
from mdl_physpre.potentials.checkpoints.matdeeplearn import read_matdeeplearn_checkpoint, write_matdeeplearn_checkpoint
from mdl_physpre.potentials.checkpoints.mattersim import write_mattersim_checkpoint
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.open import is_scheme, open_potential


def _write_own(path: Path, potential: Potential) -> list[str]:
    save_potential(path, potential)
    return []


WRITERS: dict[str, Callable[[Path, Potential], list[str]]] = {
    "mdl_physpre": _write_own,
    "matdeeplearn": write_matdeeplearn_checkpoint,
    "mattersim": write_mattersim_checkpoint,
    "graph_pes": write_graph_pes_model,
    "mace": write_mace_model,
}
"""Formats that can be written, and what writes them; each returns what the format cannot carry."""


def convert_checkpoint(
    source: str | Path, target: str | Path, format: str | None = None, config: str | Path | None = None
) -> list[str]:
    """Write the potential in a checkpoint as a checkpoint of another format.

    Parameters
    ----------
    source : a checkpoint of this package, of MatDeepLearn, MatterSim, MatterTune, MACE or graph-pes, recognised by its
        content.
    target : the file to write.
    format : ``mdl_physpre``, ``matdeeplearn``, ``mattersim``, ``mace`` or ``graph-pes``; where ``None``, ``mattersim``
        for the ending ``.pth``, ``mace`` for ``.model``, and ``mdl_physpre`` for any other.
    config : the YAML of a source of MatDeepLearn; looked for beside it where ``None``. For MatDeepLearn's alone.

    Returns
    -------
    What the format cannot carry, a sentence each. With an empty list, the converted potential gives the same energies,
    forces and stress to the rounding of its parameters.

    Raises
    ------
    ConfigError : an unknown format; a calculator as source; source and target the same file; for MatDeepLearn's format,
        a target named like a YAML, or another YAML where the one that belongs to the target is to be.
    CheckpointError : a source that cannot be read, or is not MatDeepLearn's although ``config`` is given; a potential
        that has no counterpart in the format.
    """
    target = Path(target)
    if format is None:
        format = {".pth": "mattersim", ".model": "mace"}.get(target.suffix, "mdl_physpre")
    format = format.lower().replace("-", "_")
    if format == "mattertune":
        raise ConfigError(
            "format mattertune: its checkpoints are read, not written; write mattersim, which MatterTune's backbone "
            "starts from"
        )
    if format not in WRITERS:
        raise ConfigError(f"format {format!r} is unknown; {nearest(format, WRITERS)}")
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise ConfigError(f"{target}: is the checkpoint that is read; give another file")
    if is_scheme(str(source)):
        raise ConfigError(f"{source}: is no checkpoint; a calculator or a committee cannot be converted into one")
    potential = open_potential(source) if config is None else read_matdeeplearn_checkpoint(source, config)
    return WRITERS[format](target, potential)
