"""Fit the embedded-atom potential by both routes: time, and validation and test loss.

    PHYSPRE_DATA=/path/to/data python benchmarks/eam_fit.py --out eam_fit.json

Sets: li-mn-o (471 structures, the training groups repeated to that count), silica (135 zeolites of at most 48 atoms,
split by topology) and phosphorus (5 % of it: 205 structures). Each is fitted by

    fast          L-BFGS on tabulated distances, the default
    AdamW         the reference route as the paper's code starts it, with the paper's batch sizes
    AdamW spread  the same from the start that the fast route has (with --spread)

Loss is 0.01·energy + 50·forces + 50·stress, mean absolute errors, over the labels that exist.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from ase import Atoms
from common import environment, labelled_structures, print_table, write_json

from mdl_physpre.analysis.errors import prediction_errors
from mdl_physpre.eam_fit.fit import fit_eam
from mdl_physpre.eam_fit.settings import EAMFitSettings

WEIGHTS = (0.01, 50.0, 50.0)
BATCH_SIZES = {"li-mn-o": 32, "silica": 4, "phosphorus": 16}  # those of the paper's EAM fits
CUTOFF = 8.0
Split = tuple[list[Atoms], list[Atoms], list[Atoms]]


def load(name: str, seed: int) -> Split:
    """Training, validation and test structures."""
    generator = np.random.default_rng(seed)
    if name == "phosphorus":
        structures = labelled_structures("phosphorus/p_gap_20.extxyz.gz")
        order = generator.permutation(len(structures))
        parts = np.split(order[:460], [205, 227])
        return tuple([structures[k] for k in part] for part in parts)  # type: ignore[return-value]
    if name == "silica":
        structures = [a for a in labelled_structures("silica/si_zeo_22_sample.extxyz.gz") if len(a) <= 48]
        key, counts = "config_type", (135, 15, 150)
    else:
        structures = labelled_structures("li-mn-o-p/li_mn_o.extxyz.gz")
        key, counts = "group", (471, None, None)
    groups = generator.permutation(sorted({a.info[key] for a in structures}))
    tenth = max(1, len(groups) // 10)
    parts = []
    for part, count in zip((groups[2 * tenth :], groups[:tenth], groups[tenth : 2 * tenth]), counts):
        found = [a for a in structures if a.info[key] in set(part)]
        order = generator.permutation(len(found))
        take = len(found) if count is None or (name == "silica" and count > len(found)) else count
        parts.append([found[order[k % len(found)]] for k in range(take)])
    return tuple(parts)  # type: ignore[return-value]


def fit(data: Split, label: str, route: str, init: str, epochs: int, batch_size: int) -> dict[str, Any]:
    """One fit and its figures."""
    train, val, test = data
    processor = time.process_time()
    settings = EAMFitSettings(route=route, init=init, epochs=epochs, batch_size=batch_size, cutoff=CUTOFF)
    found = fit_eam(train, val, settings)
    return {
        "route": label,
        "wall s": found.seconds,
        "processor s": time.process_time() - processor,
        "epochs": found.history[-1]["epoch"],
        "train loss": found.errors["train"].total,
        "val loss": found.errors["val"].total,
        "test loss": prediction_errors(found.potential, test).total,
        "val forces eV/Å": found.errors["val"].forces_mae,
        "walls that rise": f"{sum(row.rises for row in found.table)} of {len(found.table)}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write the figures to this JSON file")
    parser.add_argument("--sets", nargs="+", choices=list(BATCH_SIZES), default=list(BATCH_SIZES))
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--spread", action="store_true", help="AdamW from the fast route's start as well")
    parser.add_argument("--only", choices=("fast", "AdamW"), help="one route alone")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"environment": environment(), "epochs": arguments.epochs, "sets": {}}
    for name in arguments.sets:
        data, size = load(name, arguments.seed), BATCH_SIZES[name]
        rows = []
        if arguments.only != "AdamW":
            rows.append(fit(data, "fast", "fast", "spread", arguments.epochs, size))
        if arguments.only != "fast":
            rows.append(fit(data, "AdamW", "reference", "reference", arguments.epochs, size))
            if arguments.spread:
                rows.append(fit(data, "AdamW spread", "reference", "spread", arguments.epochs, size))
        sizes = f"{len(data[0])} training structures, {len(data[1])} validation, {len(data[2])} test"
        print_table(f"{name}: {sizes}", rows)
        figures["sets"][name] = rows
        write_json(arguments.out, figures)


if __name__ == "__main__":
    main()
