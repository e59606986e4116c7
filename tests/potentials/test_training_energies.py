"""The energies that a potential was trained on: what they say of a structure, and how they get into checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from mdl_physpre import label, load_potential, save_potential, train_potential
from mdl_physpre.errors import CheckpointError
from mdl_physpre.potentials import ZBL, EAMInteraction, HybridPotential, SumPotential, TrainingEnergies
from mdl_physpre.potentials.compiled import CompiledPotential
from mdl_physpre.potentials.convert import convert_checkpoint
from mdl_physpre.structures import set_labels
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training import TrainingSettings
from tests.helpers.pair_potentials import Morse
from tests.helpers.small_structures import crystals
from tests.helpers.tiny_potential import TinyPotential


def with_energy(formula: str, per_atom: float) -> Atoms:
    atoms = Atoms(formula)
    return set_labels(atoms, energy=per_atom * len(atoms))


DATA = [with_energy("SiO2", -8.0), with_energy("O4Si2", -8.5), with_energy("Si2", -5.0), with_energy("Si", -5.6)]


def test_ranges_by_reduced_formula() -> None:
    found = TrainingEnergies.of(DATA)
    assert found is not None
    assert {k: (v.lowest, v.highest, v.structures) for k, v in found.compositions.items()} == {
        "O2Si": (-8.5, -8.0, 2),
        "Si": (-5.6, -5.0, 2),
    }
    assert found.lowest(Atoms("Si3O6")) == -8.5
    assert found.lowest(Atoms("Si")) == -5.6
    assert found.beyond_reference.structures == 4
    assert found.beyond_reference.lowest < 0 < found.beyond_reference.highest
    assert "O2Si −8.5 to −8 eV/atom (2 structures), Si −5.6 to −5 eV/atom (2 structures)" in found.text()
    assert "and 1 more compositions; all 4 structures: " in found.text(most=1)


def test_a_composition_that_was_not_in_the_data() -> None:
    """E0 of the elements, and the lowest energy beyond it; nothing where the data do not say what an element weighs."""
    found = TrainingEnergies.of(DATA)
    assert found is not None
    expected = (found.reference["Si"] + found.reference["O"]) / 2 + found.beyond_reference.lowest
    assert found.lowest(Atoms("SiO")) == pytest.approx(expected, abs=1e-12)
    assert found.lowest(Atoms("SiC")) is None
    quartz = TrainingEnergies.of(DATA[:2])
    assert quartz is not None
    assert quartz.lowest(Atoms("Si2O4")) == -8.5
    assert quartz.lowest(Atoms("Si")) is None  # silica alone does not say what silicon weighs
    assert TrainingEnergies.of([Atoms("Si")]) is None
    assert TrainingEnergies.of([*DATA[:2], with_energy("Si", float("nan"))]) == quartz


def test_a_training_writes_them_to_its_checkpoint(tmp_path: Path) -> None:
    data = label(crystals(4), Morse())
    torch.manual_seed(0)
    potential = TinyPotential()
    sets = [GraphDataset(part, potential.cutoff) for part in (data[:3], data[3:])]
    before = TrainingEnergies.of(DATA)
    potential.training_energies = before  # of another stage: pretraining, on a teacher's labels
    result = train_potential(potential, *sets, TrainingSettings(max_epochs=1), tmp_path)
    expected = TrainingEnergies.of(data[:3])
    assert expected is not None
    assert load_potential(result.best_checkpoint).training_energies == potential.training_energies == expected
    assert expected != before
    refitted = TrainingSettings(max_epochs=1, refit_reference=True)
    result = train_potential(TinyPotential(), *sets, refitted, tmp_path / "refitted")
    assert load_potential(result.best_checkpoint).training_energies == expected


def test_checkpoints_keep_them(tmp_path: Path) -> None:
    eam = EAMInteraction(elements=["Mg", "O"], cutoff=5.0, n_basis=2)
    path = save_potential(tmp_path / "eam.pt", eam)
    assert load_potential(path).training_energies is None
    eam.training_energies = TrainingEnergies.of(DATA)
    assert load_potential(save_potential(path, eam)).training_energies == eam.training_energies
    convert_checkpoint(path, tmp_path / "again.pt")
    assert load_potential(tmp_path / "again.pt").training_energies == eam.training_energies
    content = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in content.items() if k != "training_energies"}, path)  # as earlier versions wrote it
    assert load_potential(path).training_energies is None
    torch.save({**content, "training_energies": {"compositions": 3}}, path)
    with pytest.raises(CheckpointError, match=r"eam\.pt: its training_energies cannot be read: .*compositions"):
        load_potential(path)


def test_sums_and_compiled_potentials_keep_them(tmp_path: Path) -> None:
    known = TrainingEnergies.of(DATA)
    morse, eam = Morse(), EAMInteraction(elements=["Si", "O"], cutoff=5.0, n_basis=2)
    morse.training_energies = known
    assert SumPotential(network=morse, core=ZBL()).training_energies == known
    assert CompiledPotential(morse).training_energies == known
    assert SumPotential(network=morse, core=ZBL()).without("core").training_energies is None
    assert HybridPotential(morse, eam).training_energies == known
    eam.training_energies = TrainingEnergies.of(DATA[:2])
    assert SumPotential(network=morse, eam=eam).training_energies is None  # of two that say different things
    hybrid = HybridPotential(TinyPotential(), EAMInteraction(elements=["Cu"], cutoff=5.0, n_basis=2))
    hybrid.training_energies = known
    assert load_potential(save_potential(tmp_path / "hybrid.pt", hybrid)).training_energies == known


def test_other_structures_are_told_by_their_composition() -> None:
    found = TrainingEnergies.of([set_labels(bulk("Cu"), energy=-3.5), set_labels(molecule("O2"), energy=-9.0)])
    assert found is not None
    assert found.lowest(bulk("Cu", cubic=True)) == -3.5
    assert found.lowest(molecule("O3")) == -4.5
    assert found.lowest(Atoms("CuO")) == pytest.approx((-3.5 - 4.5) / 2)
