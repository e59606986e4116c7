"""``mdl_physpre.testing``: a sound potential passes, and each mistake is found by the check that is meant for it."""

import pytest
import torch
from ase import Atoms
from ase.build import bulk

from mdl_physpre import testing
from mdl_physpre.errors import DataError
from mdl_physpre.potentials import CGCNN, EAMInteraction, HybridPotential
from tests.helpers import broken_potentials as broken

BROKEN = [
    (broken.WrongForces, testing.check_forces, "forces on Cu.*finite differences at .*: found .*, expected"),
    (broken.WrongStress, testing.check_stress, "stress of Cu.*finite differences"),
    (broken.ForcesOfWrongShape, testing.check_forces, r"shape \(\d+, 2\), expected \(\d+, 3\)"),
    (broken.StressOfWrongShape, testing.check_stress, r"shape \(1, 2, 3\), expected \(1, 3, 3\)"),
    (broken.DependsOnPlace, testing.check_invariances, "forces on Cu|translation"),
    (broken.DependsOnDirection, testing.check_invariances, "rotation"),
    (broken.DependsOnHand, testing.check_invariances, "mirror image"),
    (broken.DependsOnOrder, testing.check_invariances, "permutation"),
    (broken.DependsOnCell, testing.check_invariances, "other cell"),
    (broken.FewImages, testing.check_invariances, "of Cu"),
    (broken.PullsAlong, testing.check_invariances, "sum of the forces"),
    (broken.NotExtensive, testing.check_extensive, "energy of .* cells"),
    (broken.Jumps, testing.check_smooth_at_cutoff, "energy jump at 5.0 Å"),
    (broken.Kinks, testing.check_smooth_at_cutoff, "forces jump at 5.0 Å"),
    (broken.MixesBatches, testing.check_batches, "energies of a batch"),
    (broken.NeedsEdges, testing.check_no_edges, None),
]


@pytest.mark.parametrize(("kind", "check", "message"), BROKEN, ids=lambda v: getattr(v, "__name__", ""))
def test_each_mistake_is_found(kind, check, message):
    if message is None:
        with pytest.raises(ValueError, match="no edges"):
            check(kind())
        return
    with pytest.raises(AssertionError, match=message):
        check(kind())


def test_a_sound_potential_passes():
    testing.check_potential(broken.Sound())


def network(cutoff):
    return CGCNN(["Na", "Cl"], cutoff, dim1=8, dim2=8, gc_count=2, post_fc_count=1, edge_dim=8)


@pytest.mark.parametrize(
    "build",
    [
        lambda: EAMInteraction(["Na", "Cl"], cutoff=5.0, n_basis=3),
        lambda: network(5.0),
        lambda: HybridPotential(network(4.0), EAMInteraction(["Na", "Cl"], cutoff=5.0, n_basis=3)),
    ],
    ids=["EAM", "CGCNN", "hybrid"],
)
def test_potentials_of_this_package_pass_as_they_are_built(build):
    torch.manual_seed(1)
    potential = build()
    before = [p.clone() for p in potential.parameters()]
    testing.check_potential(potential)
    assert potential.training and all(a.dtype == p.dtype and a.equal(p) for a, p in zip(before, potential.parameters()))


class WrongGradient(broken.Sound):
    """Right energies and forces; half of the gradient in the parameter is lost."""

    def __init__(self, elements=(29,)):
        super().__init__(elements)
        self.depth = torch.nn.Parameter(torch.ones(()))

    def pair(self, r):
        return 0.5 * (self.depth + self.depth.detach()) * super().pair(r)


class Forgets(EAMInteraction):
    """Saves another cutoff than its own."""

    def hyperparameters(self):
        return {**super().hyperparameters(), "cutoff": 4.5}


def test_files_and_gradients_that_are_wrong_are_found():
    testing.check_forces(WrongGradient())
    with pytest.raises(AssertionError, match="gradient of a loss in depth"):
        testing.check_gradients_for_training(WrongGradient())
    with pytest.raises(AssertionError, match=r"cutoff after loading: 4.5, expected 5.0"):
        testing.check_save_and_load(Forgets(["Cu"], cutoff=5.0, n_basis=3))


def test_structures_are_asked_for_where_any_element_goes():
    with pytest.raises(DataError, match="takes any element: give structures"):
        testing.check_potential(broken.Sound(None))
    testing.check_potential(broken.Sound(None), [bulk("Cu").repeat((2, 1, 1)), Atoms("Cu2", [[0, 0, 0], [2.3, 0, 0]])])
