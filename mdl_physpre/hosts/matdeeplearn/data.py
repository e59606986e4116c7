"""Structures of this package as data sets of MatDeepLearn, read and batched by MatDeepLearn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from mdl_physpre.errors import DataError
from mdl_physpre.hosts.matdeeplearn.names import host
from mdl_physpre.potentials.energy_reference import fit_energy_reference
from mdl_physpre.structures.formats.matdeeplearn_json import item_from_atoms
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.utils.files import write_text

FILES = {"train": "train.json", "val": "val.json", "test": "test.json", "predict": "predict.json"}


def energy_reference(structures: Sequence[Atoms]) -> dict[str, float]:
    """Energies of the elements that explain most of the total energies, eV by symbol, as in ``physpre run``."""
    found = fit_energy_reference(structures).as_dict()
    return {chemical_symbols[z]: energy for z, energy in found.items()}


def usable(structures: Sequence[Atoms], wanted: Sequence[str]) -> list[Atoms]:
    """The structures that MatDeepLearn can train on: more than one atom, and every label of the loss."""
    return [a for a in structures if len(a) > 1 and all(getattr(get_labels(a), name) is not None for name in wanted)]


def host_items(structures: Sequence[Atoms], table: np.ndarray, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """Structures in MatDeepLearn's format: wrapped, in right-handed cells, ``y`` less the energies of the elements.

    Parameters
    ----------
    table : eV by atomic number, (119,).
    wanted : labels to write; a missing energy is 0, for predictions.
    """
    items = []
    for index, atoms in enumerate(structures):
        placed = atoms.copy()
        placed.calc = atoms.calc
        if placed.pbc.any():
            placed.wrap()
        item = item_from_atoms(placed, index)
        if placed.pbc.any() and np.linalg.det(placed.cell.array) < 0:
            item["cell"] = [item["cell"][k] for k in (1, 0, 2)]  # the same lattice, right-handed
        item["y"] = float(item.get("y", 0.0) - table[atoms.numbers].sum())
        for label in ("forces", "stress"):
            if label not in wanted:
                item.pop(label, None)
        items.append(item)
    names = [item["structure_id"] for item in items]
    if len(set(names)) < len(names):
        for index, item in enumerate(items):
            item["structure_id"] = f"{index}-{item['structure_id']}"
    return items


def as_data(item: Mapping[str, Any]) -> Any:
    """A structure of :func:`host_items` as MatDeepLearn's data sets hold it, with the labels that it has."""
    from torch_geometric.data import Data

    return Data(
        pos=torch.tensor(item["positions"]),
        cell=torch.tensor([item["cell"]]),
        z=torch.tensor(item["atomic_numbers"]),
        n_atoms=len(item["atomic_numbers"]),
        structure_id=[item["structure_id"]],
        u=torch.zeros((1, 3)),
        **({"y": torch.tensor([[item["y"]]])} if "y" in item else {}),
        **{label: torch.tensor(item[label]) for label in ("forces", "stress") if label in item},
    )


def write_items(path: Path, items: Sequence[Mapping[str, Any]]) -> None:
    """Write MatDeepLearn's JSON whole or not at all. Raises DataError where numbers are not finite."""
    try:
        text = "[" + ",\n".join(json.dumps(item, allow_nan=False) for item in items) + "]\n"
    except ValueError as error:
        raise DataError(f"{path}: a structure holds numbers that are not finite: {error}") from error
    write_text(path, text)


def host_dataset(
    folder: Path, parts: Mapping[str, Sequence[Mapping[str, Any]]], dataset: Mapping[str, Any], wanted: Sequence[str]
) -> dict[str, Any]:
    """Write the parts of a data set into a folder and have MatDeepLearn process them there.

    Parameters
    ----------
    folder : for the JSON files and MatDeepLearn's ``data_….pt``.
    parts : items of :func:`host_items` by ``train``, ``val``, ``test`` or ``predict``; empty ones are left out.
    dataset : MatDeepLearn's section ``dataset``, complete.
    wanted : labels beside ``y``.

    Returns
    -------
    The section for MatDeepLearn's own functions.
    """
    files = {name: folder / FILES[name] for name, items in parts.items() if items}
    for name, path in files.items():
        write_items(path, parts[name])
    own = {
        **dataset,
        "src": {name: str(path) for name, path in files.items()},
        "target_path": None,
        "data_format": "json",
        "pt_path": str(folder),
        "processed": True,
        "additional_attributes": [label for label in ("forces", "stress") if label in wanted],
    }
    host().process_data(own)
    return own


@contextmanager
def loading_of_datasets() -> Iterator[None]:
    """Let ``torch.load`` read MatDeepLearn's ``data.pt``, which holds classes of PyG, for as long as this lasts."""
    from torch_geometric.data import data, storage

    if not hasattr(torch.serialization, "safe_globals"):  # torch below 2.5, which loads everything
        yield
        return
    known = set(map(id, torch.serialization.get_safe_globals()))
    classes = [getattr(data, name) for name in ("Data", "DataEdgeAttr", "DataTensorAttr") if hasattr(data, name)]
    # those that are allowed already stay out: torch would take them off the list in the end
    with torch.serialization.safe_globals([c for c in (*classes, storage.GlobalStorage) if id(c) not in known]):
        yield
