"""Label 11,775 perturbed Li-Mn-O structures with an EAM at 8 Å, against an ASE calculator one structure at a time.

    PHYSPRE_DATA=/path/to/data OMP_NUM_THREADS=1 python benchmarks/labelling.py --out labelling.json

Both sides build the neighbour lists, and give energy, forces and stress. The one-by-one side is timed on a part and
scaled. Speed does not depend on the parameters' values, so the EAM is taken as it starts, or from --checkpoint.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from common import children_seconds, data_structures, environment, print_table, write_json

from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.pretraining.labelling import label
from mdl_physpre.pretraining.perturbation import PerturbationSettings
from mdl_physpre.pretraining.pretraining_set import make_pretraining_set
from mdl_physpre.structures.labels import get_labels

PARENTS, ROUNDS = 471, 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write the figures to this JSON file")
    parser.add_argument("--checkpoint", help="an EAM to label with")
    parser.add_argument("--one-by-one", type=int, default=100, help="structures that the calculator is timed on")
    parser.add_argument("--workers", type=int, default=None, help="processes; all cores by default")
    parser.add_argument("--batch-edges", type=int, default=None, help="edges in a batch")
    arguments = parser.parse_args()
    parents = data_structures("li-mn-o-p/li_mn_o.extxyz.gz", PARENTS)
    settings = PerturbationSettings(n_aug=ROUNDS, perturb=(0.5, 0.0))
    structures = make_pretraining_set(parents, settings, None, seed=0, progress=False, distances=False).structures
    potential = load_potential(arguments.checkpoint) if arguments.checkpoint else EAMInteraction(["Li", "Mn", "O"])
    some = structures[:: max(1, len(structures) // arguments.one_by_one)]

    def one_by_one() -> list:
        calculator = PotentialCalculator(potential, dtype=torch.float64)
        found = []
        for atoms in some:
            atoms = atoms.copy()
            atoms.calc = calculator
            found.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
        return found

    more = {"batch_edges": arguments.batch_edges} if arguments.batch_edges else {}
    routes = {
        "ASE calculator, one by one, float64": one_by_one,
        "label, float64": lambda: label(structures, potential, dtype=torch.float64, workers=arguments.workers, **more),
        "label, float32": lambda: label(structures, potential, workers=arguments.workers, **more),
    }
    rows, results = [], {}
    for name, function in routes.items():
        wall, cpu = time.perf_counter(), time.process_time() + children_seconds()
        results[name] = function()
        wall, cpu = time.perf_counter() - wall, time.process_time() + children_seconds() - cpu
        scale = len(structures) / len(results[name])
        rows.append({"route": name, "timed on": len(results[name]), "wall s": wall * scale, "process s": cpu * scale})
    step = max(1, len(structures) // arguments.one_by_one)
    for row in rows:
        row["speed-up"] = rows[0]["wall s"] / row["wall s"]
        if row is not rows[0]:
            pairs = zip(results[row["route"]][::step], results[rows[0]["route"]])
            errors = [np.abs(get_labels(a).forces - f).max() / np.abs(f).max() for a, (_, f, _) in pairs]
            row["largest relative force difference"] = float(max(errors))
    print_table(f"Labelling {len(structures)} structures of {np.mean([len(a) for a in structures]):.0f} atoms", rows)
    write_json(arguments.out, {"benchmark": "labelling", "structures": len(structures), "rows": rows, **environment()})


if __name__ == "__main__":
    main()
