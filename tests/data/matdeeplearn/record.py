"""Runs MatDeepLearn's own networks; writes what stands beside this file.

    MATDEEPLEARN_HOME=…/MatDeepLearn_dev python tests/data/matdeeplearn/record.py

writes, for a CGCNN and an equivariant transformer of small size with random weights, a checkpoint as the host's trainer
writes it, its YAML, and in ``results.json`` the host's energies, forces and stress on three small cells.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal

from mdl_physpre.hosts.locate import HOSTS, put_on_path

HERE = Path(__file__).parent
CUTOFF = 4.0
MODELS = {
    "cgcnn": {"name": "CGCNN", "dim1": 9, "dim2": 7, "pre_fc_count": 1, "gc_count": 2, "post_fc_count": 2,
              "batch_norm": False, "act": "silu", "dropout_rate": 0.0},
    "torchmd_et": {"name": "torchmd_etEarly", "hidden_channels": 12, "num_layers": 3, "num_rbf": 8, "num_heads": 3,
                   "num_post_layers": 2, "post_hidden_channels": 10, "max_z": 30, "aggr": "add"},
}  # fmt: skip
COMMON = {"pool": "global_add_pool", "pool_order": "late", "prediction_level": "graph", "model_ensemble": 1,
          "gradient": True, "otf_edge_index": True, "otf_edge_attr": True, "otf_node_attr": True}  # fmt: skip
GRAPH = {"edge_calc_method": "ocp", "cutoff_radius": CUTOFF, "n_neighbors": 250, "num_offsets": 2, "node_dim": 100,
         "edge_dim": 11}  # fmt: skip


def structures() -> dict[str, Atoms]:
    """Silica, phosphorus and a lithium manganese oxide, out of equilibrium, wide enough for the host's images."""
    silica = crystal(
        ["Si", "O"], [(0.4697, 0, 0), (0.4135, 0.2669, 0.1191)], spacegroup=152,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )  # fmt: skip
    phosphorus = bulk("P", "sc", a=2.4) * (2, 2, 2)
    oxide = bulk("LiO", "rocksalt", a=4.2, cubic=True)
    oxide.symbols[[0, 4]] = "Mn"
    found = {"silica": silica, "phosphorus": phosphorus, "Li-Mn-O": oxide}
    for seed, atoms in enumerate(found.values()):
        rng = np.random.default_rng(seed)
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.03 * rng.uniform(-1, 1, (3, 3))), scale_atoms=True)
        atoms.positions += 0.1 * rng.normal(size=(len(atoms), 3))
    return found


def host_model(keys: dict, graph: dict):
    """The host's network, as its calculator builds it."""
    put_on_path(HOSTS["matdeeplearn"])
    if keys["name"] == "CGCNN":
        from matdeeplearn.models.cgcnn import CGCNN as cls
    else:
        from matdeeplearn.models.torchmd_etEarly import TorchMD_ET_Early as cls
    return cls(
        node_dim=graph["node_dim"], edge_dim=graph["edge_dim"], output_dim=1, cutoff_radius=graph["cutoff_radius"],
        n_neighbors=graph["n_neighbors"], graph_method=graph["edge_calc_method"], num_offsets=graph["num_offsets"],
        **keys,
    ).eval()  # fmt: skip


def host_results(model, atoms: Atoms) -> dict[str, list]:
    """Energy (eV), forces (eV/Å) and stress (eV/Å³) of the host's network."""
    from torch_geometric.data import Batch, Data

    data = Data(
        pos=torch.tensor(atoms.positions, dtype=torch.float32),
        cell=torch.tensor(atoms.cell[:], dtype=torch.float32)[None],
        z=torch.tensor(atoms.numbers).long(), n_atoms=torch.tensor([len(atoms)]), structure_id=[["0"]],
    )  # fmt: skip
    if not hasattr(model, "pool_order"):  # versions that know no late pooling of the transformer give it by atom
        model.prediction_level = "node"
    found = model(Batch.from_data_list([data]))
    return {"energy": float(found["output"].sum()), "forces": found["pos_grad"].tolist(),
            "stress": found["cell_grad"][0].tolist()}  # fmt: skip


def main() -> None:
    frames = structures()
    results: dict = {
        "structures": {
            name: {"numbers": a.numbers.tolist(), "positions": a.positions.tolist(), "cell": a.cell[:].tolist()}
            for name, a in frames.items()
        }
    }
    for name, own in MODELS.items():
        torch.manual_seed(7)
        keys = {**own, **COMMON}
        model = host_model(keys, GRAPH)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key != "distance_expansion.betas":
                    parameter.add_(0.4 * torch.randn_like(parameter))
        optimiser = torch.optim.AdamW(model.parameters())
        content = {
            "epoch": 3, "step": 30, "state_dict": model.state_dict(), "optimizer": optimiser.state_dict(),
            "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser).state_dict(), "scaler": None,
            "best_metric": np.float64(1.5), "identifier": name, "seed": 7,
        }  # fmt: skip
        torch.save(content, HERE / f"{name}.pt")
        yml = {"trainer": "property", "model": keys, "dataset": {"preprocess_params": GRAPH}}
        (HERE / f"{name}.yml").write_text(yaml.safe_dump(yml, sort_keys=False))
        results[name] = {key: host_results(model, atoms) for key, atoms in frames.items()}
    (HERE / "results.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
