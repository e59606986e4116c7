"""Verdicts of a run against a brute-force analysis of its stored trajectories, structure by structure.

    python benchmarks/verdicts.py RUN [RUN ...] [--out agreement.json]

RUN is a folder of molecular dynamics, with verdicts.json and trajectories/; those of every step (trajectory_interval 1)
are compared in full, sparser ones as far as they go.

Nothing of the package is imported: frames are read with ASE, periodic images are enumerated one by one as far as the
cell requires, and Lindemann averages are taken over whole series of distances. Thresholds and intervals are those that
verdicts.json states. Judged are overlap, both Lindemann indices, temperature, numbers that are not finite, escaped
atoms, and volumes out of bounds; what only the run can know (an error that the potential raised, a neighbour list that
overflowed) is taken from the frame's header. Other reasons, and whether a structure that passes Lindemann's bounds has
melted, are not judged.

Stored positions have eight decimals, and where several images of an atom are equally near at the start, as in a perfect
crystal, the image that is followed is a matter of rounding. So each quantity here is an interval, and a bound inside it
leaves both verdicts open ("either"). Anything else that differs is a disagreement, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from itertools import product
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

LENGTH, INDEX, RATIO = 1e-6, 1e-6, 1e-6  # Å, Lindemann index, relative: what eight decimals leave undecided
LOST = {"not_finite", "escaped", "cell_collapsed"}  # no overlap is looked for in such a frame
JUDGED = LOST | {"overlap", "lindemann_local", "lindemann_global", "temperature", "potential_error"}
Bounds = tuple[int | None, int | None]  # first failing step: at the earliest, and at the latest (None: never)


# -- distances, all images ---------------------------------------------------------------------------------------------


def image_vectors(
    vectors: np.ndarray, cell: np.ndarray, pbc: np.ndarray, of_all: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """All images of ``vectors`` (p, 3) that may be the shortest of each, or with ``of_all`` the shortest of all of
    them: lengths (p, m), and integer shifts (p, m, 3)."""
    lattice = np.asarray(ase.cell.Cell(cell).complete())
    inverse = np.linalg.inv(lattice)
    rounded = -np.round(vectors @ inverse) * pbc
    lengths = np.linalg.norm(vectors + rounded @ lattice, axis=1)
    bound = lengths.min() if of_all else lengths.max()
    heights = 1 / np.linalg.norm(inverse, axis=0)
    # |f + n| h <= |v + n·cell| <= bound with |f| <= 1/2, so an image further off than this cannot be the shortest
    reach = np.where(pbc, np.floor(bound / heights + 0.5 + 1e-9), 0).astype(int)
    grid = np.array(list(product(*(range(-n, n + 1) for n in reach))), dtype=float)
    shifts = rounded[:, None] + grid
    return np.linalg.norm(vectors[:, None] + shifts @ lattice, axis=2), shifts


def pair_vectors(positions: np.ndarray) -> np.ndarray:
    """r_j − r_i of all i < j."""
    i, j = np.triu_indices(len(positions), 1)
    return positions[j] - positions[i]


def smallest_distance(atoms: Atoms) -> float:
    """Over pairs of different atoms and all images; NaN for one atom."""
    vectors = pair_vectors(atoms.positions)
    return float(image_vectors(vectors, atoms.cell[:], atoms.pbc, True)[0].min()) if len(vectors) else math.nan


def minimum_image_series(frames: list[Atoms]) -> list[np.ndarray]:
    """Distances (frames, pairs) to the nearest image in each frame."""
    return [np.array([image_vectors(pair_vectors(a.positions), a.cell[:], a.pbc)[0].min(axis=1) for a in frames])]


def continuous_series(frames: list[Atoms]) -> list[np.ndarray]:
    """Distances (frames, pairs) to the image that was nearest in the first frame; one array for each choice of it."""
    lengths, shifts = image_vectors(pair_vectors(frames[0].positions), frames[0].cell[:], frames[0].pbc)
    order = np.argsort(lengths, axis=1, kind="stable")
    tied = (lengths <= lengths.min(axis=1)[:, None] + LENGTH).sum(axis=1)
    rows, vectors = np.arange(len(lengths)), np.array([pair_vectors(a.positions) for a in frames])
    cells = np.array([np.asarray(a.cell.complete()) for a in frames])
    series = []
    for choice in range(int(tied.max())):
        chosen = shifts[rows, order[rows, np.minimum(choice, tied - 1)]]
        series.append(np.linalg.norm(vectors + np.einsum("px,fxy->fpy", chosen, cells), axis=2))
    return series


def lindemann(series: list[np.ndarray], n: int, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the largest q_i and of q_global over the first ``ends[k]`` frames: two arrays (2, len(ends))."""
    i, j = np.triu_indices(n, 1)
    relative = []
    for distances in series:
        offset = distances.mean(axis=0)
        sums = np.cumsum(distances - offset, axis=0)[ends - 1] / ends[:, None]
        squares = np.cumsum((distances - offset) ** 2, axis=0)[ends - 1] / ends[:, None]
        mean = offset + sums
        spread = np.sqrt(np.maximum(squares - sums**2, 0))
        relative.append(np.divide(spread, mean, out=np.zeros_like(mean), where=mean > 0))
    largest, average = np.zeros((2, len(ends))), np.zeros((2, len(ends)))
    for side, values in enumerate((np.min(relative, axis=0) - INDEX, np.max(relative, axis=0) + INDEX)):
        q = np.zeros((len(ends), n))
        for k in range(len(ends)):
            q[k] = (np.bincount(i, values[k], n) + np.bincount(j, values[k], n)) / (n - 1)
        largest[side], average[side] = q.max(axis=1), q.mean(axis=1)
    return largest, average


# -- verdicts ----------------------------------------------------------------------------------------------------------


def judge(frames: list[Atoms], s: dict[str, Any]) -> dict[str, Any]:
    """Failing steps of each reason (``failures``: bounds; ``open``: why not judged) and what was measured."""
    first, steps, n = frames[0], [int(a.info["step"]) for a in frames], len(frames[0])
    failures: dict[str, Bounds] = {}
    unknown: dict[str, str] = {}
    told = {reason for reason in ("potential_error", "cell_collapsed") if reason in frames[-1].info}
    for reason in told:
        failures[reason] = (steps[-1], steps[-1])
    hottest = s["max_temperature"] or max(10 * s["temperature"], 10_000.0)
    hottest *= 1 + 3 * math.sqrt(2 / (3 * n))
    for atoms, step in zip(frames, steps):
        for reason, (sure, possible) in frame_failures(atoms, first, hottest, s, told).items():
            if possible and reason not in failures:
                failures[reason] = (step, step if sure else None)
    closest = np.full(len(frames), np.nan)
    for k, atoms in enumerate(frames):
        if k == 0 or steps[k] < steps[-1] or not LOST & set(failures):
            closest[k] = smallest_distance(atoms)
    if n > 1 and np.isfinite(closest[0]):
        failures["overlap"] = first_steps(
            np.array([-closest - LENGTH, -closest + LENGTH]), -s["overlap_ratio"] * closest[0], steps, or_equal=True
        )
        if s["trajectory_interval"] > 1 and not s["stop_on_overlap"]:
            unknown["overlap"] = "overlaps between stored frames do not stop the run"
    else:
        unknown["overlap"] = "n/a"
    stopped = {"temperature", "potential_error", *LOST} | ({"overlap"} if s["stop_on_overlap"] else set())
    broken = any(failures[r][0] == steps[-1] for r in stopped & set(failures))
    sound = steps[-1] - 1 if broken else s["steps"]
    measured = {"start_min_distance": closest[0], "min_distance": np.nanmin(closest) if n > 1 else math.nan}
    measured |= judge_lindemann(frames, steps, sound, s, failures, unknown)
    return {"failures": failures, "open": unknown, "measured": measured, "steps_run": steps[-1] if broken else sound}


def frame_failures(
    atoms: Atoms, first: Atoms, hottest: float, s: dict[str, Any], told: set[str]
) -> dict[str, tuple[bool, bool]]:
    """What is wrong with one frame: reason -> (surely, possibly)."""
    forces = atoms.arrays.get("forces") if atoms.calc is None else atoms.calc.results.get("forces", np.zeros(1))
    finite = np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell[:]).all()
    found: dict[str, tuple[bool, bool]] = {}
    energies = atoms.get_kinetic_energy(), (atoms.info if atoms.calc is None else atoms.calc.results).get("energy", 0.0)
    if not finite or not np.isfinite(energies).all() or not (forces is None or np.isfinite(forces).all()):
        found["not_finite"] = (not told, True)
    else:
        temperature = atoms.get_temperature() / hottest
        found["temperature"] = (temperature > 1 + RATIO, temperature > 1 - RATIO)
    if finite:
        change = np.linalg.solve(np.asarray(first.cell.complete()), np.asarray(atoms.cell.complete()))
        ratio = np.linalg.det(change)
        least, most = s.get("min_volume_ratio", 0.0), s.get("max_volume_ratio", math.inf)
        inside, outside = (least * (1 + x) <= ratio <= most * (1 - x) for x in (RATIO, -RATIO))
        found["cell_collapsed"] = (not outside, not inside)
        moved = atoms.positions - first.positions @ change
        farthest = np.linalg.norm(moved - moved.mean(axis=0), axis=1).max() / s["max_displacement"]
        # positions in a cell that has failed are not looked at
        found["escaped"] = (farthest > 1 + RATIO and inside, farthest > 1 - RATIO)
    return found


def judge_lindemann(
    frames: list[Atoms],
    steps: list[int],
    sound: int,
    s: dict[str, Any],
    failures: dict[str, Bounds],
    unknown: dict[str, str],
) -> dict[str, Any]:
    """Adds the two Lindemann reasons; returns bounds of the indices at the end, in both conventions."""
    n, reasons = len(frames[0]), ("lindemann_local", "lindemann_global")
    wanted = list(range(0, sound + 1, s["lindemann_interval"]))
    samples = [a for a, step in zip(frames, steps) if step <= sound and step % s["lindemann_interval"] == 0]
    why = None
    if n < 2 or n > s["lindemann_max_atoms"] or sound < s["lindemann_min_steps"]:
        why = "n/a"
    elif len(samples) != len(wanted):
        why = f"{len(samples)} of {len(wanted)} samples are stored"
    if why is not None:
        unknown |= dict.fromkeys(reasons, why)
        return {}
    interval = s["lindemann_check_interval"]
    checks = [t for t in range(interval, sound + 1, interval) if t >= s["lindemann_min_steps"]] + [sound]
    ends = np.array([t // s["lindemann_interval"] + 1 for t in checks])
    measured = {}
    for convention, series in (("continuous", continuous_series), ("minimum_image", minimum_image_series)):
        indices = lindemann(series(samples), n, ends)
        measured |= {f"{r}_{convention}": bounds[:, -1].tolist() for r, bounds in zip(reasons, indices)}
        if convention != s["distance"]:
            continue
        for reason, bounds in zip(reasons, indices):
            # the whole run decides whether it is a failure, the first look that exceeded the bound since when
            early, late = first_steps(bounds, s[reason], checks)
            low, high = bounds[:, -1] > s[reason]
            failures[reason] = (early if high else None, late if low else None)
    return measured


def first_steps(bounds: np.ndarray, limit: float, steps: list[int], or_equal: bool = False) -> Bounds:
    """First of ``steps`` at which a quantity with these bounds (2, len(steps)) exceeds a limit: earliest, latest."""
    over = bounds >= limit if or_equal else bounds > limit
    late, early = (steps[int(np.argmax(row))] if row.any() else None for row in over)
    return early, late


# -- comparison --------------------------------------------------------------------------------------------------------


def compare(verdict: dict[str, Any], found: dict[str, Any], s: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What disagrees, and what is left open."""
    wrong, either = [], []
    told = {f["reason"]: f["step"] for f in verdict["failures"]}
    for reason, check in verdict["checks"].items():
        if reason not in JUDGED:
            continue
        early, late = found["failures"].get(reason, (None, None))
        here = f"here {'never' if early is None else f'from step {early}'}"
        if reason in found["open"]:
            if (found["open"][reason] == "n/a") != (check == "n/a"):
                wrong.append(f"{reason}: {check}, here {found['open'][reason]}")
            elif check != "n/a":
                either.append(f"{reason}: {found['open'][reason]}")
        elif check == "n/a":
            wrong.append(f"{reason}: n/a, {here}")
        elif early != late:
            step, last = told.get(reason, math.inf), math.inf if late is None else late
            if early <= step <= last:
                until = "the end, or never" if late is None else late
                either.append(f"{reason}: fails between step {early} and {until}")
            else:
                wrong.append(f"{reason}: from step {step}, here from step {early} to {last}")
        elif told.get(reason) != early:
            wrong.append(f"{reason}: {'never' if reason not in told else f'from step {told[reason]}'}, {here}")
    if verdict["steps_run"] != found["steps_run"]:
        wrong.append(f"steps run: {verdict['steps_run']}, here {found['steps_run']}")
    failed = told and verdict["status"] == "failed"  # a melt passes Lindemann's bounds and has not failed
    if verdict["time_fs"] != (min(told.values()) * s["timestep"] if failed else None):
        wrong.append(f"time {verdict['time_fs']} fs is not that of its first failing step")
    wrong += compare_metrics(verdict["metrics"], found["measured"], s)
    return wrong, either


def compare_metrics(metrics: dict[str, Any], measured: dict[str, Any], s: dict[str, Any]) -> list[str]:
    """Measured quantities that differ by more than what is left undecided."""
    bounds = {"start_min_distance": [measured["start_min_distance"] + d for d in (-LENGTH, LENGTH)]}
    if s["trajectory_interval"] == 1:
        bounds["min_distance"] = [measured["min_distance"] + d for d in (-LENGTH, LENGTH)]
    for key, reason in (("lindemann_max_local", "lindemann_local"), ("lindemann_global", "lindemann_global")):
        if f"{reason}_{s['distance']}" in measured:
            bounds[key] = measured[f"{reason}_{s['distance']}"]
    wrong = []
    for key, (low, high) in bounds.items():
        value = metrics.get(key)
        if (value is None) != math.isnan(low) or (value is not None and not low <= value <= high):
            wrong.append(f"{key}: {value}, here {low:.7g} to {high:.7g}")
    return wrong


def analyse(run: Path) -> list[dict[str, Any]]:
    """A row for each structure of a run's folder."""
    stored = json.loads((run / "verdicts.json").read_text())
    rows = []
    for k, verdict in enumerate(stored["verdicts"]):
        s = stored["settings"] | {name: values[k] for name, values in stored.get("per_structure", {}).items()}
        row: dict[str, Any] = {"structure": verdict["structure_id"], "atoms": verdict["n_atoms"]}
        row["verdict"] = " ".join([verdict["status"], *verdict["reasons"]])
        path = run / "trajectories" / f"{verdict['index']:05d}.extxyz"
        rows.append(row)
        if not path.exists():
            begun = bool(verdict["steps_run"] or verdict["first_failing_step"] != 0)
            row |= {"agrees": "no" if begun else "not judged", "why": ["no trajectory is stored"]}
            continue
        frames = ase.io.read(path, index=":")
        found = judge(frames, s)
        wrong, either = compare(verdict, found, s)
        row |= {"first": verdict["first_failing_step"], "frames": len(frames)}
        row["here"] = min((b for _, b in found["failures"].values() if b is not None), default=None)
        row["closest"] = float(found["measured"]["min_distance"] / found["measured"]["start_min_distance"])
        for name in ("continuous", "minimum_image"):
            row[name] = [
                float(np.mean(found["measured"].get(f"lindemann_{x}_{name}", [math.nan]))) for x in ("local", "global")
            ]
        row |= {"agrees": "no" if wrong else "either" if either else "yes", "why": wrong + either}
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders with verdicts.json and trajectories/")
    parser.add_argument("--out", help="write all rows as JSON")
    arguments = parser.parse_args()
    every: dict[str, list[dict[str, Any]]] = {}
    for run in arguments.runs:
        every[str(run)] = rows = analyse(run)
        print(f"\n{run}\n")
        print("step: first failing step, in verdicts.json and here; closest: smallest distance over that at the start;")
        print("q: largest and mean Lindemann index, distances continuous in time and to the nearest image\n")
        print(
            f"{'structure':16} {'atoms':>5} {'frames':>6} {'step':>11} {'closest':>7} {'q continuous':>14} "
            f"{'q nearest':>14}  agrees  verdict"
        )
        for r in rows:
            q = [" ".join(f"{x:.4f}" for x in r.get(name, [])) for name in ("continuous", "minimum_image")]
            step = f"{r.get('first', '')} {r.get('here', '')}"
            print(
                f"{r['structure']:16.16} {r['atoms']:5} {r.get('frames', 0):6} {step:>11} "
                f"{r.get('closest', math.nan):7.3f} {q[0]:>14} {q[1]:>14}  {r['agrees']:6}  {r['verdict']}"
            )
            for why in r["why"]:
                print(f"{'':16} {why}")
        said = [r["agrees"] for r in rows]
        print("\n" + ", ".join(f"{word}: {said.count(word)}" for word in dict.fromkeys(said)) + f"; {len(rows)} in all")
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(every, indent=1) + "\n")
    return int(any(r["agrees"] == "no" for rows in every.values() for r in rows))


if __name__ == "__main__":
    sys.exit(main())
