"""The backbone ``physpre-m3gnet``: our M3GNet behind MatterTune's module. Importing this imports the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from mattertune.finetune.base import FinetuneModuleBase, FinetuneModuleBaseConfig, ModelOutput
from mattertune.finetune.metrics import FinetuneMetrics
from mattertune.normalization import NormalizationContext
from mattertune.registry import backbone_registry
from torch import Tensor, nn

from mdl_physpre.errors import ConfigError
from mdl_physpre.hosts.mattertune.adapters import check_adapters, merged_state
from mdl_physpre.hosts.mattertune.evaluation import RootAtoms
from mdl_physpre.hosts.mattertune.graphs import checked_data, collate, host_labels, labelled, normalization_counts
from mdl_physpre.hosts.mattertune.network import SIZES, build_network, element_symbols, fresh_output_head
from mdl_physpre.hosts.mattertune.properties import StressOfRecentASE, inline_references, property_names
from mdl_physpre.potentials.backbones.m3gnet.network import M3GNet
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import AtomGraph
from mdl_physpre.structures.neighbours import neighbour_list


class LabelledMetrics(FinetuneMetrics):
    """The host's errors, of the structures and atoms that have the label."""

    def forward(self, predictions: dict[str, Any], labels: dict[str, Any]) -> Any:
        """Errors by name, added up over batches."""
        return super().forward(*labelled(predictions, labels))


@backbone_registry.register
class PhyspreM3GNetConfig(FinetuneModuleBaseConfig):
    """Configuration of the backbone ``physpre-m3gnet``.

    The sizes (``elements`` to ``energy_scale``) are those of :class:`~mdl_physpre.potentials.M3GNet`. Left at null they
    are the checkpoint's, or the defaults; given beside a checkpoint they have to agree with it.
    """

    name: Literal["physpre-m3gnet"] = "physpre-m3gnet"

    checkpoint: str | None = None
    """Weights to start from, of mdl-physpre, of MatterSim (.pth) or of MatterTune (.ckpt); null: random."""

    energy_reference: dict[int, float] | None = None
    """Energies (eV by atomic number) that are added to those that the network starts with."""

    elements: list[str] | None = None
    """Elements that the potential knows; others are refused. Null: all up to ``max_z``."""

    num_blocks: int | None = None
    units: int | None = None
    max_l: int | None = None
    max_n: int | None = None
    cutoff: float | None = None
    """Å."""
    threebody_cutoff: float | None = None
    """Å."""
    max_z: int | None = None
    energy_scale: float | None = None
    """eV for each unit of the network's output."""

    reset_output_heads: bool = False
    """Start with a random read-out. The host's other backbones have true here; the read-out is part of a potential."""

    shuffle: bool = True
    """Draw the order of the training structures anew in every epoch; the host itself keeps that of the file."""

    @classmethod
    def ensure_dependencies(cls) -> None:
        """Nothing beyond this package is needed."""

    def create_model(self) -> PhyspreM3GNetModule:
        """A module with this configuration."""
        return PhyspreM3GNetModule(self)


class PhyspreM3GNetModule(FinetuneModuleBase[AtomGraph, AtomGraph, PhyspreM3GNetConfig]):
    """Our M3GNet as a module of MatterTune: E (eV), F = −dE/dr (eV/Å), σ = (1/V) dE/dε (eV/Å³, tension positive).

    Forces and stress are derivatives of the energy always. Raises ConfigError for properties that it has not.
    """

    backbone: M3GNet

    @classmethod
    def hparams_cls(cls) -> type[PhyspreM3GNetConfig]:
        return PhyspreM3GNetConfig

    # --- the network --------------------------------------------------------------------------------------------------

    def create_model(self) -> None:
        """Build the network, from scratch or from a checkpoint. Raises ConfigError, CheckpointError."""
        self.energy_name, self.forces_name, self.stress_name = property_names(self.hparams.properties)
        sizes = {key: value for key in SIZES if (value := getattr(self.hparams, key)) is not None}
        normalizers = inline_references(self.hparams.model_dump(mode="json")["normalizers"])
        self.backbone = build_network(self.hparams.checkpoint, sizes, normalizers)
        if self.hparams.energy_reference:
            table = torch.zeros(len(chemical_symbols), dtype=torch.float64)
            for z, energy in self.hparams.energy_reference.items():
                table[int(z)] = float(energy)
            self.backbone.shift_reference(table)
        if self.hparams.reset_output_heads:
            self.backbone.final = fresh_output_head(self.backbone)
        if self.hparams.freeze_backbone:
            for parameter in self.pretrained_backbone_parameters():
                parameter.requires_grad_(False)
        self.structures_in_batch = 1

    def apply_pruning_message_passing(self, message_passing_steps: int | None) -> None:
        """Keep the first ``message_passing_steps`` blocks; the others are taken out of the network.

        Raises ConfigError for fewer than one.
        """
        if message_passing_steps is None or message_passing_steps >= self.backbone.num_blocks:
            return
        if message_passing_steps < 1:
            raise ConfigError(f"pruning_message_passing is {message_passing_steps}; at least one block must stay")
        self.backbone.graph_conv = self.backbone.graph_conv[:message_passing_steps]
        self.backbone.num_blocks = message_passing_steps

    def apply_callable_to_backbone(self, fn: Callable[[nn.Module], Any]) -> Any:
        """``fn(network)``, which may put adapters (LoRA) into it.

        Raises ConfigError for what cannot be merged into the weights.
        """
        result = fn(self.backbone)
        check_adapters(self.backbone)
        return result

    def pretrained_backbone_parameters(self) -> Iterable[nn.Parameter]:
        """All parameters but those of the read-out."""
        return [p for name, p in self.backbone.named_parameters() if not name.startswith("final.")]

    def output_head_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters of the read-out."""
        return list(self.backbone.final.parameters())

    def trainable_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Names and parameters that are not frozen."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    # --- prediction ---------------------------------------------------------------------------------------------------

    def requires_disabled_inference_mode(self) -> bool:
        """Forces and stress are gradients, which inference mode does not give."""
        return bool(self.forces_name or self.stress_name)

    @contextlib.contextmanager
    def model_forward_context(self, data: AtomGraph, mode: str) -> Iterator[None]:
        """Without mixed precision, which the host would have in validation and predictions, too; C code has none."""
        self.structures_in_batch = len(data.n_atoms)
        with torch.autocast(data.pos.device.type, enabled=False):
            yield

    def model_forward(self, batch: AtomGraph, mode: str) -> ModelOutput:
        """Energies (B,), forces (N, 3), stresses (B, 3, 3), of those properties that are configured."""
        return self._predicted(batch, mode, self.backbone)

    def model_forward_partition(self, batch: AtomGraph, mode: str, using_partition: bool = False) -> ModelOutput:
        """As :meth:`model_forward`, of the energy of the atoms in ``root_indices_mask`` alone.

        A prediction also gives ``energies_per_atom`` (N,). Raises ConfigError where a normalizer acts on predicted
        energies: the host adds up energies of atoms without it.
        """
        if not using_partition:
            return self.model_forward(batch, mode)
        if mode == "predict" and any(n.only_for_target for n in self.hparams.normalizers.get(self.energy_name, ())):
            raise ConfigError(
                "partitioned prediction: the host adds up the energies of atoms without the normalizers of the energy. "
                "Train with energy_reference in place of per_atom_references, then the references are in the network"
            )
        mask = batch.root_indices_mask.bool() if "root_indices_mask" in batch else None
        roots = RootAtoms(self.backbone, mask)
        output = self._predicted(batch, mode, roots)
        if mode == "predict" and roots.energies is not None:
            output["predicted_properties"]["energies_per_atom"] = roots.energies.detach()
        return output

    def _predicted(self, batch: AtomGraph, mode: str, potential: Any) -> ModelOutput:
        forces, stress = self.forces_name is not None, self.stress_name is not None
        create_graph = mode == "train" and torch.is_grad_enabled()
        found = evaluate(potential, batch, forces=forces, stress=stress, create_graph=create_graph)
        named = ((self.energy_name, found.energies), (self.forces_name, found.forces), (self.stress_name, found.stress))
        return {"predicted_properties": {name: v for name, v in named if name is not None and v is not None}}

    # --- data ---------------------------------------------------------------------------------------------------------

    def atoms_to_data(self, atoms: Atoms, has_labels: bool) -> AtomGraph:
        """The graph of a structure in double precision, with all edges, and its labels under the properties' names.

        A label that is missing is NaN. Raises DataError for an element that the potential does not know, or a structure
        without any label.
        """
        graph = checked_data(atoms, self.backbone)
        if has_labels:
            for prop, value in zip(self.hparams.properties, host_labels(atoms, self.hparams.properties)):
                graph[prop.name] = value
        if self.hparams.using_partition and "root_node_indices" in atoms.info:
            mask = torch.zeros(len(atoms), dtype=torch.long)
            mask[torch.as_tensor(np.asarray(atoms.info["root_node_indices"], dtype=np.int64))] = 1
            graph["root_indices_mask"] = mask
        return graph

    def create_dataloader(self, dataset: Any, has_labels: bool, **kwargs: Any) -> Any:
        """The host's loader; training structures come in a new order in every epoch."""
        trainer = self._trainer
        of_training = getattr(getattr(trainer, "datamodule", None), "datasets", {}).get("train")
        if self.hparams.shuffle and dataset is of_training:
            kwargs.setdefault("shuffle", True)
        return super().create_dataloader(dataset, has_labels, **kwargs)

    def cpu_data_transform(self, data: AtomGraph) -> AtomGraph:
        """Nothing is left to do: the graph is complete."""
        return data

    def collate_fn(self, data_list: list[AtomGraph]) -> AtomGraph:
        """One graph of several."""
        return collate(data_list)

    def gpu_batch_transform(self, batch: AtomGraph) -> AtomGraph:
        """Positions and cells in the precision of the network."""
        dtype = next(self.backbone.final.parameters()).dtype
        fields = {key: batch[key].to(dtype) for key in ("pos", "cell", "cell_offsets")}
        return AtomGraph.from_tensors(batch, **fields)

    def batch_to_labels(self, batch: AtomGraph) -> dict[str, Tensor]:
        """Energies (B,), forces (N, 3), stresses (B, 3, 3), by the properties' names."""
        return {prop.name: batch[prop.name] for prop in self.hparams.properties}

    def get_connectivity_from_data(self, data: AtomGraph) -> Tensor:
        """Centre and neighbour of each edge, (2, E)."""
        return data.edge_index.clone()

    def get_connectivity_from_atoms(self, atoms: Atoms) -> np.ndarray:
        """Centre and neighbour of each edge, (2, E)."""
        i, j, _ = neighbour_list(atoms.positions, np.asarray(atoms.cell[:]), atoms.pbc, self.backbone.cutoff)
        return np.stack([i, j]).astype(np.int32)

    def create_metrics(self) -> None:
        """The host's, of what has a label."""
        for part in ("train", "val", "test"):
            setattr(self, f"{part}_metrics", LabelledMetrics(self.hparams.properties))

    def _compute_loss(
        self, predictions: dict[str, Tensor], labels: dict[str, Tensor], log: bool = True, log_prefix: str = ""
    ) -> Tensor:
        """The host's, of what has a label. A property of which the batch has none adds 0."""
        found, known = labelled(predictions, labels)
        for name in known:
            if not len(known[name]):
                found[name], known[name] = predictions[name], predictions[name].detach()
        return super()._compute_loss(found, known, log=log, log_prefix=log_prefix)

    def create_normalization_context_from_batch(self, batch: AtomGraph) -> NormalizationContext:
        """Numbers of atoms (B,) and compositions (B, elements), the first column hydrogen."""
        return NormalizationContext(num_atoms=batch.n_atoms, compositions=normalization_counts(batch))

    def log(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Lightning's log, with the number of structures in the batch, which it could not tell from a graph.

        Of several processes, the losses of validation are the mean: by them the best epoch is chosen.
        """
        if kwargs.get("batch_size") is None:
            kwargs["batch_size"] = self.structures_in_batch
        kwargs.setdefault("sync_dist", not self.training)
        super().log(name, *args, **kwargs)

    # --- files and wrappers -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the file stand for itself: sizes in place of the start's checkpoint, adapters merged into weights."""
        parameters = self.hparams.model_dump(mode="json")
        parameters |= {"checkpoint": None, "energy_reference": None, "reset_backbone": False, **self._sizes()}
        parameters["pruning_message_passing"] = None
        parameters["normalizers"] = inline_references(parameters["normalizers"])
        checkpoint["hyper_parameters"] = parameters
        checkpoint["state_dict"] = merged_state(self, checkpoint["state_dict"])

    def _sizes(self) -> dict[str, Any]:
        """The arguments that build the network again, as plain values."""
        sizes = {key: value for key, value in self.backbone.hyperparameters().items() if key in SIZES}
        return {**sizes, "elements": element_symbols(self.backbone)}

    def ase_calculator(self, device: str = "cpu") -> Any:
        """The host's ASE calculator, with stress under versions of ASE that its own code does not know."""
        import ase.constraints

        calculator = super().ase_calculator(device)
        if not hasattr(ase.constraints, "full_3x3_to_voigt_6_stress") and "stress" in calculator._ase_prop_to_config:
            own = calculator._ase_prop_to_config["stress"]
            calculator._ase_prop_to_config["stress"] = StressOfRecentASE.model_validate(own.model_dump())
        return calculator
