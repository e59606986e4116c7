"""An ASE calculator for any checkpoint of MatDeepLearn, whatever its model, through MatDeepLearn itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.cell import Cell
from ase.stress import full_3x3_to_voigt_6_stress
from torch_geometric.data import Batch

from mdl_physpre.errors import CheckpointError
from mdl_physpre.hosts.matdeeplearn.checks import images_needed
from mdl_physpre.hosts.matdeeplearn.data import as_data
from mdl_physpre.hosts.matdeeplearn.names import host
from mdl_physpre.hosts.matdeeplearn.perturb import reference_table
from mdl_physpre.potentials.checkpoints.matdeeplearn import load_checkpoint, read_config
from mdl_physpre.structures.formats.matdeeplearn_json import item_from_atoms


class MatDeepLearnCalculator(Calculator):
    """Energy, forces and stress of a model of MatDeepLearn, in evaluation mode, averaged over an ensemble.

    What MatDeepLearn's own calculator leaves out: positions are wrapped, and ``num_offsets`` and ``n_neighbors`` are
    raised to what the cell needs, so that no neighbour is lost; stress is in Voigt order, +(1/V) dE/dε also in a
    left-handed cell; dropout is off; energies of the elements in ``physpre.energy_reference`` are added.

        physpre md "calculator:mdl_physpre.hosts.matdeeplearn.MatDeepLearnCalculator?checkpoint=best_checkpoint.pt" …

    Parameters
    ----------
    checkpoint : ``best_checkpoint.pt``, or several of an ensemble.
    config : its YAML; beside it or up to two folders above, as ``config.yml``, where None.
    device : of the networks.

    Raises
    ------
    CheckpointError : files that cannot be read, or that do not fit each other.
    HostError : MatDeepLearn is not installed, or another version.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(
        self,
        checkpoint: str | Path | Sequence[str | Path],
        config: str | Path | Mapping[str, Any] | None = None,
        device: str = "cpu",
        **given: Any,
    ) -> None:
        super().__init__(**given)
        files = [Path(c) for c in ([checkpoint] if isinstance(checkpoint, (str, Path)) else checkpoint)]
        self.source, keys = read_config(files[0], config)
        try:
            given_graph = dict(keys["dataset"]["preprocess_params"])
            model = {**keys["model"], "model_ensemble": 1, "gradient": True, "prediction_level": "graph"}
            self.cutoff = float(given_graph["cutoff_radius"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.source}: no configuration of MatDeepLearn: {error} is missing") from error
        for key in ("otf_edge_index", "otf_edge_attr", "otf_node_attr"):
            model[key] = True
        defaults = {"edge_calc_method": "ocp", "n_neighbors": 250, "num_offsets": 2, "node_dim": 100, "edge_dim": 50}
        graph = {**defaults, **given_graph}
        self.reference = reference_table((keys.get("physpre") or {}).get("energy_reference") or {})
        self.device = torch.device(device)
        setup_models()
        build = host().registry.get_model_class(model["name"])
        self.graph_method = graph["edge_calc_method"]
        self.models = []
        for file in files:
            with torch.random.fork_rng(devices=[]):  # the weights that it starts with are drawn for nothing
                built = build(
                    node_dim=graph["node_dim"],
                    edge_dim=graph["edge_dim"],
                    output_dim=1,
                    cutoff_radius=self.cutoff,
                    n_neighbors=graph["n_neighbors"],
                    graph_method=graph["edge_calc_method"],
                    num_offsets=graph["num_offsets"],
                    **model,
                ).to(self.device)
            state = load_checkpoint(file, self.device)["state_dict"]
            try:
                built.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:500]
                raise CheckpointError(f"{file} does not fit {self.source}: {reason}") from error
            self.models.append(built.eval())

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] | None = None, system_changes: Any = all_changes
    ) -> None:
        """Energy (eV), forces (eV/Å) and, where the structure is periodic in all directions, stress (eV/Å³)."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        wrapped = padded(self.atoms, self.cutoff)
        wrapped.wrap()
        cell = wrapped.cell.array
        batch = Batch.from_data_list([as_data(item_from_atoms(wrapped, 0))]).to(self.device)
        outputs = []
        for model in self.models:
            model.n_neighbors = max(len(wrapped), 1) * 10_000  # none is cut off
            model.num_offsets = images_needed([wrapped], self.cutoff)
            model.graph_method = self.graph_method
            outputs.append(model(batch.clone()))
        energy, forces = (
            torch.stack([out[key].detach() for out in outputs]).double().mean(0).cpu().numpy()
            for key in ("output", "pos_grad")
        )
        total = float(energy.reshape(())) + float(self.reference[wrapped.numbers].sum())
        self.results = {"energy": total, "free_energy": total, "forces": forces}
        if self.atoms.pbc.all():
            stress = torch.stack([out["cell_grad"].detach() for out in outputs]).double().mean(0).cpu().numpy()
            # the host divides by a volume with a sign, that of the handedness of the cell
            handedness = 1.0 if all(_bring_their_own_sign(m) for m in self.models) else np.sign(np.linalg.det(cell))
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress.reshape(3, 3)) * handedness


def _bring_their_own_sign(model: Any) -> bool:
    from mdl_physpre.hosts.matdeeplearn.eam_model import EAMInteractionModel
    from mdl_physpre.hosts.matdeeplearn.networks import Network

    return isinstance(model, (EAMInteractionModel, Network))


def padded(atoms: Atoms, cutoff: float) -> Atoms:
    """A copy that is periodic in all directions, with so much vacuum in the others that no image is a neighbour."""
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    open_axes = [k for k in range(3) if not atoms.pbc[k]]
    vectors = copy.cell.array.copy()
    vectors[open_axes] = 0.0
    completed = Cell(vectors).complete().array
    for axis in open_axes:
        direction = completed[axis] / np.linalg.norm(completed[axis])
        along = copy.positions @ direction
        completed[axis] = direction * (np.ptp(along) + 1.1 * cutoff)
    copy.set_cell(completed)
    return copy


def setup_models() -> None:
    """Register MatDeepLearn's models, as its trainer's start does."""
    from mdl_physpre.hosts.matdeeplearn.plugin import register

    register()  # first, because it also puts MatDeepLearn on the path
    import_module("matdeeplearn.common.trainer_context").setup_imports()
