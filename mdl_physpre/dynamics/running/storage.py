"""Files of a simulation: the state it can go on from, stored trajectories, and the verdicts."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io.extxyz import write_extxyz

from mdl_physpre.dynamics.settings import PER_STRUCTURE, DynamicsSettings
from mdl_physpre.dynamics.verdicts.survival import survival_curve
from mdl_physpre.dynamics.verdicts.verdict import Verdict, summarise
from mdl_physpre.errors import CheckpointError
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential
from mdl_physpre.potentials.base import Potential
from mdl_physpre.structures.graph import content_hash
from mdl_physpre.structures.state import PER_ATOM, electronic_state, state_of
from mdl_physpre.utils.files import write_bytes

logger = logging.getLogger(__name__)

FORMAT = 2
STATE, VERDICTS, SPEED, RDFS = "state.npz", "verdicts.json", "speed.json", "rdf.json"
DESCRIPTION = "simulation.json"
RDF_ERRORS = ("rdf_errors.json", "rdf.png", "rdf.svg")  # of physpre md --reference
MOTION = ("motion.json", "motion.png", "motion.svg")  # of physpre md --reference with trajectories
ORACLE_ERRORS = ("oracle_errors.json", "oracle-errors.png", "oracle-errors.svg")
TRAJECTORIES, FAILING, PARTS, DIVISION = "trajectories", "failing_frames", "parts", "division.json"
LOCK_WAIT = 10.0  # s; the processes of a run that was killed need a moment to notice
FAILING_AT_MOST = 200  # structures whose frames are kept, so that 10,000 that break do not fill a disk

RENAMED = {
    f"mdl_physpre.potentials.{now}": f"mdl_physpre.potentials.{before}"
    for now, before in {
        "sum.HybridPotential": "hybrid.HybridPotential",
        "eam.potential.EAMInteraction": "eam.EAMInteraction",
        "backbones.cgcnn.network.CGCNN": "cgcnn.CGCNN",
        "backbones.m3gnet.network.M3GNet": "m3gnet.M3GNet",
        "backbones.torchmd_et.network.TorchMDET": "torchmd_et.TorchMDET",
        "adapters.from_ase.CalculatorPotential": "from_calculator.CalculatorPotential",
        "adapters.torchsim.TorchSimPotential": "torchsim.TorchSimPotential",
    }.items()
}
"""Classes by the names that they had when runs began that may still go on."""


WORK = ("compile", "checkpoint_steps", "checkpoint_seconds")
"""Settings that no result depends on."""


def run_key(
    potential: Potential,
    structures: Sequence[Atoms],
    ids: Sequence[str],
    each: Sequence[DynamicsSettings],
    indices: Sequence[int],
) -> str:
    """A hash of all that the verdicts depend on: potential with its parameters, structures, settings, and places."""
    name = f"{type(potential).__module__}.{type(potential).__qualname__}"
    digest = hashlib.sha256(RENAMED.get(name, name).encode())
    for name, tensor in sorted(potential.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(repr((getattr(potential, "cutoff", None), getattr(potential, "elements", None))).encode())
    with contextlib.suppress(CheckpointError):  # a potential need not be one that can be saved
        digest.update(repr(sorted(potential.hyperparameters().items())).encode())
    reads_state = any(isinstance(part, CalculatorPotential) for part in potential.modules())
    momenta = any(shared.start_velocities == "structures" for shared in each)
    for atoms in structures:
        digest.update(atoms.get_masses().tobytes())
        digest.update(atoms.get_momenta().tobytes() if momenta else b"")
        if reads_state:
            digest.update(repr(sorted((k, np.asarray(v).tolist()) for k, v in state_of(atoms).items())).encode())
    for shared in dict.fromkeys(each):
        # settings that came later are left out where they ask for nothing, so that older runs go on
        nothing = {"observers": (), **shared.LATER}
        physics = {k: v for k, v in shared.model_dump().items() if k not in WORK and (k, v) not in nothing.items()}
        digest.update(repr(sorted(physics.items())).encode())
    if potential.training_energies is not None and any(s.too_deep_margin is not None for s in each):
        digest.update(repr(potential.training_energies.plain()).encode())
    numbered = {shared: number for number, shared in enumerate(dict.fromkeys(each))}
    which = [numbered[s] for s in each]
    return content_hash(structures, FORMAT, digest.hexdigest(), which, list(ids), list(indices))


def clear(out: Path) -> None:
    """Remove what another run wrote into a folder, so that nothing of it is taken for the new one's.

    Files of other names stay, whoever put them there.
    """
    for name in (DESCRIPTION, STATE, VERDICTS, SPEED, RDFS, *RDF_ERRORS, *MOTION, *ORACLE_ERRORS):
        (out / name).unlink(missing_ok=True)
    (out / PARTS / DIVISION).unlink(missing_ok=True)
    for part in (out / PARTS).glob("*-of-*"):
        shutil.rmtree(part, ignore_errors=True)
    for folder in (TRAJECTORIES, FAILING):
        for path in (out / folder).glob("*.extxyz"):
            if path.stem.isdigit():
                path.unlink(missing_ok=True)
    for folder in (TRAJECTORIES, FAILING, PARTS):
        with contextlib.suppress(OSError):  # not there, or not empty
            (out / folder).rmdir()


def write_verdicts(
    out: Path, key: str, settings: DynamicsSettings, each: Sequence[DynamicsSettings], verdicts: list[Verdict]
) -> None:
    """``verdicts.json``: settings with all thresholds, values of single structures, summary and verdicts."""
    own = {name: [getattr(s, name) for s in each] for name in PER_STRUCTURE}
    shared = settings.model_dump()
    content = {
        "format": FORMAT,
        "key": key,
        "settings": shared,
        "per_structure": {name: values for name, values in own.items() if set(values) != {shared[name]}},
        "summary": summarise(verdicts).plain(),
        "survival": survival_curve(verdicts).plain(),
        "verdicts": [verdict.plain() for verdict in verdicts],
    }
    write_bytes(out / VERDICTS, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def write_speed(out: Path, steps: int, atom_steps: int, seconds: float, rebuilds: int) -> None:
    """``speed.json``: what has been simulated since the processes began or went on, and how fast."""
    content = {
        "steps": steps,
        "atom_steps": atom_steps,
        "seconds": seconds,
        "steps_per_second": steps / seconds if seconds > 0 else None,
        "atom_steps_per_second": atom_steps / seconds if seconds > 0 else None,
        "neighbour_lists_built": rebuilds,
    }
    write_bytes(out / SPEED, (json.dumps(content, indent=1) + "\n").encode())


def read_verdicts(out: Path, key: str) -> list[Verdict] | None:
    """Stored verdicts of the same run, or ``None``."""
    path = out / VERDICTS
    try:
        stored = json.loads(path.read_text())
        if stored["key"] == key:
            logger.info("%s: this run has been done; its results are read", path)
            return [Verdict.model_validate(verdict) for verdict in stored["verdicts"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        logger.warning("%s is damaged; the simulation is done again", path)
        return None
    logger.info("%s comes from another potential, other structures or settings; the simulation is done again", path)
    return None


def write_state(out: Path, key: str, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
    """``state.npz``: arrays, and ``plain`` as JSON."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, key=np.array(key), plain=np.array(json.dumps(plain)), **arrays)
    write_bytes(out / STATE, buffer.getvalue())


def read_state(out: Path, key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Stored state of the same run, or ``None``."""
    path = out / STATE
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                arrays = {name: stored[name] for name in stored.files if name not in ("key", "plain")}
                return arrays, json.loads(str(stored["plain"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, OSError, EOFError):
        logger.warning("%s is damaged; the simulation starts anew", path)
        return None
    logger.info("%s comes from another potential, other structures or settings; the simulation starts anew", path)
    return None


def frame_text(atoms: Atoms) -> str:
    """A frame as extended XYZ: cell, positions and whatever else there is of momenta, forces, energy, spread, state."""
    text = io.StringIO()
    more = ("momenta", "forces", "force_spread", *PER_ATOM)
    write_extxyz(text, [atoms], columns=["symbols", "positions", *(name for name in more if atoms.has(name))])
    return text.getvalue()


class TrajectoryFiles:
    """One extended XYZ file for each structure: cell, unwrapped positions, momenta and forces of every n-th frame.

    Frames wait in memory until :meth:`flush`, which is called when the state is stored; sizes of the files go into the
    state. After a kill, :meth:`restore` cuts the files back to what the state knows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.waiting: dict[int, list[str]] = {}
        self.sizes: dict[str, int] = {}

    def path(self, index: int) -> Path:
        """File of the structure at place ``index`` of the caller's list."""
        return self.folder / f"{index:05d}.extxyz"

    def add(self, index: int, atoms: Atoms) -> None:
        """Take one frame."""
        self.waiting.setdefault(index, []).append(frame_text(atoms))

    def flush(self) -> dict[str, int]:
        """Append what waits; returns the sizes of all files."""
        if self.waiting:
            self.folder.mkdir(parents=True, exist_ok=True)
        for index, frames in self.waiting.items():
            with open(self.path(index), "ab") as file:
                file.write("".join(frames).encode())
                self.sizes[str(index)] = file.tell()
        self.waiting = {}
        return dict(self.sizes)

    def restore(self, sizes: dict[str, int], indices: Sequence[int]) -> None:
        """Cut the files of ``indices`` back to ``sizes``; those that it does not name are removed."""
        self.sizes, self.waiting = dict(sizes), {}
        for index in indices:
            path = self.path(index)
            if path.exists():
                if str(index) in sizes:
                    os.truncate(path, sizes[str(index)])
                else:
                    path.unlink()

    def known(self) -> set[int]:
        """Places of the structures of which there are frames."""
        return {int(index) for index in self.sizes} | set(self.waiting)

    def drop(self, index: int) -> None:
        """Forget the frames of a structure."""
        self.waiting.pop(index, None)
        self.sizes.pop(str(index), None)
        self.path(index).unlink(missing_ok=True)


class FramesInMemory(TrajectoryFiles):
    """The same frames, by their structures' places, for a run without a folder."""

    def __init__(self, frames: dict[int, list[Atoms]]) -> None:
        super().__init__(Path())
        self.frames = frames

    def add(self, index: int, atoms: Atoms) -> None:
        self.frames.setdefault(index, []).append(atoms)


class FailingFrames(TrajectoryFiles):
    """Frames of structures that failed: each at the start, and where a bound was first passed.

    Parameters
    ----------
    starts : the structures at the start, by their places in the caller's list.
    """

    def __init__(self, folder: Path, starts: dict[int, Atoms]) -> None:
        super().__init__(folder)
        self.starts = starts

    def keep(self, frames: Iterable[tuple[int, Atoms]]) -> None:
        """Take frames, each with its structure's place, of at most ``FAILING_AT_MOST`` structures."""
        known = self.known()
        for place, frame in frames:
            if place not in known:
                if len(known) >= FAILING_AT_MOST:
                    continue
                known.add(place)
                if frame.info["step"]:
                    start = self.starts[place]
                    first = Atoms(start.numbers, start.positions, cell=start.cell, pbc=start.pbc)
                    info, arrays = electronic_state(start)
                    first.info = info | {"structure_id": frame.info["structure_id"], "step": 0, "time_fs": 0.0}
                    for key, values in arrays.items():
                        first.set_array(key, values)
                    self.add(place, first)
            self.add(place, frame)
