"""What commands that simulate have in common: the potential in several processes, and what is shown of a simulation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

logger = logging.getLogger(__name__)


def say_unjudged(potential: Any) -> None:
    """Say that nothing is known of the energies that a potential was trained on, where that is so."""
    if potential.training_energies is None:
        logger.warning("the potential does not say what energies it was trained on: no structure is judged too_deep")


def simulate_and_show(
    potential: Any,
    structures: Any,
    settings: Any,
    along: Any,
    reference: str | None,
    name: str,
    out: Path | None,
    modules: Sequence[str],
    workers: dict[str, Any],
) -> None:
    """Simulate, and print verdicts, the comparison with a reference, and what an oracle says, where they are given."""
    from mdl_physpre.dynamics import compare_with_reference, simulate_parallel, summarise
    from mdl_physpre.dynamics.oracle import open_oracle
    from mdl_physpre.report.tables.text import format_verdicts
    from mdl_physpre.utils.devices import device_of_parameters

    say_unjudged(potential)
    oracle = None
    if along.oracle is not None:
        place = (workers["devices"] or [device_of_parameters(potential)])[0]
        oracle = open_oracle(along.oracle, structures, modules=modules, device=place)
        settings = along.with_frames(settings)
    with TemporaryDirectory() as temporary:
        folder = out or (None if oracle is None else Path(temporary))
        if reference is None:
            verdicts = simulate_parallel(potential, structures, settings, folder, **workers)
            print(format_verdicts(verdicts, summarise(verdicts)))
        else:
            workers = {**workers, "modules": modules}
            compared = compare_with_reference(potential, structures, reference, settings, folder, **workers)
            print(format_verdicts(compared["verdicts"], summarise(compared["verdicts"])))
            show_reference(compared, name, out)
        if oracle is not None and folder is not None:
            show_oracle(folder, oracle, along, name, kept=out is not None)


def show_oracle(folder: Path, oracle: Any, settings: Any, name: str, kept: bool = True) -> None:
    """Print what an oracle says of the simulation in a folder; ``kept``: whether the folder stays, with a figure."""
    from mdl_physpre.dynamics.oracle import compare_with_oracle
    from mdl_physpre.report.figures.oracle import draw_oracle_errors
    from mdl_physpre.report.tables.oracle import format_oracle_errors

    found = compare_with_oracle(folder, oracle, settings)
    print(format_oracle_errors(found))
    if kept and found.means.frames:
        print(f"figure: {draw_oracle_errors({name: found}, folder).png}")


def open_for_workers(
    model: str, device: list[str], processes: int, modules: Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    """A potential, and in how many processes and on which devices it is to be used."""
    from mdl_physpre.potentials.open import open_potential
    from mdl_physpre.utils.devices import device_in_turn

    processes = max(processes, len(device))
    places = [str(device_in_turn(device[k % len(device)], k)) for k in range(processes)]
    potential = open_potential(model, modules=modules, map_location="auto" if device == ["auto"] else places[0])
    several = processes > 1 and next(potential.parameters(), None) is not None and set(places) != {"cpu"}
    if several:  # each process moves its own
        potential = potential.cpu()
    return potential, {"processes": processes, "devices": places if several else None}


def show_reference(compared: dict[str, Any], name: str, out: Path | None) -> None:
    """Print a comparison with a reference, and write it and its figures to a folder."""
    from mdl_physpre.dynamics.compare_motion import format_motion
    from mdl_physpre.dynamics.compare_rdf import format_rdf_errors
    from mdl_physpre.dynamics.running.storage import MOTION, RDF_ERRORS
    from mdl_physpre.report.figures.motion import draw_motion
    from mdl_physpre.report.figures.rdf import draw_rdfs
    from mdl_physpre.runs.stage import write_json

    motion = compared.get("motion")
    print(format_rdf_errors(compared))
    if motion is not None:
        print(format_motion(motion))
    if out is None:
        return
    from pydantic_core import to_jsonable_python

    errors, figure = (out / name for name in RDF_ERRORS[:2])
    content = to_jsonable_python({name: compared[name] for name in ("structures", "errors", "structure_errors")})
    if "reference_verdicts" in compared:
        content["reference_verdicts"] = [verdict.plain() for verdict in compared["reference_verdicts"]]
    write_json(errors, content)
    draw_rdfs({name: compared["rdf"]}, figure, reference=compared["reference_rdf"])
    print(f"figure: {figure}")
    if motion is not None and motion.structures:
        write_json(out / MOTION[0], motion)
        print(f"figure: {draw_motion({name: motion}, out / MOTION[1])[0]}")
