"""TorchSim (package ``torch-sim-atomistic``) in both directions: a potential as its model, its model as a potential.

TorchSim keeps cell vectors in columns, and states have one periodicity for all structures. This module needs
``pip install "mdl-physpre[torchsim]"``; nothing else in the package imports it at the start.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_masses
from torch import Tensor

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.adapters.from_ase import ForeignPotential
from mdl_physpre.potentials.base import Potential, Predictions
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import AtomGraph, batch_by_edges, build_graph
from mdl_physpre.utils.devices import precision_and_device

try:
    import torch_sim
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise ConfigError(
        f"TorchSim cannot be imported ({error}); install it with: pip install 'mdl-physpre[torchsim]' "
        "(Python 3.11 or later)"
    ) from error


class TorchSimModel(ModelInterface):
    """A potential of this package as a TorchSim ``ModelInterface``.

    ``model(state)`` gives ``energy`` (n_systems,) eV, ``forces`` (n_atoms, 3) eV/Å, ``stress`` (n_systems, 3, 3)
    eV/Å³, tension positive, as :func:`mdl_physpre.evaluate` gives them for the same structures, in the precision
    ``dtype``. Neighbour lists are complete and built anew in every call; positions need not lie inside the cell.

    Parameters
    ----------
    potential : any :class:`Potential`; the model works on a copy, so that the potential keeps its precision.
    device : where it runs; the CPU where ``None``.
    dtype : precision of the model, which TorchSim takes for the state as well; that of the potential's parameters where
        ``None`` (float64 without any).
    compute_forces, compute_stress : what a call computes; both can be set later.
    """

    def __init__(
        self,
        potential: Potential,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        compute_forces: bool = True,
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        self._device = torch.device(device or "cpu")
        self._dtype = dtype or precision_and_device(potential)[0]
        self._compute_forces, self._compute_stress = compute_forces, compute_stress and potential.gives_stress
        self._memory_scales_with = "n_atoms_x_density"
        self.potential = copy.deepcopy(potential).to(device=self._device, dtype=self._dtype).eval()
        self.potential.requires_grad_(False)

    @property
    def compute_forces(self) -> bool:
        """Whether forces are computed."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, wanted: bool) -> None:
        self._compute_forces = wanted

    @property
    def compute_stress(self) -> bool:
        """Whether stress is computed."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, wanted: bool) -> None:
        if wanted and not self.potential.gives_stress:
            raise NotImplementedError(f"{type(self.potential).__name__} gives no stress")
        self._compute_stress = wanted

    def forward(self, state: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Energy, forces and stress of a ``SimState``, or of a dictionary with its fields; the state stays as it is."""
        graph = build_graph(_structures(state), self.potential.cutoff, dtype=self._dtype).to(self._device)
        found = evaluate(self.potential, graph, forces=self._compute_forces, stress=self._compute_stress)
        results = {"energy": found.energies.detach().to(self._dtype)}
        for name, values in (("forces", found.forces), ("stress", found.stress)):
            if values is not None:
                results[name] = values.detach().to(self._dtype)
        return results


def _structures(state: Any) -> list[Atoms]:
    """The structures of a TorchSim state."""

    def get(name: str) -> Any:
        return state.get(name) if isinstance(state, dict) else getattr(state, name)

    positions = get("positions").detach().double().cpu().numpy()
    numbers = get("atomic_numbers").cpu().numpy()
    cells = get("cell").detach().double().cpu().numpy().reshape(-1, 3, 3).transpose(0, 2, 1)
    owner, pbc = get("system_idx"), get("pbc")
    owner = np.zeros(len(positions), dtype=int) if owner is None else owner.cpu().numpy()
    pbc = pbc.cpu().numpy() if isinstance(pbc, Tensor) else True if pbc is None else pbc
    return [Atoms(numbers[owner == k], positions[owner == k], cell=cell, pbc=pbc) for k, cell in enumerate(cells)]


class TorchSimPotential(ForeignPotential):
    """A TorchSim ``ModelInterface`` as a potential: its ``forward`` on a ``SimState`` of the graph's structures.

    The model finds its own neighbours (``cutoff`` is 0, graphs have no edges), computes in its own precision, and has
    no parameters here. Structures with and without periodicity go to it in different calls. It is not asked for
    structures that are periodic in some directions only, because a TorchSim state before 0.4 cannot hold them.

    Parameters
    ----------
    model : a ``ModelInterface``, or a callable without arguments that returns one.
    max_atoms : atoms in one call, a limit on memory; a larger structure is alone.
    name, source : what identifies the model with its weights and its code, as for
        :class:`~mdl_physpre.potentials.adapters.from_ase.ForeignPotential`.

    Raises
    ------
    ConfigError : the callable raises, or what it returns is no ``ModelInterface``.
    """

    kind = "a TorchSim model"

    def __init__(
        self, model: Any | Callable[[], Any], name: str | None = None, max_atoms: int = 4000, source: str = ""
    ) -> None:
        built = model
        if not isinstance(model, ModelInterface):
            try:
                built = model()
            except Exception as error:
                what = getattr(model, "__name__", model)
                raise ConfigError(f"{what} cannot be built: {type(error).__name__}: {error}") from error
        if not isinstance(built, ModelInterface):
            raise ConfigError(f"found {type(built).__name__}, expected a torch_sim ModelInterface")
        super().__init__(built, name, source)
        # in a tuple: the model's parameters are not this potential's, to be converted to another precision
        self._model = (built.eval(),)
        self.max_atoms = max_atoms
        if not built.compute_stress:
            try:
                built.compute_stress = True
            except (NotImplementedError, AttributeError):
                self.gives_stress = False

    @property
    def model(self) -> Any:
        """The TorchSim model."""
        return self._model[0]

    def predictions(self, graph: AtomGraph, forces: bool = True, stress: bool = True) -> Predictions:
        """Energies, forces and stress; stress is NaN where there is no periodic cell.

        Raises
        ------
        DataError : a structure that is periodic in some directions only; stress asked of a model that has none.
        """
        periodic, mixed = graph.pbc.all(1), graph.pbc.any(1) & ~graph.pbc.all(1)
        if bool(mixed.any()):
            raise DataError(
                f"structure {int(mixed.nonzero()[0])} of the batch is periodic in some directions only, which TorchSim "
                "cannot hold; make it periodic in all three, with vacuum"
            )
        if stress and bool(periodic.any()) and not self.gives_stress:
            raise DataError(f"{self.name} gives no stress, which is asked for here")
        n = len(graph.n_atoms)
        energies = torch.zeros(n, dtype=torch.float64, device=graph.pos.device)
        found = Predictions(energies)
        found.forces = torch.zeros_like(graph.pos) if forces else None
        found.stress = graph.pos.new_full((n, 3, 3), torch.nan) if stress else None
        for pbc, members in self._parts(graph, periodic):
            atoms = torch.isin(graph.batch, members)
            with torch.inference_mode(False), torch.enable_grad():  # a model may differentiate its energy
                output = self.model(self._state(graph, members, atoms, pbc))
            energies[members] = output["energy"].detach().reshape(-1).to(energies)
            if found.forces is not None:
                found.forces[atoms] = output["forces"].detach().to(graph.pos)
            if found.stress is not None and pbc:
                found.stress[members] = output["stress"].detach().to(graph.pos)
        return found

    def _parts(self, graph: AtomGraph, periodic: Tensor) -> Iterator[tuple[bool, Tensor]]:
        """Periodicity and numbers of the structures of each call."""
        for pbc in (True, False):
            members = (periodic == pbc).nonzero().flatten()
            for part in batch_by_edges(graph.n_atoms[members].cpu().numpy(), self.max_atoms):
                yield pbc, members[part]

    def _state(self, graph: AtomGraph, members: Tensor, atoms: Tensor, pbc: bool) -> Any:
        device, dtype = self.model.device, self.model.dtype
        cells = graph.cell.index_select(0, members)
        if not pbc:  # TorchSim wants a cell of some volume even where nothing repeats
            empty = torch.linalg.det(cells).abs() < 1e-12
            cells = torch.where(empty[:, None, None], torch.eye(3).to(cells), cells)
        numbers = graph.z[atoms]
        place = torch.zeros(len(graph.n_atoms), dtype=torch.int64, device=graph.z.device)
        place[members] = torch.arange(len(members), device=graph.z.device)
        return torch_sim.SimState(
            positions=graph.pos[atoms].detach().to(device, dtype),
            masses=torch.from_numpy(atomic_masses)[numbers.cpu()].to(device, dtype),
            cell=cells.detach().transpose(1, 2).to(device, dtype).contiguous(),
            pbc=pbc,
            atomic_numbers=numbers.to(device),
            system_idx=place[graph.batch[atoms]].to(device),
        )
