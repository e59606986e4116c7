"""Runs whose pretraining set is labelled by something else than the fitted embedded-atom potential."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk

from mdl_physpre import label, load_potential, save_potential, write_structures
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials import EAMInteraction
from mdl_physpre.potentials.zbl import shortest_distances
from mdl_physpre.runs.read import read_summary
from mdl_physpre.structures.labels import get_labels, set_labels
from mdl_physpre.structures.read import read_structures
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.data import load_data
from mdl_physpre.workflow.run import run

CONFIG = """
dataset: {{src: {data}, split: {{test: 3, val: 3}}}}
model: {{name: CGCNN, cutoff: 4.0, dim1: 8, dim2: 8, gc_count: 1, post_fc_count: 1, edge_dim: 8}}
optim: {{max_epochs: 2, lr: 1.0e-3, batch_size: 4}}
physpre:
  arms: [pretrain]
  eam: {{cutoff: 5.0, n_basis: 2, epochs: 5}}
  teacher: {{calculator: ase.calculators.emt.EMT, arguments: {{asap_cutoff: true}}, short_range: zbl, processes: 2}}
  perturbation: {{n_aug: 1, n_pairs: 1}}
  pretrain: {{max_epochs: 2}}
  dynamics: {{n_structures: 0}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rattled alloys, with energies by ASE's EMT less 5 eV for each copper atom and 2 eV for each gold atom."""
    rng, structures = np.random.default_rng(0), []
    for k in range(14):
        atoms = bulk("Cu", cubic=True, a=3.7 * rng.uniform(0.97, 1.05))
        atoms.numbers[: 1 + k % 3] = 79
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
        structures.append(atoms)
    shift = {29: -5.0, 79: -2.0}
    labelled = []
    for atoms in label(structures, "calculator:ase.calculators.emt.EMT?asap_cutoff=true", progress=False):
        found = get_labels(atoms)
        energy = found.energy + sum(shift[z] for z in atoms.numbers)
        labelled.append(set_labels(atoms, energy, found.forces, found.stress))
    path = tmp_path_factory.mktemp("data") / "alloys.extxyz"
    write_structures(path, labelled)
    return path


@pytest.fixture(scope="module")
def config(data):
    path = data.with_name("small.yml")
    path.write_text(CONFIG.format(data=data))
    return path


@pytest.fixture(scope="module")
def finished(config):
    folder = config.parent / "run"
    return folder, run(config, out=folder)


def test_a_calculator_with_a_repulsion_labels_and_no_eam_is_fitted(finished, config):
    folder, summary = finished
    assert not (folder / "1-eam").exists() and summary.eam is None
    teacher = summary.teacher
    assert teacher.name == "ase.calculators.emt.EMT + ZBL"
    # the repulsion ends where the training structures begin: the shift is that of the labels
    assert teacher.zero_of_energy["energies"] == pytest.approx({"Cu": -5.0, "Au": -2.0}, abs=0.01)
    assert teacher.errors["test"].energy_mae_mev_per_atom < 10
    shortest = shortest_distances(load_data(load_config(config)).train)
    assert teacher.short_range_radii["Cu-Au"] == shortest[29, 79]
    made = read_structures(folder / "2-pretraining-set" / "train.extxyz")
    assert len(made) == summary.pretraining_set.structures == 8
    bare = label(made, "calculator:ase.calculators.emt.EMT?asap_cutoff=true", progress=False)
    for atoms, plain in zip(made, bare):
        shift = sum(teacher.zero_of_energy["energies"][s] for s in atoms.symbols)
        assert get_labels(atoms).energy >= get_labels(plain).energy + shift - 1e-6  # the repulsion only adds
    assert summary.arms["pretrain"].errors["test"].forces_mae > 0


def test_it_goes_on_and_says_so_in_the_report(finished, config):
    folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")}
    run(config, ["physpre.teacher.processes=1"], out=folder)  # how many processes changes no result
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")} == before
    run(config, ["physpre.teacher.short_range_radii={Cu-Au: 1.0}"], out=folder, overwrite=True)
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("done.json")}
    assert all(after[p] != before[p] for p in before)
    assert read_summary(folder).teacher.errors["test"].n_structures == 3


def test_a_hybrid_arm_beside_another_teacher_has_its_eam_fitted(config, tmp_path):
    """Nor does the repulsion of that teacher count for the arm."""
    summary = run(config, ["physpre.arms=[hybrid+zbl, pretrain]", "physpre.pretrain.online=true"], out=tmp_path / "run")
    assert (tmp_path / "run" / "1-eam" / "eam.pt").exists() and (tmp_path / "run" / "1-teacher" / "done.json").exists()
    assert summary.arms["hybrid+zbl"].errors["test"].forces_mae > 0
    assert summary.eam is not None and summary.teacher is not None


def test_a_checkpoint_of_another_format_labels(config, data, tmp_path):
    """A converted checkpoint beside the configuration, opened by its content."""
    from mdl_physpre.potentials import convert_checkpoint

    torch.manual_seed(0)
    save_potential(tmp_path / "eam.pt", EAMInteraction(["Cu", "Au"], cutoff=5.0, n_basis=2))
    convert_checkpoint(tmp_path / "eam.pt", data.with_name("host.pt"), "matdeeplearn")
    other = "physpre.teacher={potential: host.pt, short_range: zbl}"
    summary = run(config, [other], out=tmp_path / "run")
    assert summary.teacher.zero_of_energy["after"] < summary.teacher.zero_of_energy["before"]
    assert load_config(config, [other]).physpre.teacher.potential == str(data.with_name("host.pt"))


def test_an_eam_with_a_repulsion_is_fitted_and_kept(config, tmp_path):
    keys = ["physpre.teacher=null", "physpre.eam.short_range=zbl", "physpre.eam.short_range_radii={Cu-Au: 1.5}"]
    run(config, keys, out=tmp_path / "run")
    assert (tmp_path / "run" / "log.txt").read_text().count("embedded-atom potential\n") == 1
    repulsion = load_potential(tmp_path / "run" / "1-eam" / "eam.pt").repulsion
    shortest = shortest_distances(load_data(load_config(config)).train)
    others = {"Cu-Cu": shortest[29, 29], "Au-Au": shortest[79, 79]}
    assert repulsion.radii == {"Cu-Au": 1.5, **others}
    assert "repulsion of the nuclei" in (tmp_path / "run" / "1-eam" / "fit.txt").read_text()


def test_the_fit_has_weights_of_its_own(config, tmp_path):
    """With the network's weights, where energies weigh much, the embedded-atom potential would have poor forces."""
    fit = tmp_path / "run" / "1-eam" / "done.json"
    keys = ["physpre.teacher=null", "physpre.arms=[hybrid]", "optim.energy_per_atom=true"]
    run(config, [*keys, "optim.weight_energy=1.0"], out=tmp_path / "run")
    before = fit.stat().st_mtime_ns
    run(config, [*keys, "optim.weight_energy=30.0"], out=tmp_path / "run", overwrite=True)
    assert fit.stat().st_mtime_ns == before
    run(
        config,
        [*keys, "optim.weight_energy=30.0", "physpre.eam.weight_energy=1.0"],
        out=tmp_path / "run",
        overwrite=True,
    )
    assert fit.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("physpre.teacher={}", "give one of fit, potential and calculator"),
        ("physpre.teacher.potential=x.pt", "give one of fit, potential and calculator"),
        ("physpre.teacher.calculatr=x", "did you mean 'calculator'"),
        ("physpre.teacher={potential: nothing.pt}", "nothing.pt: no such file"),
        ("physpre.teacher.short_range=morse", "expected 'zbl'"),
        ("physpre.teacher.short_range_radii={CuAu: 1.0}", "'CuAu' is no pair of elements"),
        ("physpre.eam.short_range_radii={Cu-Au: 1.0}", "add short_range: zbl"),
        ("physpre.eam={checkpoint: eam.pt, short_range: zbl}", "says itself whether it has short-range repulsion"),
    ],
)
def test_mistakes_are_named(config, override, words):
    with pytest.raises(ConfigError) as error:
        load_config(config, [override])
    assert words in str(error.value)
