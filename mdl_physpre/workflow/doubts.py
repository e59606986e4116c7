"""Settings and data that can be used and are seldom meant: said at the start of a run, and in its report."""

from __future__ import annotations

import math

from mdl_physpre.potentials.energy_reference import inseparable_elements
from mdl_physpre.structures.isolated import is_isolated
from mdl_physpre.structures.label_sources import look_like_labels
from mdl_physpre.structures.state import is_unconverged
from mdl_physpre.workflow.config.schema import Config
from mdl_physpre.workflow.data import RunData

LONG_STEP = 10.0  # fs
LONG_CUTOFF = 12.0  # Å
FEW_TESTS = 20


def doubts(config: Config, data: RunData) -> list[str]:
    """Sentences, each with the key or the set that it is about."""
    found = []
    dynamics, cutoff = config.physpre.dynamics, config.model.cutoff
    if dynamics.n_structures and dynamics.timestep > LONG_STEP:
        found.append(
            f"physpre.dynamics.timestep is {dynamics.timestep:g} fs: atoms move farther in a step than any integrator "
            "follows; 0.5 to 5 fs are usual. What breaks then is the integrator's fault"
        )
    if dynamics.n_structures and dynamics.temperature == 0:
        found.append("physpre.dynamics.temperature is 0 K: atoms stay where they are, and no potential breaks")
    if cutoff > LONG_CUTOFF:
        periodic = [a for a in data.train if a.pbc.all()]
        density = sum(len(a) for a in periodic) / (sum(a.cell.volume for a in periodic) or math.inf)
        edges = density * 4 / 3 * math.pi * cutoff**3
        about = f"about {edges:.0f} neighbours for each atom; " if periodic else ""
        found.append(f"model.cutoff is {cutoff:g} Å: {about}5 to 8 Å are usual")
    if config.optim.batch_atoms is None and config.optim.batch_size > len(data.train):
        found.append(
            f"optim.batch_size is {config.optim.batch_size}, the training set has {len(data.train)} structures: "
            "each epoch is one step"
        )
    if not data.isolated and (together := inseparable_elements(data.train)):
        found.append(
            f"the energies of {', '.join(together)} cannot be told apart: the composition of the training structures "
            "is known only as a whole. Energies of other compositions will be wrong; give isolated atoms "
            "(dataset.energies_of_elements), or structures of other compositions"
        )
    everything = [atoms for part in data.sets.values() for atoms in part]
    found += [
        f"{name} looks like {label} and is not read; dataset.keys={{{label}: {name}}} reads it"
        for name, label in look_like_labels(everything).items()
    ]
    for name, part in data.test_sets.items():
        if len(part) < FEW_TESTS:
            found.append(f"{name} has {len(part)} structures: errors on so few say little")
        if alone := sum(is_isolated(atoms) for atoms in part):
            found.append(
                f"{name}: {alone} of {len(part)} structures are isolated atoms, whose energies weigh in meV/atom as "
                "those of all others do; dataset.energies_of_elements: isolated_atoms takes them out of the sets"
            )
    for name, places in data.in_training.items():
        part = data.sets[name]
        first = ", ".join(str(part[k].info.get("structure_id", k)) for k in places[:5])
        found.append(
            f"{name}: {len(places)} of {len(part)} structures are suspected to be among the training structures, too "
            f"({first}{', …' if len(places) > 5 else ''}): errors there are lower than on new ones. physpre inspect "
            "names all; dataset.split.by keeps what belongs together in one set"
        )
    return found


def unconverged(data: RunData) -> list[str]:
    """How many structures of each set have electrons that did not converge, which reading them has said already."""
    counts = {name: sum(is_unconverged(atoms) for atoms in part) for name, part in data.sets.items()}
    return [
        f"{name}: in {n} of {len(data.sets[name])} structures the electrons did not converge; "
        "dataset.drop_unconverged: true leaves them out"
        for name, n in counts.items()
        if n
    ]
