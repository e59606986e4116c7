"""Labels in units or with signs other than ours: found by what forces say of energies and stress, named, converted."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.structures.conversion import convert
from mdl_physpre.structures.labels import get_labels, set_labels
from mdl_physpre.structures.plausibility import check_units_of_labels
from mdl_physpre.structures.read import read_structures
from mdl_physpre.structures.units import convert_labels, factor
from mdl_physpre.structures.write import write_structures


def copper(scales=(0.94, 1.06), n=24, seed=0, displacement=0.15):
    """Strained, shaken copper with labels by EMT."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        strain = np.diag(rng.uniform(*scales, 3)) + 0.02 * np.triu(rng.normal(size=(3, 3)), 1)
        atoms.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
        atoms.positions += displacement * rng.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        found.append(set_labels(atoms, atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    return found


COPPER = copper()


def changed(structures, **factors):
    found = [atoms.copy() for atoms in structures]
    for new, old in zip(found, structures, strict=True):
        new.calc = copy.deepcopy(old.calc)
    convert_labels(found, factors)
    return found


@pytest.mark.parametrize(
    ("text", "value"),
    [("GPa", units.GPa), ("kbar", 0.1 * units.GPa), ("-bar", -units.bar), ("Hartree/Bohr", units.Hartree / units.Bohr),
     ("Ry/Bohr^3", units.Rydberg / units.Bohr**3), ("ha/bohr³", units.Hartree / units.Bohr**3), ("eV/Å", 1.0),
     ("kcal/mol", units.kcal / units.mol), ("kcal/mol/Å", units.kcal / units.mol), ("eV/A**3", 1.0)],
)  # fmt: skip
def test_units_by_name(text, value):
    assert factor(text) == pytest.approx(value, rel=1e-12)


def test_an_unknown_unit_names_the_nearest():
    with pytest.raises(ConfigError, match="'kbarr' is not known; did you mean 'kbar'"):
        factor("kbarr")


def test_right_labels_pass_without_a_word(caplog):
    check_units_of_labels(COPPER, "here")
    assert not caplog.records


@pytest.mark.parametrize("unit", ["kbar", "-kbar", "GPa", "-GPa", "bar", "-eV/Å^3"])
def test_a_stress_in_another_unit_is_named(unit):
    wrong = changed(COPPER, stress=1 / factor(unit))
    with pytest.raises(DataError) as caught:
        check_units_of_labels(wrong, "here.xyz")
    assert "here.xyz: the stress of 24 structures cannot be" in str(caught.value)
    assert f"dataset.units={{stress: {unit}}}" in str(caught.value)


@pytest.mark.parametrize(
    ("factors", "said"),
    [({"energy": 1 / factor("Hartree")}, "energy is in Hartree, forces in eV/Å"),
     ({"forces": 1 / factor("kcal/mol")}, "energy is in eV, forces in kcal/mol/Å"),
     ({"energy": 1 / factor("kJ/mol")}, "energy is in kJ/mol, forces in eV/Å"),
     ({"energy": 1e3}, "energy is in meV, forces in eV/Å"),
     ({"energy": 1 / 8}, "energies are per atom.*Give totals")],
)  # fmt: skip
def test_energies_and_forces_that_do_not_belong_together(factors, said):
    with pytest.raises(DataError, match=said):
        check_units_of_labels(changed(COPPER, **factors), "here")


@pytest.mark.parametrize(
    ("energy", "forces"), [("Hartree", "Hartree/Bohr"), ("kcal/mol", "kcal/mol/Å"), ("Ry", "Ry/Bohr")]
)
def test_energies_and_forces_in_another_unit_beside_a_right_stress(energy, forces):
    wrong = changed(COPPER, energy=1 / factor(energy), forces=1 / factor(forces))
    with pytest.raises(DataError, match=f"as if it were right, and forces in .*{{energy: {energy}, forces: {forces}}}"):
        check_units_of_labels(wrong, "here")


def test_hartree_throughout_is_found_between_frames_of_a_run():
    frames = []
    for k in range(12):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.positions += 0.02 * k * np.random.default_rng(3).normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        frames.append(set_labels(atoms, atoms.get_potential_energy(), atoms.get_forces()))
    check_units_of_labels(frames, "here")
    wrong = changed(frames, energy=1 / factor("Hartree"), forces=1 / factor("Hartree/Bohr"))
    with pytest.raises(DataError, match="energy is in Hartree, forces in Hartree/Bohr"):
        check_units_of_labels(wrong, "here")
    with pytest.raises(DataError, match="forces are gradients of the energy, of the other sign"):
        check_units_of_labels(changed(frames, forces=-1.0), "here")


def test_energies_that_hang_on_the_volume_alone_are_no_wrong_sign():
    """Rattled crystals of an embedding that forces do not see: their pair potential has the energy upside down."""
    structures = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        atoms = bulk("Cu", cubic=True, a=3.6 * rng.uniform(0.97, 1.05)) * (2, 1, 1)
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        energy = atoms.get_potential_energy() + 0.5 * len(atoms) * (11.7 - atoms.cell.volume / len(atoms)) ** 3
        structures.append(set_labels(atoms, energy, atoms.get_forces()))
    check_units_of_labels(structures, "here")


def test_a_virial_as_stress_is_named():
    wrong = []
    for atoms in changed(COPPER):
        repeated = atoms * (1 + len(wrong) % 3, 1, 1)  # of different volumes
        labels = get_labels(atoms)
        forces = np.tile(labels.forces, (1 + len(wrong) % 3, 1))
        energy = labels.energy * (1 + len(wrong) % 3)
        wrong.append(set_labels(repeated, energy, forces, -labels.stress * repeated.cell.volume))
    with pytest.raises(DataError, match="It looks like a virial in eV"):
        check_units_of_labels(wrong, "here")


def test_a_terapascal_passes():
    dense = copper(scales=(0.62, 0.66), displacement=0.02)
    assert max(float(np.abs(get_labels(a).stress).max()) for a in dense) > 3.0  # eV/Å³, 500 GPa
    check_units_of_labels(dense, "here")
    check_units_of_labels(changed(dense, energy=2.0, forces=2.0, stress=2.0), "here")
    with pytest.raises(DataError, match="cannot be in eV"):
        check_units_of_labels(changed(dense, stress=1 / factor("GPa")), "here")


def test_one_structure_with_an_impossible_stress():
    with pytest.raises(DataError, match="eV per atom .* in bar"):
        check_units_of_labels(changed(COPPER[:1], stress=1 / factor("bar")), "here")


def test_units_are_converted_when_read(tmp_path):
    write_structures(tmp_path / "a.extxyz", changed(COPPER, stress=1 / factor("-kbar"), energy=1 / factor("Hartree")))
    for atoms, right in zip(
        read_structures(tmp_path / "a.extxyz", units={"stress": "-kbar", "energy": "Hartree"}), COPPER, strict=True
    ):
        np.testing.assert_allclose(get_labels(atoms).stress, get_labels(right).stress, rtol=1e-10)
        assert get_labels(atoms).energy == pytest.approx(get_labels(right).energy)
    with pytest.raises(DataError):
        read_structures(tmp_path / "a.extxyz")
    with pytest.raises(ConfigError, match="unknown label 'stres'"):
        read_structures(tmp_path / "a.extxyz", units={"stres": "kbar"})


@pytest.mark.parametrize("key", ["virial", "REF_virial", "dft_virial"])
def test_a_virial_becomes_a_stress(tmp_path, key, caplog):
    structures = []
    for atoms in COPPER:
        new = atoms.copy()
        labels = get_labels(atoms)
        new.info |= {"energy": labels.energy, key: (-labels.stress * atoms.cell.volume).tolist()}
        new.arrays["forces"] = labels.forces
        structures.append(new)
    write_structures(tmp_path / "a.extxyz", structures)
    keys = {"stress": key} if key == "dft_virial" else None
    with caplog.at_level(logging.INFO):
        found = read_structures(tmp_path / "a.extxyz", keys)
    assert f"stress = -virial/V from {key!r} (eV) in 24 structures" in caplog.text
    for atoms, right in zip(found, COPPER, strict=True):
        np.testing.assert_allclose(get_labels(atoms).stress, get_labels(right).stress, atol=1e-7)


def test_half_stress_half_virial(tmp_path, caplog):
    structures = changed(COPPER)
    for atoms in structures[::2]:
        labels = get_labels(atoms)
        set_labels(atoms, labels.energy, labels.forces)
        atoms.info["virial"] = (-get_labels(COPPER[0]).stress * 0 - labels.stress * atoms.cell.volume).tolist()
    write_structures(tmp_path / "a.extxyz", structures)
    found = read_structures(tmp_path / "a.extxyz")
    assert "'virial' in 12 structures" in caplog.text and "'stress' in 12 structures" in caplog.text
    for atoms, right in zip(found, COPPER, strict=True):
        np.testing.assert_allclose(get_labels(atoms).stress, get_labels(right).stress, atol=1e-7)


def test_the_stress_of_a_slab_is_left_out_with_a_count(tmp_path, caplog):
    structures = changed(COPPER)
    for atoms in structures[:3]:
        atoms.pbc = (True, True, False)
    write_structures(tmp_path / "a.extxyz", structures)
    found = read_structures(tmp_path / "a.extxyz")
    assert "the stress of 3 structures that are periodic in one or two directions is left out" in caplog.text
    assert [get_labels(a).stress is None for a in found[:5]] == [True, True, True, False, False]


@pytest.mark.parametrize("key", ["stress", "REF_stress", "dft_stress"])
def test_the_symmetric_part_of_a_stress_counts_whatever_its_key(tmp_path, key, caplog):
    atoms = COPPER[0].copy()
    given = np.arange(9.0).reshape(3, 3) / 100
    header = " ".join(map(str, given.ravel()))
    rows = "\n".join(f"Cu {x} {y} {z}" for x, y, z in atoms.positions)
    cell = " ".join(map(str, atoms.cell[:].ravel()))
    text = f'{len(atoms)}\nLattice="{cell}" Properties=species:S:1:pos:R:3 {key}="{header}"\n{rows}\n'
    (tmp_path / "a.xyz").write_text(text)
    found = read_structures(tmp_path / "a.xyz", {"stress": key})[0]
    np.testing.assert_allclose(get_labels(found).stress, 0.5 * (given + given.T), atol=1e-12)
    assert "the stress of 1 structures is not symmetric" in caplog.text


def test_convert_names_columns_that_look_like_labels(tmp_path, caplog):
    atoms = COPPER[0].copy()
    atoms.arrays["dft_force"] = get_labels(COPPER[0]).forces
    write_structures(tmp_path / "a.extxyz", [atoms])
    result = convert(tmp_path / "a.extxyz", tmp_path / "b.json")
    assert any(
        "columns of atoms that the format has no place for are left out: dft_force" in w for w in result["warnings"]
    )
    assert any("dft_force looks like forces" in w for w in result["warnings"])
