"""What MatDeepLearn would do wrong with data or settings without a word, said before training, with the remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.structures.check import describe
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.neighbours import neighbour_list
from mdl_physpre.training.settings import TrainingSettings


@dataclass(frozen=True)
class Neighbourhood:
    """What a wrapped structure needs of MatDeepLearn's graph: images along an axis, and neighbours of an atom.

    images : (n_edges,) largest |S| of each edge, counted from wrapped positions.
    counts : (n_atoms,) neighbours.
    """

    images: np.ndarray
    counts: np.ndarray


def neighbourhood(atoms: Atoms, cutoff: float) -> Neighbourhood:
    """Images and neighbours within the cutoff, as MatDeepLearn would need them: periodic wherever there is a cell."""
    if not atoms.pbc.any():
        return Neighbourhood(np.zeros(0, int), np.zeros(len(atoms), int))
    wrapped = atoms.copy()
    wrapped.wrap()
    i, _, shifts = neighbour_list(wrapped.positions, wrapped.cell.array, wrapped.pbc, cutoff)
    return Neighbourhood(np.abs(shifts).max(axis=1, initial=0), np.bincount(i, minlength=len(atoms)))


def images_needed(structures: Sequence[Atoms], cutoff: float) -> int:
    """Images along an axis within which every structure has all its neighbours once wrapped; at least 1."""
    needed = 1
    for atoms in structures:
        if atoms.pbc.any() and atoms.cell.rank == 3:
            heights = 1.0 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
            needed = max(needed, int(np.ceil(cutoff / heights).max()))
    return needed


def about_structures(structures: Sequence[Atoms], wanted: Sequence[str]) -> list[str]:
    """What MatDeepLearn would drop or misread of the structures; ``wanted`` are the labels of the loss."""
    said: list[str] = []

    def note(indices: Sequence[int], text: str) -> None:
        if indices:
            named = ", ".join(describe(structures[k], k) for k in indices[:5]) + (", …" if len(indices) > 5 else "")
            said.append(f"{len(indices)} of {len(structures)} structures ({named}) {text}")

    note(
        [k for k, a in enumerate(structures) if len(a) == 1],
        "have one atom, which MatDeepLearn drops; they are left out. physpre run trains on them, or repeat the cell",
    )
    labels = [get_labels(a) for a in structures]
    for name in wanted:
        lacking = [k for k, found in enumerate(labels) if getattr(found, name) is None]
        note(
            lacking,
            f"have no {name}, which the loss needs of every structure; they are left out. Use a loss without {name} "
            "(ForceLoss has no stress), or physpre run, which leaves out the labels alone",
        )
    note(
        [k for k, a in enumerate(structures) if a.pbc.any() and not a.pbc.all()],
        "are periodic in some directions only, and MatDeepLearn takes them as periodic in all; give the others a "
        "vector with enough vacuum",
    )
    open_ones = [k for k, a in enumerate(structures) if not a.pbc.any()]
    if 0 < len(open_ones) < len(structures):
        note(
            open_ones,
            "have no cell; beside structures with one, MatDeepLearn finds no right neighbours for them. Put them into "
            "a large cell",
        )
    note(
        [k for k, a in enumerate(structures) if a.pbc.any() and np.linalg.det(a.cell.array) < 0],
        "have a left-handed cell, in which MatDeepLearn's stress has the wrong sign; two of its vectors are exchanged",
    )
    return said


def about_neighbours(structures: Sequence[Atoms], cutoff: float, graph: Mapping[str, Any]) -> list[str]:
    """Whether the limits of the graph cut neighbours off; ``graph`` is ``dataset.preprocess_params``."""
    said: list[str] = []
    if graph["edge_calc_method"] != "ocp":
        said.append(
            f"dataset.preprocess_params.edge_calc_method is {graph['edge_calc_method']!r}, with which a pair of atoms "
            "has one image at most; set it to ocp"
        )
    found = [neighbourhood(atoms, cutoff) for atoms in structures]
    lost = [int((n.images > graph["num_offsets"]).sum()) for n in found]
    if any(lost):
        worst = int(np.argmax([x / max(len(n.images), 1) for x, n in zip(lost, found)]))
        needed = max(int(n.images.max(initial=0)) for n in found)
        edges = len(found[worst].images)
        said.append(
            f"dataset.preprocess_params.num_offsets is {graph['num_offsets']}, too few for {sum(map(bool, lost))} of "
            f"{len(found)} structures at {cutoff:g} Å: structure {describe(structures[worst], worst)} would have "
            f"{edges - lost[worst]} of its {edges} edges; set it to {needed}"
        )
    most = max((int(n.counts.max(initial=0)) for n in found), default=0)
    if most > graph["n_neighbors"]:
        cut = sum(bool((n.counts > graph["n_neighbors"]).any()) for n in found)
        said.append(
            f"dataset.preprocess_params.n_neighbors is {graph['n_neighbors']}, and atoms of {cut} of {len(structures)} "
            f"structures have up to {most}: the farthest would be cut off, and energy would jump as they change; set "
            f"it to {most}"
        )
    return said


def about_source(src: Any) -> list[str]:
    """Whether MatDeepLearn's own reader would misread a data set JSON: stress as (3, 3) breaks its batches."""
    said = []
    for path in src.values() if isinstance(src, Mapping) else [src]:
        if not str(path).endswith(".json") or not Path(path).is_file():
            continue
        try:
            items = json.loads(Path(path).read_text())
        except ValueError:
            continue
        items = items if isinstance(items, list) else []
        flat = [
            k for k, item in enumerate(items) if isinstance(item, dict) and np.shape(item.get("stress", 0)) == (3, 3)
        ]
        if flat:
            said.append(
                f"{path}: stress of {len(flat)} structures has shape (3, 3), which MatDeepLearn's own reader puts into "
                "one row of batches; it is read right here. For other trainers rewrite it as (1, 3, 3): physpre "
                f"convert {Path(path).name} new.json"
            )
    return said


def about_model(model: Mapping[str, Any]) -> list[str]:
    """Keys of the network with which MatDeepLearn trains something else than it says."""
    said = []
    if "mean" in str(model.get("pool", "")):
        said.append(
            f"model.pool is {model['pool']}: the energy of a structure would not grow with it, and its label is a "
            "total energy; set it to global_add_pool"
        )
    for key, none in (("envelope", False), ("energy_scale", 1.0), ("edge_width", 0.2)):
        if model.get(key, none) != none:
            said.append(f"model.{key} is {model[key]}, which MatDeepLearn's {model['name']} lacks; it is ignored")
    if not (model["gradient"] and model["otf_edge_index"] and model["otf_edge_attr"]):
        said.append(
            "model.gradient, otf_edge_index or otf_edge_attr is False: there are no forces and no stress then; set all "
            "three to True"
        )
    return said


def about_training(settings: Mapping[str, TrainingSettings], use_amp: bool, sam: bool) -> list[str]:
    """Settings of this package's training, by stage, that MatDeepLearn's trainer has no place for."""
    default = TrainingSettings()
    said = []
    for key in (
        "max_edges", "recompute_edges", "early_stopping_patience", "max_seconds", "precision", "scheduler_loss",
        "loggers", "ema_decay", "schedule", "warmup_steps", "max_steps", "batch_atoms",
    ):  # fmt: skip
        if any(getattr(s, key) != getattr(default, key) for s in settings.values()):
            said.append(f"optim.{key} has no effect in MatDeepLearn's trainer; physpre run has it")
    if use_amp and sam:
        said.append("task.use_amp has no effect on arms with sam: their steps are in full precision")
    return said
