"""Molecular dynamics against a reference, from the same start (the paper's Figure 5): radial distribution functions,
and, where trajectories are stored, how atoms move.

The reference is a stored trajectory, or another potential (a calculator, a model of another make), which is then
simulated from the same structures with the same settings and the same random numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from mdl_physpre.analysis.radial_distribution import RDF, average_rdfs
from mdl_physpre.analysis.rdf_errors import rdf_errors, reference_rdf
from mdl_physpre.dynamics.compare_motion import compare_motion
from mdl_physpre.dynamics.running.parallel import simulate_parallel
from mdl_physpre.dynamics.running.rdf_sampling import read_rdfs
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.verdict import summarise
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import Potential
from mdl_physpre.potentials.checkpoints.load import is_arm
from mdl_physpre.potentials.open import is_scheme, open_potential
from mdl_physpre.utils.devices import device_of_parameters, put_on

RDF_INTERVAL = 10  # steps, where the settings ask for no radial distribution functions
CHECKPOINTS = (".pt", ".pth", ".ckpt")


def compare_with_reference(
    potential: Potential,
    structures: Sequence[Atoms],
    reference: Potential | str | Path,
    settings: DynamicsSettings | None = None,
    out: str | Path | None = None,
    *,
    modules: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Simulate, and compare radial distribution functions with those of a reference.

    Parameters
    ----------
    potential, structures, settings, options : as :func:`mdl_physpre.dynamics.simulate_parallel` takes them.
        Radial distribution functions are sampled every 10 steps where ``rdf_interval`` is 0.
    reference : a potential; the name of one (:func:`mdl_physpre.potentials.open.open_potential`); or a
        trajectory, or a folder of one for each structure, in any format that ASE reads. ``rdf_start`` leaves out the
        frames of a trajectory that say that they are of earlier steps (``info["step"]``).
    out : folder; a simulated reference goes into ``out/reference``.
    modules : imported before a checkpoint is opened.

    Returns
    -------
    ``verdicts`` of the potential; ``reference_verdicts`` where the reference was simulated; ``rdf`` and
    ``reference_rdf``, averages over the structures that both have; ``errors`` by pair of elements, ``mae`` and
    ``wasserstein`` (Å), of the averages; ``structure_errors``, the same for each structure by name; ``structures``,
    how many both have. ``motion`` where the reference was simulated and ``trajectory_interval`` is set: see
    :func:`mdl_physpre.dynamics.compare_motion.compare_motion`.

    Raises
    ------
    DataError : a trajectory that cannot be read, or shares no structure or no pair of elements with the simulation.
    CheckpointError, ConfigError : a reference that cannot be opened.
    """
    settings = settings or DynamicsSettings()
    if not settings.rdf_interval:
        settings = settings.changed(rdf_interval=RDF_INTERVAL)
    if not isinstance(reference, Potential) and _is_model(str(reference)):
        reference = put_on(open_potential(reference, modules=modules), device_of_parameters(potential))
    stored: Mapping[str, RDF] | None = None
    if not isinstance(reference, Potential):  # read before hours are spent on the simulation
        place = Path(reference).resolve()
        if out is not None and Path(out).resolve() in (place, *place.parents):
            raise DataError(f"{reference}: lies in {out}, whose contents the run replaces; give another folder")
        stored = reference_rdf(
            reference, settings.rdf_r_max, settings.rdf_bins, settings.rdf_smoothing, first_step=settings.rdf_start
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(out or temporary)
        result: dict[str, Any] = {"verdicts": simulate_parallel(potential, structures, settings, folder, **options)}
        found = _by_name(folder)
        if isinstance(reference, Potential):
            beside = folder / "reference"
            result["reference_verdicts"] = simulate_parallel(reference, structures, settings, beside, **options)
            stored = _by_name(beside)
            if settings.trajectory_interval:
                result["motion"] = compare_motion(folder, beside)
    assert stored is not None
    return result | _compared(found, stored, reference)


def _compared(found: dict[str, RDF], stored: Mapping[str, RDF], reference: object) -> dict[str, Any]:
    """The comparison of :func:`compare_with_reference`, of radial distribution functions by names of structures."""
    if len(stored) == 1 and len(found) == 1:  # one trajectory for one structure need not carry its name
        stored = {next(iter(found)): next(iter(stored.values()))}
    shared = [name for name in found if name in stored]
    if not shared:
        raise DataError(
            f"{reference}: holds structures {_few(stored)}, and the simulation {_few(found)}: none is in both. Name "
            'them alike (info["structure_id"], or the names of the files)'
        )
    mine, other = (average_rdfs([rdfs[name] for name in shared]) for rdfs in (found, stored))
    errors = rdf_errors(mine, other)
    if all(error.mae is None for error in errors.values()):
        both = " against ".join(", ".join(rdf.g) or "none" for rdf in (mine, other))
        raise DataError(f"{reference}: no pair of elements in common with the simulation ({both})")
    each = {name: rdf_errors(found[name], stored[name]) for name in shared}
    compared = {"rdf": mine, "reference_rdf": other, "errors": errors, "structure_errors": each}
    return {**compared, "structures": len(shared)}


def _by_name(folder: Path) -> dict[str, RDF]:
    return {one.structure_id: one for one in read_rdfs(folder).structures}


def _few(names: Mapping[str, Any]) -> str:
    return ", ".join([*list(names)[:3], "…"] if len(names) > 3 else names)


def format_rdf_errors(compared: Mapping[str, Any]) -> str:
    """The errors of :func:`compare_with_reference` as text, a line for each pair of elements."""
    lines = [f"Radial distribution functions against the reference, {compared['structures']} structures:"]
    for pair, error in compared["errors"].items():
        mae, distance = ("–" if value is None else f"{value:.3f}" for value in (error.mae, error.wasserstein))
        lines.append(f"  {pair}: mean absolute error {mae}, Wasserstein-1 distance {distance} Å")
    if "reference_verdicts" in compared:
        found = summarise(compared["reference_verdicts"]).failed
        lines.append(f"Broken with the reference itself: {found.count} of {found.n}")
    return "\n".join(lines)


def _is_model(name: str) -> bool:
    return is_scheme(name) or is_arm(Path(name)) or Path(name).suffix in CHECKPOINTS
