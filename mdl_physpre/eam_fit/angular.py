"""The fit of the embedded-atom potential with angular densities: linear least squares."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from ase import Atoms
from torch import Tensor
from torch.func import jacfwd, vmap

from mdl_physpre.analysis.errors import prediction_errors
from mdl_physpre.errors import FitError
from mdl_physpre.potentials.base import edge_vectors
from mdl_physpre.potentials.eam.angular import AngularEAM
from mdl_physpre.potentials.energy_reference import composition_matrix
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.potentials.zbl import repulsion_beside_data
from mdl_physpre.structures.graph import AtomGraph, GraphDataset
from mdl_physpre.structures.labels import LABELS
from mdl_physpre.utils.devices import threads
from mdl_physpre.utils.settings import Settings, setting

logger = logging.getLogger(__name__)
BLOCK_EDGES = 2000  # of which derivatives are held at once
MOST_COEFFICIENTS = 6000  # whose equations take 300 MB for each kind of label


class AngularEAMSettings(Settings):
    """The form of the potential and the weights of its fit; see :func:`fit_angular_eam`."""

    cutoff: float = setting(5.0, "Distance at which all interactions have vanished.", "Å", gt=0)
    n_pair: int = setting(10, "Radial functions of the pair terms.", ge=2)
    n_radial: int = setting(5, "Radial functions of the densities.", ge=2)
    l_max: int = setting(3, "Highest angular momentum of the densities.", ge=0, le=3)
    weight_energy: float = setting(10.0, "Weight of the mean square error of energies per atom in eV.", ge=0)
    weight_force: float = setting(1.0, "Weight of the mean square error of forces in eV/Å.", ge=0)
    weight_stress: float = setting(
        1.0, "Weight of the mean square error of stress times volume per atom in eV; where the data have stresses.",
        ge=0,
    )  # fmt: skip
    ridge: float = setting(
        3e-3, "Weight of small coefficients in the first fit; smaller: wilder where there are no data.", gt=0
    )
    weight_far: float = setting(
        0.1,
        "Weight, beside that of the data, of structures far from them in the second fit; 0: the first alone.",
        ge=0,
    )
    ridge_far: float = setting(1e-8, "Weight of small coefficients in the second fit.", gt=0)


@dataclass
class NormalEquations:
    """Sums over equations x·c = y: gram Σ x xᵀ (K, K), moment Σ x y (K,), and their count."""

    gram: Tensor
    moment: Tensor
    count: int = 0

    @classmethod
    def none(cls, size: int) -> NormalEquations:
        """Of no equation."""
        return cls(torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64))

    @threads(1)  # the last bits of a sum, and so all that is trained on top, depend on how many share it
    def add(self, matrix: Tensor, labels: Tensor) -> None:
        """Equations of a structure, (rows, K) and (rows,); those without a label do not count."""
        known = torch.isfinite(labels)
        x, y = matrix[known], labels[known]
        self.gram += x.T @ x
        self.moment += x.T @ y
        self.count += len(y)

    def plus(self, other: NormalEquations, factor: float = 1.0) -> NormalEquations:
        """With those of others, their sums times a factor."""
        gram, moment = self.gram + factor * other.gram, self.moment + factor * other.moment
        return NormalEquations(gram, moment, self.count + (other.count if factor else 0))


def fit_angular_eam(
    train: Sequence[Atoms],
    settings: AngularEAMSettings | None = None,
    elements: Sequence[int] = (),
    far: Callable[[AngularEAM], Sequence[Atoms]] | None = None,
) -> AngularEAM:
    """Fit an :class:`~mdl_physpre.potentials.eam.angular.AngularEAM` to energies, forces and stresses.

    min over c of   L(c; train) + λ |S c|²
    L = w_E ⟨((E − E_ref)/N)²⟩ + w_F ⟨(F − F_ref)²⟩ + w_S ⟨((σ − σ_ref) V/N)²⟩

    with means over what carries a label, and S the root mean square of the weighted column of each coefficient. The
    ridge λ is larger than the best errors near the data would have it: far from them, small coefficients do less harm.
    The energies of the elements are fitted along, without a ridge. The repulsion of the nuclei ends at the shortest
    distance of each pair in ``train``.

    With ``far``, a second fit follows, which is held to the first where there are no data, and free where there are:

    min over c of   L(c; train) + w_far L(c; structures far from the data, labelled by the first fit) + λ_far |S c|²

    Parameters
    ----------
    train : labelled structures. settings : the defaults where None. elements : atomic numbers beside those of train.
    far : gives structures far from the data with the labels of the potential that it gets, the first fit. Where it
        gives none, the first fit is the result.

    Raises
    ------
    FitError : no structure, no label that has a weight, or so many elements that the coefficients are too many; before
        that n_radial is lowered.
    """
    settings = settings or AngularEAMSettings()
    if not len(train):
        raise FitError("the fit has no training structures; look at the sizes of the split")
    blank = _unfitted(train, sorted({*elements, *(int(z) for atoms in train for z in atoms.numbers)}), settings)
    known = _equations(blank, train, settings)
    if not known.count:
        raise FitError(
            "no training structure carries a label that the fit weighs; look at the label counts of the data"
        )
    potential = _solved(blank, known, settings.ridge, train)
    if far is not None and settings.weight_far and (frames := far(potential)):
        logger.info("fitted again, held to that on %d structures far from the data", len(frames))
        held = known.plus(_equations(blank, frames, settings), settings.weight_far)
        potential = _solved(blank, held, settings.ridge_far, train)
    return potential


def _solved(blank: AngularEAM, known: NormalEquations, ridge: float, train: Sequence[Atoms]) -> AngularEAM:
    """A copy of the form with the coefficients that solve the equations."""
    potential, n_elements = copy.deepcopy(blank), len(blank.elements)
    found = _solution(known, n_elements, ridge)
    with torch.no_grad():
        energies = torch.zeros_like(potential.reference.energies)
        energies[list(potential.elements)] = found[-n_elements:].to(energies)
        potential.shift_reference(energies)
        potential.coefficients.copy_(found[:-n_elements].view_as(potential.coefficients))
    potential.training_energies = TrainingEnergies.of(train)
    errors = prediction_errors(potential, train)
    logger.info(
        "embedded-atom potential with angular densities, %d coefficients; on the training structures %.1f meV/atom and "
        "%.3f eV/Å", potential.coefficients.numel(), errors.energy_mae_mev_per_atom or 0.0, errors.forces_mae or 0.0,
    )  # fmt: skip
    return potential


def _unfitted(train: Sequence[Atoms], elements: Sequence[int], settings: AngularEAMSettings) -> AngularEAM:
    """All coefficients 0, with fewer radial functions than asked for where these are too many."""
    radii = repulsion_beside_data(train, elements, within=settings.cutoff).radii
    form = settings.model_dump(include={"cutoff", "n_pair", "l_max"})
    for n_radial in range(settings.n_radial, 1, -1):
        potential = AngularEAM(elements, **form, n_radial=n_radial, radii=radii)
        if potential.coefficients.numel() <= MOST_COEFFICIENTS:
            if n_radial < settings.n_radial:
                logger.info("%d elements: n_radial is %d in place of %d", len(elements), n_radial, settings.n_radial)
            return potential
    raise FitError(
        f"angular_eam: {len(elements)} elements have {potential.coefficients.numel()} coefficients even with n_radial "
        f"2; at most {MOST_COEFFICIENTS} can be fitted. Give a smaller n_pair or l_max, or another teacher "
        "(physpre.teacher: null is the embedded-atom potential)"
    )


@threads(1)
def _solution(known: NormalEquations, n_elements: int, ridge: float) -> Tensor:
    """Coefficients of the normal equations. The energies of the elements, the last columns, have no ridge: they are
    solved for as functions of the others."""
    k = len(known.moment) - n_elements
    gram, moment = known.gram[:k, :k], known.moment[:k]
    mixed, of_elements = known.gram[:k, k:], torch.linalg.pinv(known.gram[k:, k:], rtol=1e-10, hermitian=True)
    left = gram - mixed @ of_elements @ mixed.T
    size = left.diagonal().clamp(min=0.0).sqrt() + 1e-12
    scaled = left / size[:, None] / size + ridge * torch.eye(k, dtype=left.dtype)
    c = torch.linalg.solve(scaled, (moment - mixed @ of_elements @ known.moment[k:]) / size) / size
    return torch.cat((c, of_elements @ (known.moment[k:] - mixed.T @ c)))


def _equations(potential: AngularEAM, structures: Sequence[Atoms], settings: AngularEAMSettings) -> NormalEquations:
    """Of all labels of a set, each kind with its weight over the number of its labels."""
    dataset = GraphDataset(structures, potential.cutoff, dtype=torch.float64)
    n_elements = len(potential.elements)
    size = potential.coefficients.numel() + n_elements
    kinds = {kind: NormalEquations.none(size) for kind in LABELS}
    for index, atoms in enumerate(structures):
        graph = dataset.batch([index])
        n, stress = len(atoms), atoms.cell.rank == 3
        energy, forces, virial = _features(potential, graph)
        base = evaluate(potential, graph, forces=True, stress=stress)  # coefficients and energies of elements are 0
        composition = torch.from_numpy(composition_matrix([atoms], potential.elements)[0])
        row = torch.cat((energy, composition))[None] / n
        kinds["energy"].add(row, (graph.energy - base.energies) / n)
        kinds["forces"].add(_padded(forces, n_elements), (graph.forces - base.forces).flatten())
        if base.stress is not None:
            strain = (graph.stress - base.stress).flatten() * atoms.get_volume() / n
            kinds["stress"].add(_padded(virial, n_elements) / n, strain)
    weights = {"energy": settings.weight_energy, "forces": settings.weight_force, "stress": settings.weight_stress}
    total = NormalEquations.none(size)
    for kind, weight in weights.items():
        total = total.plus(kinds[kind], weight / max(kinds[kind].count, 1))
    return total


def _padded(matrix: Tensor, n: int) -> Tensor:
    """Rows (…, K) → (rows, K + n): energies of elements give no forces and no stress."""
    return torch.nn.functional.pad(matrix.reshape(-1, matrix.shape[-1]), (0, n))


def _features(potential: AngularEAM, graph: AtomGraph) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the features by element of the atom (K,), and what they give to forces (N, 3, K) and virial (3, 3, K).

    K counts the features of each element after each other. With ∇ the derivative by the vector of an edge i → j:
    F_i = Σ_j ∇, F_j = −Σ_i ∇, virial = Σ r_ij ⊗ ∇, each times the coefficient.
    """
    with torch.no_grad():
        vectors, inner = edge_vectors(graph), potential.inner_radii(graph)
        pair, density = potential.edge_terms(vectors, inner)
        p, rho = potential.densities(graph, pair, density)
        features = potential.features(p, rho)
        kinds, n, k = len(potential.elements), len(graph.z), features.shape[1]
        i, j = graph.edge_index
        kind = potential.element_of.index_select(0, graph.z)
        of_edge = kind.index_select(0, i)
        energy = features.new_zeros(kinds, k).index_add(0, kind, features)
        forces = features.new_zeros(n * kinds, 3, k)
        virial = features.new_zeros(kinds, 9, k)
        for start in range(0, len(i), BLOCK_EDGES):  # an isolated atom has none
            edges = slice(start, start + BLOCK_EDGES)
            here = vectors[edges]
            of_terms = vmap(jacfwd(potential.edge_terms))(here, inner[edges])
            slopes = _slopes(potential, rho[i[edges]], graph.z[j[edges]], *of_terms)
            forces.index_add_(0, i[edges] * kinds + of_edge[edges], slopes)
            forces.index_add_(0, j[edges] * kinds + of_edge[edges], -slopes)
            virial.index_add_(0, of_edge[edges], (here[:, :, None, None] * slopes[:, None]).flatten(1, 2))
        by_atom = forces.view(n, kinds, 3, k).permute(0, 2, 1, 3).reshape(n, 3, -1)
        return energy.reshape(-1), by_atom, virial.permute(1, 0, 2).reshape(9, -1)


def _slopes(potential: AngularEAM, rho: Tensor, neighbour: Tensor, of_pair: Tensor, of_density: Tensor) -> Tensor:
    """∇ of the features of atom i by the vector of each edge i → j, (E, 3, features).

    rho : densities of atom i (E, channels, lm). neighbour : atomic number of j (E,). of_pair, of_density : derivatives
    of R_n (E, n_pair, 3) and of R_n Y_lm (E, n_radial, lm, 3).
    """
    n_edges, kinds = len(rho), len(potential.elements)
    edges, to = torch.arange(n_edges), potential.element_of.index_select(0, neighbour)
    p = of_pair.new_zeros(n_edges, kinds, potential.n_pair, 3)
    p[edges, to] = of_pair
    own = of_density.new_zeros(n_edges, kinds, *of_density.shape[1:])
    own[edges, to] = of_density
    own = own.flatten(1, 2)  # (E, channels, lm, 3)
    there = rho[..., None]  # (E, channels, lm, 1)
    first, second = potential.first, potential.second
    products = own[:, first] * there[:, second] + there[:, first] * own[:, second]  # (E, pairs, lm, 3)
    sums = products.new_zeros(*products.shape[:2], potential.l_max + 1, 3).index_add(2, potential.of_l, products)
    cubes = 3.0 * there[:, :, 0] ** 2 * own[:, :, 0]
    return torch.cat((p.flatten(1, 2), sums.flatten(1, 2), cubes), dim=1).transpose(1, 2)
