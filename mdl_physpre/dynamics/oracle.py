"""A simulation against an oracle: a reference potential that evaluates frames taken along it.

A trajectory that stays whole may be wrong all the same: its structures may sit in a well that is not there. Verdicts do
not see that; a reference does. What is compared, and when a structure is wrong:
:mod:`mdl_physpre.dynamics.oracle_errors`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from mdl_physpre.dynamics.compare_rdf import RDF_INTERVAL
from mdl_physpre.dynamics.engine.ensembles import ensemble_of
from mdl_physpre.dynamics.oracle_errors import OracleErrors, gathered
from mdl_physpre.dynamics.oracle_frames import compared_frames, evaluated_frames
from mdl_physpre.dynamics.running.reanalysis import finished_run
from mdl_physpre.dynamics.running.storage import (
    FAILING,
    ORACLE_ERRORS,
    TRAJECTORIES,
    VERDICTS,
    TrajectoryFiles,
    run_key,
)
from mdl_physpre.dynamics.running.trajectory_frames import read_frames
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.open import open_potential
from mdl_physpre.utils.devices import put_on
from mdl_physpre.utils.files import write_bytes
from mdl_physpre.utils.progress import progress
from mdl_physpre.utils.settings import Settings, setting

logger = logging.getLogger(__name__)
FORMAT = 2
MOTION_EVERY = 5.0  # fs between frames that show vibrations


class OracleSettings(Settings):
    """A reference that frames of a simulation are evaluated by."""

    oracle: str | None = setting(
        None,
        "Reference that evaluates frames of each run, so that errors along it are seen: a checkpoint, calculator:… or "
        "torchsim:…; null: none.",
    )
    oracle_frames: int = setting(
        20, "Frames of each structure, evenly in time, besides the start and the one at which it broke.", ge=1
    )
    oracle_bound: float = setting(
        0.5,
        "A structure is wrong where the root mean square error of its forces passes this times the root mean square "
        "of the oracle's forces.",
        gt=0,
    )

    def with_frames(self, settings: DynamicsSettings) -> DynamicsSettings:
        """The settings of a simulation, with frames for the oracle where there is one and no other are stored."""
        if self.oracle is None or settings.trajectory_interval:
            return settings
        return settings.changed(trajectory_interval=max(1, settings.steps // self.oracle_frames))


class OracleRunSettings(OracleSettings):
    """The same, where the oracle may also simulate."""

    oracle_trajectory: bool = setting(
        False,
        "In a run, the oracle also simulates the structures itself, from the same start as the first network of each "
        "arm; radial distribution functions, displacements and vibrations are compared with it.",
    )

    def with_frames(self, settings: DynamicsSettings) -> DynamicsSettings:
        """As above, with frames that show how atoms vibrate where the oracle simulates, too."""
        if self.oracle is not None and self.oracle_trajectory:
            often = max(1, int(MOTION_EVERY / settings.timestep))
            every, rdf_every = settings.trajectory_interval or often, settings.rdf_interval or RDF_INTERVAL
            settings = settings.changed(trajectory_interval=every, rdf_interval=rdf_every)
        return super().with_frames(settings)


def open_oracle(
    name: str | Path, structures: Sequence[Atoms], *, modules: Sequence[str] = (), device: str | torch.device = "cpu"
) -> Potential:
    """An oracle by its name, tried on the structures before time is spent on a simulation.

    Parameters
    ----------
    name, modules : of :func:`~mdl_physpre.potentials.open.open_potential`.
    device : of an oracle with parameters; a calculator has one of its own.

    Raises
    ------
    CheckpointError, ConfigError : it cannot be opened.
    DataError : it raises for every structure, with the first of its errors.
    """
    oracle = put_on(open_potential(name, modules=modules), device)
    first: Exception | None = None
    for atoms in structures:
        (found,) = evaluated_frames(oracle, [atoms])
        if not isinstance(found, Exception):
            return oracle
        first = first or found
    if first is not None:
        raise DataError(
            f"the oracle {name} raises for every structure at the start, first {type(first).__name__}: {first}. Give a "
            "reference that knows these elements and cells"
        )
    return oracle


def compare_with_oracle(
    folder: str | Path, oracle: Potential | str | Path, settings: OracleSettings | None = None
) -> OracleErrors:
    """Evaluate frames of a finished simulation by a reference potential.

    Frames come from stored trajectories; of a structure without one from its failing frames, that is from its start
    and where it passed a bound. Energies and forces of the potential are those that the simulation stored.

    Parameters
    ----------
    folder : that :func:`mdl_physpre.simulate` was given as ``out``. The result is kept there in
        ``oracle_errors.json``, and read where simulation, oracle and settings are the same.
    oracle : a potential, or the name of one.
    settings : number of frames, and the bound beyond which a structure is wrong.

    Returns
    -------
    :class:`~mdl_physpre.dynamics.oracle_errors.OracleErrors`. A frame for which the oracle raises, or at which the
    potential's forces are not finite, is named in ``left_out``.

    Raises
    ------
    DataError : no finished simulation, or one without frames.
    CheckpointError, ConfigError : an oracle that cannot be opened.
    """
    folder, settings = Path(folder), settings or OracleSettings()
    run, per_structure, verdicts = finished_run(folder)
    if isinstance(oracle, Potential):
        name = settings.oracle or str(getattr(oracle, "name", type(oracle).__name__))
    else:
        name, oracle = str(oracle), open_potential(oracle)
    simulated = hashlib.sha256((folder / VERDICTS).read_bytes()).hexdigest()
    each = [run.changed(**{key: values[k] for key, values in per_structure.items()}) for k in range(len(verdicts))]
    looked_at = (
        (v.index, v.structure_id, list(_frames(folder, own, v, settings.oracle_frames)))
        for v, own in zip(verdicts, each, strict=True)
    )
    errors = errors_along(
        folder,
        (name, oracle),
        settings,
        simulated,
        looked_at,
        [(v.structure_id, v.index, v.failed) for v in verdicts],
        (0.0, max((own.steps * own.timestep for own in each), default=0.0)),
    )
    if not errors.rows and not errors.left_out and verdicts:
        raise DataError(
            f"{folder}: holds no frames for an oracle; simulate again with the oracle, or with trajectory_interval"
        )
    return errors


def errors_along(
    folder: Path,
    oracle: tuple[str, Potential],
    settings: OracleSettings,
    known_by: str,
    looked_at: Iterable[tuple[int, str, Sequence[Atoms]]],
    structures: Sequence[tuple[str, int, bool]],
    ends: tuple[float, float],
    scale: tuple[str, str] = ("time", "fs"),
) -> OracleErrors:
    """Evaluate frames by an oracle; what was found is kept in ``oracle_errors.json`` of the folder, and read again.

    Parameters
    ----------
    oracle : its name, and itself. known_by : a hash of all else that the frames come from.
    looked_at : place and name of each structure, and its frames, with energy and forces of the potential; ``info``
        holds the fields of :class:`OracleFrame` that the frame itself does not say, at least ``step`` and ``value``.
    structures, ends, scale : of :func:`~mdl_physpre.dynamics.oracle_errors.gathered`.
    """
    name, judge = oracle
    key = [FORMAT, known_by, run_key(judge, [], [], [], []), settings.oracle_frames, settings.oracle_bound]
    if (stored := _stored(folder, key)) is not None:
        return stored
    start, rows, left_out = time.monotonic(), [], []
    for index, structure, frames in progress(list(looked_at), description="oracle"):
        found, problems = compared_frames(judge, index, structure, frames)
        rows += found
        left_out += problems
    for text in left_out[:3]:
        logger.warning("left out of the comparison with %s: %s", name, text)
    logger.info("%s: %d frames in %.3g s", name, len(rows), time.monotonic() - start)
    errors = gathered(name, settings.oracle_bound, rows, structures, ends, scale, left_out)
    if rows or left_out:
        content = {"key": key, **errors.plain()}
        write_bytes(folder / ORACLE_ERRORS[0], (json.dumps(content, allow_nan=False) + "\n").encode())
    return errors


def _stored(folder: Path, key: list[Any]) -> OracleErrors | None:
    try:
        content = json.loads((folder / ORACLE_ERRORS[0]).read_text())
        return OracleErrors.model_validate(content) if content["key"] == key else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        logger.warning("%s is damaged; frames are evaluated again", folder / ORACLE_ERRORS[0])
        return None


def _frames(folder: Path, settings: DynamicsSettings, verdict: Verdict, n: int) -> Iterator[Atoms]:
    """Frames of one structure: the start, about ``n`` evenly in time, and the one at which it left."""
    trajectory = TrajectoryFiles(folder / TRAJECTORIES).path(verdict.index)
    interval = settings.trajectory_interval or 1
    every = interval * max(1, settings.steps // interval // n)
    at_rest = ensemble_of(settings.ensemble).cls.at_rest
    if not trajectory.exists():
        trajectory, every = TrajectoryFiles(folder / FAILING).path(verdict.index), 1
    for frame in read_frames(trajectory) if trajectory.exists() else ():
        step = int(frame.info["step"])
        at_break = verdict.stopped and step == verdict.steps_run
        if step % every == 0 or at_break:
            told = {"time_fs": step * settings.timestep, "thermostat": settings.temperature_at(step)}
            frame.info |= {**told, "value": step * settings.timestep, "at_break": at_break, "at_rest": at_rest}
            yield frame
