"""Neighbour lists of real cells by every library at hand, at 5 and 8 Å.

    PHYSPRE_DATA=/path/to/data OMP_NUM_THREADS=1 python benchmarks/neighbours.py --out neighbours.json

All routes return both directions of every pair with its integer shifts, for atoms already inside the cell; the first is
what the package uses, with wrapping, sorting and dtypes included. Process time, best of three. A library that is not
installed is left out, and named.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from ase import Atoms
from common import data_structures, environment, print_table, write_json

from mdl_physpre.structures.neighbours import neighbour_list


def routes() -> dict[str, Callable[[Atoms, float], int]]:
    """Name → function that finds the neighbours of a structure and returns the number of edges."""
    found: dict[str, Callable[[Atoms, float], int]] = {
        "mdl_physpre": lambda a, rc: len(neighbour_list(a.positions, a.cell.array, a.pbc, rc)[0])
    }
    try:
        from pymatgen.optimization.neighbors import find_points_in_spheres

        def pymatgen(a: Atoms, rc: float) -> int:
            p = np.ascontiguousarray(a.positions)
            pbc = a.pbc.astype(np.int64)
            i, _, _, d = find_points_in_spheres(p, p, r=rc, pbc=pbc, lattice=a.cell.array, tol=1e-8)
            return len(i) - int((d < 1e-8).sum())

        found["pymatgen find_points_in_spheres"] = pymatgen
    except ImportError:
        print("pymatgen is not installed")
    try:
        from vesin import NeighborList

        def vesin(a: Atoms, rc: float) -> int:
            search = NeighborList(cutoff=rc, full_list=True)
            return len(search.compute(points=a.positions, box=a.cell.array, periodic=True, quantities="ijS")[0])

        found["vesin"] = vesin
    except ImportError:
        print("vesin is not installed")
    for module in ("matscipy_neighbours", "matscipy.neighbours"):
        try:
            search = __import__(module, fromlist=["neighbour_list"]).neighbour_list
        except (ImportError, AttributeError):
            print(f"{module} is not installed")
            continue
        found[module.replace("_", "-").split(".")[0]] = lambda a, rc, search=search: len(search("ijS", a, rc)[0])
    from ase.neighborlist import primitive_neighbor_list

    found["ase"] = lambda a, rc: len(primitive_neighbor_list("ijS", a.pbc, a.cell.array, a.positions, rc)[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write the figures to this JSON file")
    parser.add_argument("--structures", type=int, default=60, help="structures from each data set")
    arguments = parser.parse_args()
    rows = []
    for source in ("li-mn-o-p/li_mn_o", "silica/si_zeo_22_sample", "phosphorus/p_gap_20"):
        everything = data_structures(f"{source}.extxyz.gz")
        chosen = everything[:: max(1, len(everything) // arguments.structures)][: arguments.structures]
        for atoms in chosen:
            atoms.wrap()
        for rc in (5.0, 8.0):
            expected = None
            for name, function in routes().items():
                best = np.inf
                # ase takes seconds for what the others do in milliseconds: a part is enough
                part = chosen[::6] if name == "ase" else chosen
                for _ in range(1 if name == "ase" else 3):
                    start = time.process_time()
                    edges = [function(atoms, rc) for atoms in part]
                    best = min(best, time.process_time() - start)
                expected = expected or dict(zip(map(id, part), edges))
                rows.append(
                    {
                        "data": source.split("/")[0],
                        "cutoff": rc,
                        "code": name,
                        "ms each": 1e3 * best / len(part),
                        "M edges/s": sum(edges) / best / 1e6,
                        "wrong": sum(expected[id(a)] != n for a, n in zip(part, edges)),
                    }
                )
    print_table("Neighbour lists, one core; wrong: structures whose number of edges differs from ours", rows)
    write_json(arguments.out, {"benchmark": "neighbours", "rows": rows, **environment()})


if __name__ == "__main__":
    main()
