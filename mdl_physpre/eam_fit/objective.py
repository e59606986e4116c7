"""The loss of an embedded-atom fit and its gradient over a whole data set, with distances tabulated once.

Distances do not change during a fit. So the half list of edges, unit vectors and distances are computed once, and
distances of a pair that agree within 0.001 Å share one value. The radial functions are then evaluated at the distinct
distances only, and an edge costs a few look-ups and sums, forward and back. This is work for the CPU, wherever the
potential is: blocks that fit into its cache, and sums in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mdl_physpre.potentials.base import edge_vectors
from mdl_physpre.potentials.derivatives import stress_of, volumes
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.eam.radial import PairParameters, radial_functions
from mdl_physpre.structures.graph import AtomGraph, GraphDataset, batch_by_edges
from mdl_physpre.structures.labels import LABELS

DISTANCE_STEP = 1e-3  # Å: distances of a pair closer than this share one value, their mean
BLOCK_EDGES = 200_000  # edges handled at a time, so that intermediate results stay in the processor's cache


@dataclass
class Block:
    """Some structures: their half list of edges, ordered by structure, and their labels (NaN where missing)."""

    i: Tensor  # (n_edges,) int32 atoms of an edge
    j: Tensor
    bin: Tensor  # (n_edges,) int32 distinct distance of an edge
    u: Tensor  # (3, n_edges) unit vector from i to j
    r: Tensor  # (n_edges,) Å
    ends: list[int]  # last edge + 1 of each structure
    element: Tensor  # (n_atoms,)
    batch: Tensor  # (n_atoms,) structure of an atom
    volume: Tensor  # (n_structures,) Å³, 0 without a cell
    labels: dict[str, Tensor]


@dataclass
class Loss:
    """Value, mean absolute errors by label, label less prediction of each energy (NaN where missing), and gradient."""

    value: float
    errors: dict[str, float]
    energies_left: Tensor
    gradient: dict[str, Tensor] | None = None


class FitObjective:
    """Σ_l w_l · mean |prediction − label| over energies, force components and stress components of a data set.

    Parameters
    ----------
    dataset : structures with labels; a missing label counts neither in the sum nor in the mean.
    potential : gives elements, pairs and the cutoff; its parameters are not used.
    weights : w of energies (total, 1/eV), forces (Å/eV), stress (Å³/eV).
    """

    def __init__(self, dataset: GraphDataset, potential: EAMInteraction, weights: tuple[float, float, float]) -> None:
        if potential.E0.device.type != "cpu":
            potential = EAMInteraction(**potential.hyperparameters())
        self.cutoff = potential.cutoff
        self.weights = dict(zip(LABELS, weights))
        self.n_elements, self.n_pairs = len(potential.elements), len(potential.pairs)
        keys, distances = [], []
        self.blocks = []
        compositions = []
        for indices in batch_by_edges(dataset.n_edges, 2 * BLOCK_EDGES):
            block, key = _block(dataset.batch(indices), potential)
            self.blocks.append(block)
            n = torch.zeros((len(block.ends), self.n_elements), dtype=torch.float64)
            one = torch.ones(len(block.element), dtype=torch.float64)
            compositions.append(n.index_put_((block.batch, block.element), one, accumulate=True))
            keys.append(key)
            distances.append(block.r.double())
        self.composition = torch.cat(compositions)  # (n_structures, n_elements) atoms of each element
        distinct, inverse = torch.unique(torch.cat(keys), return_inverse=True)
        r = torch.cat(distances)
        n = torch.bincount(inverse, minlength=len(distinct))
        self.r = torch.zeros(len(distinct), dtype=torch.float64).index_add_(0, inverse, r) / n.clamp(min=1)
        self.pair = torch.div(distinct, _bins_per_pair(self.cutoff), rounding_mode="floor").to(torch.int32)
        self.repulsion = potential.repulsion_functions(self.pair, self.r)
        start = 0
        for block in self.blocks:
            end = start + len(block.i)
            block.bin = inverse[start:end].to(torch.int32)
            start = end
        self.counts = {name: sum(int(b.labels[name].isfinite().sum()) for b in self.blocks) for name in LABELS}

    @property
    def n_edges(self) -> int:
        """Number of edges, each counted once."""
        return sum(len(b.i) for b in self.blocks)

    def closest(self) -> list[float]:
        """Shortest distance of each pair, Å; infinite where the pair never meets within the cutoff."""
        out = torch.full((self.n_pairs,), torch.inf, dtype=torch.float64)
        return out.scatter_reduce(0, self.pair.long(), self.r, "amin").tolist()

    def distance_counts(self) -> Tensor:
        """How many edges have each distinct distance, (n_distances,)."""
        return sum(torch.bincount(b.bin, minlength=len(self.r)) for b in self.blocks).double()  # type: ignore[union-attr]

    def __call__(
        self, parameters: dict[str, Tensor], smoothing: dict[str, float] | None = None, gradient: bool = True
    ) -> Loss:
        """The loss at ``parameters`` (names and shapes of :class:`EAMInteraction`, with ``B`` for ``b``).

        ``smoothing`` replaces |x| by sqrt(x² + s²) − s, with s in the unit of each label.
        """
        leaves = {name: p.detach().cpu().double().requires_grad_(gradient) for name, p in parameters.items()}
        pairs = PairParameters(*(leaves[name] for name in PairParameters._fields))
        with torch.set_grad_enabled(gradient):
            phi, dphi, rho, drho = radial_functions(self.r, self.pair, pairs, self.cutoff)
            exact = (phi + self.repulsion[0], dphi + self.repulsion[1], rho, drho)
        tables = [t.detach().float() for t in exact]
        adjoint = [torch.zeros_like(t) for t in tables] if gradient else None
        by_element = {name: leaves[name].detach() for name in ("B", "rho0", "E0")}
        sums = {name: torch.zeros_like(p) for name, p in by_element.items()}
        value, totals = 0.0, dict.fromkeys(LABELS, 0.0)
        left: list[Tensor] = []
        for block in self.blocks:
            value += self._block_loss(block, tables, by_element, smoothing or {}, totals, left, adjoint, sums)
        errors = {n: totals[n] / self.counts[n] if self.counts[n] else float("nan") for n in LABELS}
        result = Loss(value, errors, torch.cat(left))
        if gradient:
            torch.autograd.backward(exact, [a.double() for a in adjoint])  # type: ignore[union-attr]
            result.gradient = {}
            for name, leaf in leaves.items():
                slope = sums.get(name, leaf.grad)
                result.gradient[name] = torch.zeros_like(leaf) if slope is None else slope.detach()
        return result

    def _block_loss(
        self,
        block: Block,
        tables: list[Tensor],
        by_element: dict[str, Tensor],
        smoothing: dict[str, float],
        totals: dict[str, float],
        left: list[Tensor],
        adjoint: list[Tensor] | None,
        sums: dict[str, Tensor],
    ) -> float:
        """The part of a block in the loss; what it adds to totals, left, and the sums of the gradient goes there."""
        i, j, u, n_atoms = block.i, block.j, block.u, len(block.element)
        phi, dphi, rho, drho = (t.index_select(0, block.bin) for t in tables)
        b, rho0, e0 = (by_element[n].index_select(0, block.element) for n in ("B", "rho0", "E0"))
        excess = u.new_zeros(n_atoms).index_add_(0, i, rho).index_add_(0, j, rho) - rho0.float()
        slope = 2.0 * b.float() * excess
        both = slope.index_select(0, i) + slope.index_select(0, j)
        g = torch.addcmul(dphi, drho, both)
        along = u * g

        n_structures = len(block.ends)
        energies = e0.new_zeros(n_structures).index_add_(0, block.batch, e0 + b * excess.double() ** 2)
        starts = [0, *block.ends[:-1]]
        energies += torch.stack([phi[s:e].sum() for s, e in zip(starts, block.ends)]).double()
        forces = u.new_zeros((3, n_atoms))
        for x in range(3):  # one component at a time: sums along rows are several times slower
            forces[x].index_add_(0, i, along[x]).index_add_(0, j, along[x], alpha=-1)
        scaled = u * block.r
        virial = torch.stack([along[:, s:e] @ scaled[:, s:e].T for s, e in zip(starts, block.ends)])
        predicted = {"energy": energies, "forces": forces.T, "stress": stress_of(virial, block.volume)}

        left.append(block.labels["energy"] - energies)
        value, pull = self._deviation(block, predicted, smoothing, totals)
        if adjoint is None:
            return value

        pull_energy, pull_forces = pull["energy"], pull["forces"].T.contiguous()
        pull_virial = torch.nan_to_num(stress_of(pull["stress"], block.volume))
        on_g = torch.stack([f.index_select(0, i) - f.index_select(0, j) for f in pull_forces])
        for k, (s, e) in enumerate(zip(starts, block.ends)):
            on_g[:, s:e].addmm_(pull_virial[k], scaled[:, s:e])
        on_g = (on_g * u).sum(0)
        adjoint[1].index_add_(0, block.bin, on_g)
        adjoint[3].index_add_(0, block.bin, on_g * both)
        on_both = on_g * drho
        on_slope = u.new_zeros(n_atoms).index_add_(0, i, on_both).index_add_(0, j, on_both).double()
        on_atom_energy = pull_energy.index_select(0, block.batch)
        on_excess = 2.0 * b * on_slope + 2.0 * b * excess * on_atom_energy
        pulled = on_excess.float()
        adjoint[2].index_add_(0, block.bin, pulled.index_select(0, i) + pulled.index_select(0, j))
        lengths = torch.tensor(block.ends) - torch.tensor(starts)
        adjoint[0].index_add_(0, block.bin, pull_energy.float().repeat_interleave(lengths))
        sums["B"].index_add_(0, block.element, 2.0 * excess * on_slope + excess.double() ** 2 * on_atom_energy)
        sums["rho0"].index_add_(0, block.element, -on_excess)
        sums["E0"].index_add_(0, block.element, on_atom_energy)
        return value

    def _deviation(
        self, block: Block, predicted: dict[str, Tensor], smoothing: dict[str, float], totals: dict[str, float]
    ) -> tuple[float, dict[str, Tensor]]:
        """The part of the loss, and its derivative by each prediction; sums of |prediction − label| go to totals."""
        value, pull = 0.0, {}
        for name in LABELS:
            if not self.counts[name]:
                pull[name] = torch.zeros_like(predicted[name])
                continue
            difference = predicted[name] - block.labels[name]
            known = ~block.labels[name].isnan()
            difference = torch.where(known, difference, torch.zeros_like(difference))
            totals[name] += float(difference.abs().sum(dtype=torch.float64))
            s = smoothing.get(name, 0.0)
            smooth = (difference**2 + s * s).sqrt() if s else difference.abs()
            weight = self.weights[name] / self.counts[name]
            value += weight * float(torch.where(known, smooth - s, torch.zeros_like(smooth)).sum(dtype=torch.float64))
            pull[name] = weight * (difference / smooth if s else difference.sign())
        return value, pull


def _bins_per_pair(cutoff: float) -> int:
    return int(cutoff / DISTANCE_STEP) + 2


def _block(graph: AtomGraph, potential: EAMInteraction) -> tuple[Block, Tensor]:
    """The half list of a batch, and a key that is equal for edges of one pair and distance."""
    i, j = graph.edge_index
    s = graph.cell_offsets
    own_image = (s[:, 0] > 0) | ((s[:, 0] == 0) & ((s[:, 1] > 0) | ((s[:, 1] == 0) & (s[:, 2] > 0))))
    half = torch.nonzero((i < j) | ((i == j) & own_image)).squeeze(1)
    vectors = edge_vectors(graph).index_select(0, half).double()
    r = torch.linalg.vector_norm(vectors, dim=1)
    inside = r < potential.cutoff
    half, vectors, r = half[inside], vectors[inside], r[inside]
    i, j = i.index_select(0, half), j.index_select(0, half)
    element = potential.element_of.index_select(0, graph.z)
    pair = potential.pair_of.index_select(0, element.index_select(0, i) * len(potential.elements) + element[j])
    key = pair.long() * _bins_per_pair(potential.cutoff) + (r / DISTANCE_STEP).long()
    volume = volumes(graph.cell.double())
    block = Block(
        i=i.to(torch.int32),
        j=j.to(torch.int32),
        bin=torch.empty(0),
        u=(vectors / r[:, None]).float().T.contiguous(),
        r=r.float(),
        ends=torch.searchsorted(i, graph.n_atoms.cumsum(0)).tolist(),
        element=element,
        batch=graph.batch,
        volume=volume.float(),
        labels={
            "energy": graph.energy.double(),
            "forces": graph.forces.float(),
            "stress": torch.where(volume[:, None, None] > 0, graph.stress, torch.nan).float(),
        },
    )
    return block, key
