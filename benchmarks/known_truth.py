"""Networks trained on structures that a known potential labelled: what the arms do to reality, not only to overlap.

The truth (``truths.py``) runs at several temperatures and labels structures of its own runs. ``physpre run`` trains on
them under ``recipe: default``; each network is then measured:

    errors        on test structures, hot ones, compressed ones, and such with one pair pushed together
    own run       at a high temperature: overlaps, and the errors of energy and forces along the run, by the truth
    broken        at a still higher one
    stress tests  points of breaking

so is the truth. It ends with known_truth.json, known_truth.md and a figure. A run that was stopped goes on.

    python benchmarks/known_truth.py --truth kumagai --out runs/kumagai
    python benchmarks/known_truth.py --truth kumagai --train 8 --out runs/kumagai-8     # a quarter of the structures
    python benchmarks/known_truth.py --truth kumagai --arms pretrain replay --set physpre.teacher=null   # the EAM
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import yaml
from ase import Atoms
from ase.neighborlist import neighbor_list
from known_truth_tables import arm_results, draw, table
from truths import TRUTHS, Truth

import mdl_physpre
from mdl_physpre.analysis import prediction_errors, rdf_errors
from mdl_physpre.dynamics import DynamicsSettings, simulate
from mdl_physpre.dynamics.oracle import OracleSettings, compare_with_oracle
from mdl_physpre.dynamics.running.rdf_sampling import read_rdfs
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.potentials import Potential, load_potential, open_potential
from mdl_physpre.pretraining import label
from mdl_physpre.runs.layout import FITTED_TEACHER
from mdl_physpre.runs.stage import Stage, hash_of_file, stage_result, write_json
from mdl_physpre.runs.summary import Summary
from mdl_physpre.stress_tests import run_stress_tests
from mdl_physpre.structures import read_structures, write_structures
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.config.schema import Config

ARMS = ("baseline", "zbl", "pretrain", "replay", "hybrid")
DATA, RUN, MEASURED = "data", "run", "measured"
FRAMES = 38  # of each structure, that the truth evaluates
TOO_DEEP = 0.2  # eV/atom below the lowest in the training data


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    crystals : of the truth's, at most. train, val, test : structures of each set. sampling : steps of the truth's runs.
    hot_runs : how many of them at each high temperature. own, own_steps, breaking, breaking_steps, heated,
    heating_rate : structures, steps and K/ps of the runs of each network.
    """

    crystals: int = 10
    train: int = 31
    val: int = 8
    test: int = 30
    sampling: int = 1000
    hot_runs: int = 2
    own: int = 4
    own_steps: int = 950
    breaking: int = 4
    breaking_steps: int = 500
    heated: int = 4
    heating_rate: float = 10_000.0


QUICK = Sizes(
    crystals=1, train=4, val=2, test=3, sampling=40, hot_runs=1, own=2, own_steps=20, breaking=2, breaking_steps=20,
    heated=1, heating_rate=400_000.0,
)  # fmt: skip
QUICK_RUN = (
    "optim.max_steps=4", "physpre.pretrain.max_steps=2", "physpre.perturbation.n_aug=1", "physpre.hot_frames.n=1", "physpre.hot_frames.steps=20",
    "model.hidden_channels=8", "model.num_layers=1", "model.num_heads=2",
)  # fmt: skip


def make_data(truth: Truth, sizes: Sizes, folder: Path) -> dict[str, Path]:
    """The files of all sets by name, made by the truth where they are not there yet."""
    decides = ("crystals", "train", "val", "test", "sampling", "hot_runs")
    stage = Stage(folder, {
        "truth": truth.potential, "crystals": truth.crystals.__name__, "temperatures": truth.temperatures,
        "hot": truth.hot, "sizes": {key: asdict(sizes)[key] for key in decides},
    })  # fmt: skip
    if not stage.done:
        stage.begin()
        potential = open_potential(truth.potential)
        crystals = truth.structures(sizes.crystals)
        count = sizes.train + sizes.val
        cool = trajectories(crystals, potential, truth.temperatures, sizes, folder / "cool")
        known = drawn(cool, count, seed=1)
        sets = {"train": known[: sizes.train], "val": known[sizes.train :]}
        other = trajectories(crystals, potential, truth.temperatures, sizes, folder / "test", first=1000)
        sets["test"] = drawn(other, sizes.test, seed=2)
        for k, temperature in enumerate(truth.hot):
            place = folder / f"hot_{temperature:.0f}"
            hot = trajectories(crystals, potential, [temperature] * sizes.hot_runs, sizes, place, first=2000 + 100 * k)
            sets[f"hot_{temperature:.0f}"] = drawn(hot, sizes.test, seed=3 + k)
        sets["volume_85"] = [compressed(atoms, 0.85) for atoms in sets["test"]]
        sets["pair_pushed"] = [pair_pushed(atoms, seed) for seed, atoms in enumerate(sets["test"])]
        counts = {}
        for name, structures in sets.items():
            labelled = label(structures, potential, workers=1, progress=False)
            write_structures(folder / f"{name}.extxyz", labelled)
            counts[name] = len(labelled)
        stage.finish({"sets": counts})
    return {name: folder / f"{name}.extxyz" for name in stage.result()["sets"]}


def trajectories(
    crystals: Sequence[Atoms],
    potential: Potential,
    temperatures: Sequence[float],
    sizes: Sizes,
    out: Path,
    first: int = 0,
) -> list[Atoms]:
    """Frames of runs of the truth at each temperature, from a quarter of the run on."""
    every = max(sizes.sampling // 40, 1)
    starts = [(atoms, t) for t in temperatures for atoms in crystals]
    settings = DynamicsSettings(steps=sizes.sampling, trajectory_interval=every, pressure_interval=0)
    heated = {"temperature": [t for _, t in starts]}
    structures, places = [atoms for atoms, _ in starts], range(first, first + len(starts))
    simulate(potential, structures, settings, out, progress=False, per_structure=heated, indices=places)
    frames = []
    for k, (_, temperature) in zip(places, starts):
        for frame in ase.io.read(out / "trajectories" / f"{k:05d}.extxyz", ":")[11:]:
            frame.info = {"temperature": temperature}
            frame.wrap()
            frames.append(frame)
    return frames


def drawn(frames: Sequence[Atoms], count: int, seed: int) -> list[Atoms]:
    """So many of the frames, evenly from the runs, in random order."""
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return [frames[k] for k in np.random.default_rng(seed).permutation(chosen)]


def compressed(atoms: Atoms, ratio: float) -> Atoms:
    """A copy with a part of the volume, positions scaled with the cell."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell[:] * ratio ** (1 / 3), scale_atoms=True)
    return copy


def pair_pushed(atoms: Atoms, seed: int) -> Atoms:
    """A copy with two neighbours pushed together, evenly, to 0.6 to 0.95 of their distance."""
    rng = np.random.default_rng(seed)
    i, j, vectors, distances = neighbor_list("ijDd", atoms, 3.5)
    near = np.flatnonzero(distances <= np.quantile(distances, 0.2))
    k = rng.choice(near)
    copy = atoms.copy()
    step = 0.5 * (1 - rng.uniform(0.6, 0.95)) * vectors[k]
    copy.positions[i[k]] += step
    copy.positions[j[k]] -= step
    return copy


def configuration(
    files: dict[str, Path], arms: Sequence[str], replicas: int, threads: int, processes: int
) -> dict[str, Any]:
    """The run on the truth's structures, as a file has it."""
    extra = {name: str(file) for name, file in files.items() if name not in ("train", "val", "test")}
    return {
        "recipe": "default",
        "task": {"identifier": "known-truth", "seed": 1, "threads": threads, "processes": processes, "device": "cpu"},
        "dataset": {"src": {name: str(files[name]) for name in ("train", "val", "test")}, "extra_tests": extra},
        "physpre": {
            "arms": list(arms), "n_networks": replicas, "dynamics": {"n_structures": 0}, "report": {"formats": []},
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """What is measured: a potential, the arm and the number of its network, and what its results depend on."""

    arm: str
    number: int
    potential: Potential
    key: str

    @property
    def folder(self) -> str:
        """Its name on the disk."""
        return f"{self.arm}-{self.number}"


def subjects(truth: Truth, run: Path, summary: Summary) -> Iterator[Subject]:
    """The truth, the teacher that the run fitted, then the first network of each arm, the second, and so on."""
    known = open_potential(truth.potential)
    yield Subject("truth", 1, known, known.identity)
    if (fitted := run / FITTED_TEACHER).exists():
        yield Subject("teacher", 1, load_potential(fitted), hash_of_file(fitted))
    for number in range(max(len(arm.networks) for arm in summary.arms.values())):
        for arm, result in summary.arms.items():
            if number < len(result.networks):
                file = run / result.networks[number].checkpoint
                yield Subject(arm, number + 1, load_potential(file), hash_of_file(file))


def measured(
    subject: Subject, truth: Truth, oracle: Potential, files: dict[str, Path], sizes: Sizes, folder: Path
) -> dict[str, Any]:
    """Everything that one potential is measured on; read where it is done."""
    stage = Stage(folder / subject.folder, {
        "potential": subject.key, "truth": oracle.identity, "own": truth.own,
        "sizes": {key: value for key, value in asdict(sizes).items() if key.startswith(("own", "breaking", "heat"))},
        "breaking": truth.breaking, "data": [hash_of_file(file) for file in files.values()],
    })  # fmt: skip
    if stage.done:
        return stage.result()
    stage.begin()
    tests = [name for name in files if name not in ("train", "val")]
    sets = {name: read_structures(files[name]) for name in tests}
    errors = {name: prediction_errors(subject.potential, structures).plain() for name, structures in sets.items()}
    starts = [atoms for atoms in sets["test"]]
    place = folder / subject.folder
    known = [atoms.get_potential_energy() / len(atoms) for atoms in read_structures(files["train"])]
    own = own_run(subject, truth, oracle, starts[: sizes.own], min(known), sizes, place / "own")
    settings = DynamicsSettings(
        temperature=truth.breaking, steps=sizes.breaking_steps, pressure_interval=0, checkpoint_steps=10_000
    )
    places = [100 * subject.number + k for k in range(sizes.breaking)]
    verdicts = simulate(
        subject.potential, starts[: sizes.breaking], settings, place / "breaking", progress=False, indices=places
    )
    ramp = heated(subject, truth, starts[: sizes.heated], sizes, place / "stress")
    return stage.finish({"errors": errors, "own": own, "breaking": counted(verdicts), "heating": ramp})


def own_run(
    subject: Subject, truth: Truth, oracle: Potential, starts: list[Atoms], lowest: float, sizes: Sizes, out: Path
) -> dict[str, Any]:
    """A run at a high temperature, with its errors by the truth, and how many structures sink too deep."""
    settings = DynamicsSettings(
        temperature=truth.own, steps=sizes.own_steps, trajectory_interval=max(sizes.own_steps // FRAMES, 1),
        pressure_interval=0, rdf_interval=5, rdf_start=sizes.own_steps // 3,
    )  # fmt: skip
    places = [100 * subject.number + k for k in range(len(starts))]
    verdicts = simulate(subject.potential, starts, settings, out, progress=False, indices=places)
    along = compare_with_oracle(out, oracle, OracleSettings(oracle=truth.potential, oracle_frames=FRAMES))
    deepest = []
    for place in places:
        frames = ase.io.read(out / "trajectories" / f"{place:05d}.extxyz", ":")
        deepest.append(min(frame.get_potential_energy() / len(frame) for frame in frames))
    return {
        **counted(verdicts),
        "too_deep": sum(bool(energy < lowest - TOO_DEEP) for energy in deepest),
        "deepest": min(deepest),
        "wrong": along.wrong.count,
        "whole_and_wrong": along.whole_and_wrong.count,
        "along": [row.plain() for row in along.rows],
    }


def heated(subject: Subject, truth: Truth, starts: list[Atoms], sizes: Sizes, out: Path) -> dict[str, Any]:
    """Where structures break and melt on a ramp of the temperature; ``None``: not up to its end."""
    heating = {"temperature_end": truth.heating, "rate": sizes.heating_rate, "seed": subject.number}
    points = run_stress_tests(subject.potential, starts, {"heating": heating}, out, progress=False)["heating"].points
    return {
        "broke": [point.value if point.broken else None for point in points],
        "melted": [point.metrics["lindemann_temperature"] for point in points],
        "reasons": [point.reason for point in points],
        "end": truth.heating,
    }


def counted(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """How many structures failed, and for which reasons."""
    reasons = {reason: sum(reason in v.reasons for v in verdicts) for v in verdicts for reason in v.reasons}
    return {"structures": len(verdicts), "failed": sum(v.failed for v in verdicts), "reasons": reasons}


def rdf_error(folder: Path, reference: Path) -> dict[str, float]:
    """Errors of the radial distribution functions of an own run against the truth's, means over pairs of elements."""
    found = rdf_errors(read_rdfs(folder).average, read_rdfs(reference).average).values()
    return {
        what: float(np.mean([v for e in found if (v := getattr(e, what)) is not None]))
        for what in ("mae", "wasserstein")
    }


def experiment(
    truth: Truth, sizes: Sizes, folder: Path, config: Callable[[dict[str, Path], Path], Config]
) -> dict[str, Any]:
    """All of it; see the head of this file. config : gives the run on those files, written to that folder."""
    files = make_data(truth, sizes, folder / DATA)
    summary = mdl_physpre.run(config(files, folder), out=folder / RUN)
    oracle = open_potential(truth.potential)
    found: dict[str, list[dict[str, Any]]] = {}
    for subject in subjects(truth, folder / RUN, summary):
        result = measured(subject, truth, oracle, files, sizes, folder / MEASURED)
        result["rdf"] = rdf_error(folder / MEASURED / subject.folder / "own", folder / MEASURED / "truth-1" / "own")
        found.setdefault(subject.arm, []).append(result)
        content = {"truth": truth.title, "sizes": asdict(sizes), "data": stage_result(folder / DATA), "networks": found}
        content["arms"] = {arm: arm_results(results) for arm, results in found.items()}
        write_json(folder / "known_truth.json", content)
        (folder / "known_truth.md").write_text(table(content))
    draw(content, folder)
    return content


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", choices=list(TRUTHS), default="kumagai")
    parser.add_argument("--out", type=Path, help="folder; runs/known-truth-TRUTH where it is left out")
    parser.add_argument(
        "--train", type=int, help=f"structures to train on, {Sizes.train} where left out; a quarter as many to validate"
    )
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--replicas", type=int, default=3, help="networks of each arm")
    parser.add_argument("--set", nargs="+", default=[], dest="overrides", metavar="KEY=VALUE", help="of the run")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, in each process")
    parser.add_argument("--processes", type=int, default=1, help="networks that are trained at the same time")
    parser.add_argument("--quick", action="store_true", help="everything tiny, to see that it runs")
    chosen = parser.parse_args(arguments)
    truth = TRUTHS[chosen.truth]
    if truth.missing:
        parser.exit(0, f"{chosen.truth} is left out: {truth.missing}\n")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sizes = QUICK if chosen.quick else Sizes()

    def config(files: dict[str, Path], folder: Path) -> Config:
        asked = configuration(files, chosen.arms, chosen.replicas, chosen.threads, chosen.processes)
        file = folder / "run.yml"
        file.write_text(yaml.safe_dump(asked))
        return load_config(file, [*(QUICK_RUN if chosen.quick else ()), *chosen.overrides])

    out = chosen.out or Path("runs") / f"known-truth-{chosen.truth}"
    if chosen.train:
        sizes = replace(sizes, train=chosen.train, val=max(2, round(chosen.train / 4)))
    content = experiment(truth, sizes, out, config)
    print(table(content))
    return content


if __name__ == "__main__":
    main()
