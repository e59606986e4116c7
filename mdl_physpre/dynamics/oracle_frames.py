"""Frames of a potential's simulations, evaluated by an oracle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from mdl_physpre.analysis.batches import graphs_of, predicted_batches
from mdl_physpre.dynamics.oracle_errors import OracleFrame
from mdl_physpre.dynamics.running.run_state import smallest_distance
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential

MAX_NEIGHBOURS: int = DynamicsSettings.model_fields["max_neighbours"].default


def evaluated_frames(oracle: Potential, frames: Sequence[Atoms]) -> list[tuple[float, np.ndarray] | Exception]:
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
        return [evaluated_frames(oracle, [frame])[0] for frame in frames]
    return [found[k] for k in range(len(frames))]


def compared_frames(
    oracle: Potential, index: int, structure: str, frames: Sequence[Atoms]
) -> tuple[list[OracleFrame], list[str]]:
    """A row for each frame of one structure that can be compared, and a sentence for each other."""
    rows, left_out, zero = [], [], None
    looked = [(frame, *smallest_distance(frame, MAX_NEIGHBOURS)) for frame in frames]
    evaluated = iter(evaluated_frames(oracle, [frame for frame, _, problem in looked if problem is None]))
    for frame, distance, unusable in looked:
        results = frame.calc.results if frame.calc else {}
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
            rows.append(_row(index, structure, frame, distance, error, forces, theirs[1]))
            continue
        left_out.append(f"{structure}, step {frame.info['step']}: {problem}")
    return rows, left_out


TOLD = ("step", "value", "time_fs", "thermostat", "at_break", "at_rest")


def _row(
    index: int,
    structure: str,
    frame: Atoms,
    distance: float,
    energy_error: float,
    forces: np.ndarray,
    theirs: np.ndarray,
) -> OracleFrame:
    lengths = float(np.linalg.norm(forces) * np.linalg.norm(theirs))
    spread = frame.arrays.get("force_spread")
    return OracleFrame(
        structure_id=structure,
        index=index,
        temperature=float(frame.get_temperature()) if frame.has("momenta") else None,
        min_distance=distance if np.isfinite(distance) else None,
        energy_error=energy_error,
        forces_mae=float(np.abs(forces - theirs).mean()),
        forces_rmse=float(np.sqrt(((forces - theirs) ** 2).mean())),
        oracle_forces_rms=float(np.sqrt((theirs**2).mean())),
        forces_cosine=float((forces * theirs).sum() / lengths) if lengths > 0 else None,
        force_spread=None if spread is None else float(spread.max()),
        **{name: frame.info[name] for name in TOLD if name in frame.info},
    )
