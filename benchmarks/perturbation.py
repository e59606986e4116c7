"""Perturb Li-Mn-O structures into 11,775 copies, against a plain loop over structures with ASE.

    PHYSPRE_DATA=/path/to/data OMP_NUM_THREADS=1 python benchmarks/perturbation.py --out perturbation.json

The reference does what a straightforward script does for every copy: the full minimum-image distance matrix by ASE,
the pairs by sorting it, pulls and random displacements on a copy of the structure. It has no filter; ours checks every
copy's distances as well. The reference is timed on a part and scaled.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from ase import Atoms
from common import data_structures, environment, print_table, write_json

from mdl_physpre.pretraining.perturbation import PerturbationSettings, strengths
from mdl_physpre.pretraining.pretraining_set import make_pretraining_set

PARENTS, ROUNDS = 471, 25


def plain_perturb(
    atoms: Atoms, n_pairs: int, pull: float, n_sites: int, size: float, rng: np.random.Generator
) -> Atoms:
    """Algorithm 1 on one structure, written plainly with ASE."""
    copy = atoms.copy()
    d = copy.get_all_distances(mic=True)
    i, j = np.triu_indices(len(copy), 1)
    used: set[int] = set()
    pairs = []
    for k in np.argsort(d[i, j]):
        if len(pairs) == n_pairs:
            break
        if i[k] not in used and j[k] not in used:
            pairs.append((i[k], j[k]))
            used |= {i[k], j[k]}
    for a, b in pairs:
        s = rng.uniform(0, pull)
        e = atoms.get_distance(a, b, mic=True, vector=True)
        e /= np.linalg.norm(e)
        copy.positions[a] += 0.5 * s * e
        copy.positions[b] -= 0.5 * s * e
    for k in rng.choice(len(copy), min(n_sites, len(copy)), replace=False):
        v = rng.normal(size=3)
        copy.positions[k] += rng.uniform(0, size) * v / np.linalg.norm(v)
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write the figures to this JSON file")
    parser.add_argument("--reference-parents", type=int, default=40, help="parents that the plain loop is timed on")
    arguments = parser.parse_args()
    parents = data_structures("li-mn-o-p/li_mn_o.extxyz.gz", PARENTS)
    settings = PerturbationSettings(n_aug=ROUNDS, n_pairs=2, pull=(1.0, 0.0), n_sites=5, perturb=(0.5, 0.0))

    def ours() -> int:
        return len(make_pretraining_set(parents, settings, None, seed=0, progress=False, distances=False).structures)

    def plain() -> int:
        rng = np.random.default_rng(0)
        pulls, sizes = strengths(1.0, 0.0, ROUNDS), strengths(0.5, 0.0, ROUNDS)
        chosen = parents[:: max(1, PARENTS // arguments.reference_parents)]
        copies = [plain_perturb(a, 2, p, 5, s, rng) for p, s in zip(pulls, sizes) for a in chosen]
        return len(copies)

    total = PARENTS * ROUNDS
    rows = []
    for name, function in (("plain loop with ASE", plain), ("mdl_physpre, distances checked", ours)):
        wall, cpu = time.perf_counter(), time.process_time()
        count = function()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        scale = total / count
        rows.append({"route": name, "timed on": count, "wall s": wall * scale, "process s": cpu * scale})
    for row in rows:
        row["speed-up"] = rows[0]["process s"] / row["process s"]
    print_table(f"Perturbing {PARENTS} structures x {ROUNDS} rounds = {total}, one core", rows)
    write_json(arguments.out, {"benchmark": "perturbation", "structures": total, "rows": rows, **environment()})


if __name__ == "__main__":
    main()
