"""Opening a checkpoint file of any format: its content tells which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.archive import content_of
from mdl_physpre.potentials.checkpoints.graph_pes import is_graph_pes_model, read_graph_pes_model
from mdl_physpre.potentials.checkpoints.mace import is_mace_model, read_mace_model
from mdl_physpre.potentials.checkpoints.matdeeplearn import is_matdeeplearn_checkpoint, read_matdeeplearn_checkpoint
from mdl_physpre.potentials.checkpoints.mattersim import is_mattersim_checkpoint, read_mattersim_checkpoint
from mdl_physpre.potentials.checkpoints.mattertune import is_mattertune_checkpoint, read_mattertune_checkpoint
from mdl_physpre.potentials.checkpoints.own import load_own
from mdl_physpre.potentials.committee import Committee
from mdl_physpre.utils.devices import available_device
from mdl_physpre.utils.import_paths import import_object

NETWORKS = "3-networks"  # folder that a run has
CHECKPOINTS_OF_ARM = "mdl_physpre.runs.trained:arm_checkpoints"  # runs know potentials, and not the other way round


def load_potential(path: str | Path, map_location: str | torch.device = "cpu") -> Potential:
    """The potential in a checkpoint file, in evaluation mode, with the precision it was saved in.

    The file is one that :func:`save_potential` wrote, or one of another format in ``READERS``; its content tells which.
    ``RUN/ARM``, the folder of a run and one of its arms, is the :class:`~mdl_physpre.potentials.Committee` of all
    trained networks of the arm.

    A backbone of a third party must be registered as an entry point, or its module be imported beforehand (which
    ``open_potential(path, modules=["package.module"])`` does): a file alone may not name a module to import.

    Raises CheckpointError for a missing, truncated or foreign file, one of another version, one that would execute
    code, and one whose backbone is unknown or does not fit its parameters; a run without that arm, or with fewer than
    two networks of it. ConfigError for a device that is not there.
    """
    path, device = Path(path), available_device(map_location)
    if is_arm(path):
        checkpoints = import_object(CHECKPOINTS_OF_ARM, "arms of runs")(path)
        return Committee([load_potential(file, device) for file in checkpoints]).eval()
    content = content_of(path)
    reader = next(reader for reader in READERS.values() if reader.recognises(path, content))
    return reader.read(path, device)


def is_arm(path: Path) -> bool:
    """Whether a path is ``RUN/ARM``: no file, but a name after the folder of a run."""
    return len(path.parts) > 1 and not path.exists() and (path.parent / NETWORKS).is_dir()


class Reader(NamedTuple):
    """A format of checkpoint files: whether a file has it, by path and content, and the potential in it on a device."""

    recognises: Callable[[Path, Any], bool]
    read: Callable[[Path, torch.device], Potential]


READERS: dict[str, Reader] = {
    "graph-pes": Reader(lambda path, content: is_graph_pes_model(path), read_graph_pes_model),
    "MatDeepLearn": Reader(
        lambda path, content: is_matdeeplearn_checkpoint(content),
        lambda path, device: read_matdeeplearn_checkpoint(path, map_location=device),
    ),
    "MatterSim": Reader(lambda path, content: is_mattersim_checkpoint(content), read_mattersim_checkpoint),
    "MatterTune": Reader(lambda path, content: is_mattertune_checkpoint(content), read_mattertune_checkpoint),
    "MACE": Reader(lambda path, content: is_mace_model(content), read_mace_model),
    "mdl_physpre": Reader(lambda path, content: True, load_own),
}
"""Formats by name. The first that recognises a file reads it; that of this package comes last and takes every file,
because its errors say best what is wrong with one."""
