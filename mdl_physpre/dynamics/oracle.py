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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mdl_physpre.analysis.batches import graphs_of, predicted_batches
from mdl_physpre.dynamics.compare_rdf import RDF_INTERVAL
from mdl_physpre.dynamics.oracle_errors import OracleErrors, OracleFrame, OracleMeans, gathered
from mdl_physpre.dynamics.running.reanalysis import finished_run
from mdl_physpre.dynamics.running.run_state import smallest_distance
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
from mdl_physpre.utils.text_table import shown, text_table

logger = logging.getLogger(__name__)
FORMAT = 1
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
        (found,) = _evaluated(oracle, [atoms])
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
    key = [FORMAT, simulated, run_key(oracle, [], [], [], []), settings.oracle_frames, settings.oracle_bound]
    if (stored := _stored(folder, key)) is not None:
        return stored
    start, rows, left_out, end = time.monotonic(), [], [], 0.0
    for k, verdict in enumerate(progress(verdicts, description="oracle")):
        own = run.changed(**{name: values[k] for name, values in per_structure.items()})
        found, problems = _compared(oracle, verdict, own, list(_frames(folder, own, verdict, settings.oracle_frames)))
        rows += found
        left_out += problems
        end = max(end, own.steps * own.timestep)
    if not rows and not left_out and verdicts:
        raise DataError(
            f"{folder}: holds no frames for an oracle; simulate again with the oracle, or with trajectory_interval"
        )
    for text in left_out[:3]:
        logger.warning("left out of the comparison with %s: %s", name, text)
    logger.info("%s: %d frames in %.3g s", name, len(rows), time.monotonic() - start)
    named = [(v.structure_id, v.index, v.failed) for v in verdicts]
    errors = gathered(name, settings.oracle_bound, rows, named, end, left_out)
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
    if not trajectory.exists():
        failing = TrajectoryFiles(folder / FAILING).path(verdict.index)
        yield from read_frames(failing) if failing.exists() else ()
        return
    interval = settings.trajectory_interval or 1
    every = interval * max(1, settings.steps // interval // n)
    for frame in read_frames(trajectory):
        step = int(frame.info["step"])
        if step % every == 0 or (verdict.stopped and step == verdict.steps_run):
            yield frame


def _evaluated(oracle: Potential, frames: Sequence[Atoms]) -> list[tuple[float, np.ndarray] | Exception]:
    """Energy and forces of each frame by the oracle, or what it raised for this frame."""
    found: dict[int, tuple[float, np.ndarray]] = {}
    try:
        for batch, graph, predicted in predicted_batches(oracle, graphs_of(oracle, frames, labels=False), stress=False):
            assert predicted.forces is not None
            forces = predicted.forces.detach().cpu().double().numpy()
            each = np.split(forces, np.cumsum(graph.n_atoms.cpu().numpy())[:-1])
            found |= zip(batch.tolist(), zip(predicted.energies.tolist(), each))
    except Exception as error:  # calculators raise anything
        if len(frames) == 1:
            return [error]
        return [_evaluated(oracle, [frame])[0] for frame in frames]
    return [found[k] for k in range(len(frames))]


def _compared(
    oracle: Potential, verdict: Verdict, settings: DynamicsSettings, frames: Sequence[Atoms]
) -> tuple[list[OracleFrame], list[str]]:
    """A row for each frame of one structure that can be compared, and a sentence for each other."""
    rows, left_out, zero = [], [], None
    looked = [(frame, *smallest_distance(frame, settings.max_neighbours)) for frame in frames]
    evaluated = iter(_evaluated(oracle, [frame for frame, _, problem in looked if problem is None]))
    for frame, distance, unusable in looked:
        results, step = frame.calc.results if frame.calc else {}, int(frame.info["step"])
        energy, forces = float(results.get("energy", np.nan)), np.array(results.get("forces", np.nan), dtype=float)
        theirs = DataError(unusable[1]) if unusable else next(evaluated)
        if isinstance(theirs, Exception):
            problem = str(theirs) if unusable else f"the oracle raised {type(theirs).__name__}: {theirs}"
        elif not (np.isfinite(theirs[0]) and np.isfinite(theirs[1]).all()):
            problem = "the oracle's energy or forces are not finite"
        elif not (np.isfinite(energy) and np.isfinite(forces).all()):
            problem = "there are no finite energy and forces of the potential"
        else:
            zero = energy - theirs[0] if zero is None else zero
            error = 1000 * (energy - theirs[0] - zero) / len(frame)
            rows.append(_row(verdict, settings, frame, distance, error, forces, theirs[1]))
            continue
        left_out.append(f"{verdict.structure_id}, step {step}: {problem}")
    return rows, left_out


def _row(
    verdict: Verdict,
    settings: DynamicsSettings,
    frame: Atoms,
    distance: float,
    energy_error: float,
    forces: np.ndarray,
    theirs: np.ndarray,
) -> OracleFrame:
    step, lengths = int(frame.info["step"]), float(np.linalg.norm(forces) * np.linalg.norm(theirs))
    return OracleFrame(
        structure_id=verdict.structure_id,
        index=verdict.index,
        step=step,
        time_fs=step * settings.timestep,
        temperature=float(frame.get_temperature()) if frame.has("momenta") else None,
        thermostat=settings.temperature_at(step),
        min_distance=distance if np.isfinite(distance) else None,
        energy_error=energy_error,
        forces_mae=float(np.abs(forces - theirs).mean()),
        forces_rmse=float(np.sqrt(((forces - theirs) ** 2).mean())),
        oracle_forces_rms=float(np.sqrt((theirs**2).mean())),
        forces_cosine=float((forces * theirs).sum() / lengths) if lengths > 0 else None,
        at_break=verdict.stopped and step == verdict.steps_run,
    )


def format_oracle_errors(errors: OracleErrors) -> str:
    """What an oracle says as text: over all frames, along the run, and how many structures are wrong."""
    m, wrong, whole = errors.means, errors.wrong, errors.whole_and_wrong
    lines = [f"Against {errors.oracle}, {m.frames} frames:"]
    if m.frames:
        head = ["time, ps", "frames", "T, K", "energy, meV/atom", "forces, eV/Å", "oracle's forces", "cosine"]
        rows = [_cells(f"{one.start_fs / 1000:.3g} to {one.end_fs / 1000:.3g}", one) for one in errors.bins]
        lines.append(text_table([head, *rows, _cells("all", m)]))
        lines.append(
            "(energy: mean absolute error after the start's; forces: root mean squares of error and of forces)"
        )
    lines.append(
        f"Wrong by the oracle (force error above {errors.bound:g} of its forces): {wrong.count} of {wrong.n}; of those "
        f"that did not fail {whole.count} of {whole.n}"
    )
    if errors.left_out:
        lines.append(f"Left out: {len(errors.left_out)} frames, first {errors.left_out[0]}")
    return "\n".join(lines)


def _cells(name: str, means: OracleMeans) -> list[str]:
    values = (means.temperature, means.energy_mae, means.forces_rmse, means.oracle_forces_rms, means.forces_cosine)
    forms = ("{:.0f}", "{:.1f}", "{:.3f}", "{:.3f}", "{:.3f}")
    return [name, str(means.frames), *(shown(value, form) for value, form in zip(values, forms))]
