"""Several potentials as one: mean and spread against numpy, one graph for all, and what opens one."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones

from mdl_physpre import (
    PotentialCalculator,
    build_graph,
    evaluate,
    label,
    load_potential,
    open_potential,
    save_potential,
)
from mdl_physpre.analysis import prediction_errors
from mdl_physpre.dynamics.running.storage import run_key
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.potential_checks import examine
from mdl_physpre.potentials import CGCNN, CalculatorPotential, Committee, EAMInteraction, Potential
from mdl_physpre.pretraining.teacher import make_teacher
from mdl_physpre.runs.stage import write_json
from mdl_physpre.structures.graph import GraphDataset
from tests.helpers.gpu_stand_in import DEVICE, counting
from tests.helpers.made_up_runs import make_run, verdicts
from tests.helpers.small_cells import crystal
from tests.helpers.tiny_potential import cells, labelled

ELEMENTS = ["O", "Si"]


def networks(n: int = 3, dtype: torch.dtype = torch.float64) -> list[Potential]:
    """CGCNNs with a cutoff of their own each."""
    made = []
    for k in range(n):
        torch.manual_seed(k)
        made.append(CGCNN(elements=ELEMENTS, cutoff=4.0 + 0.3 * k, dim1=8, dim2=8).to(dtype).eval())
    return made


def batch_of(structures: list[Atoms], potential: Potential):
    dataset = GraphDataset(structures, potential.cutoff, dtype=torch.float64, labels=False)
    return dataset.batch(list(range(len(structures))))


def test_mean_and_spread_are_those_of_numpy_over_the_members():
    members, structures = networks(3), cells(4)
    committee = Committee(members)
    assert committee.cutoff == pytest.approx(4.6)
    found = evaluate(committee, batch_of(structures, committee))
    each = [evaluate(member, batch_of(structures, member)) for member in members]  # with its own edges
    energies, forces, stress = (
        np.stack([getattr(e, n).numpy() for e in each]) for n in ("energies", "forces", "stress")
    )
    np.testing.assert_allclose(found.energies, energies.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.forces, forces.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.stress, stress.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.energy_spread, energies.std(0, ddof=1), rtol=1e-9)
    squares = ((forces - forces.mean(0)) ** 2).sum(2)
    np.testing.assert_allclose(found.force_spread, np.sqrt(squares.sum(0) / 2), rtol=1e-9)
    assert found.energy_spread.shape == (4,) and found.force_spread.shape == (16,)
    assert found.force_spread.min() > 1e-4


def test_only_what_is_asked_for():
    committee = Committee(networks(2))
    found = evaluate(committee, batch_of(cells(2), committee), forces=False, stress=False)
    assert found.forces is None and found.force_spread is None and found.stress is None
    assert found.energy_spread is not None
    single = evaluate(networks(1)[0], batch_of(cells(2), committee))
    assert single.energy_spread is None and single.force_spread is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_networks_have_no_spread_and_the_same_forces(dtype):
    one = networks(1, dtype)[0]
    one.shift_reference(torch.full((119,), -1234.5678, dtype=torch.float64))
    committee = Committee([one, one, one])
    graph = GraphDataset(cells(3), one.cutoff, dtype=dtype, labels=False).batch([0, 1, 2])
    found, alone = evaluate(committee, graph), evaluate(one, graph)
    for name in ("energies", "forces", "stress"):
        assert torch.equal(getattr(found, name), getattr(alone, name))
    assert not found.energy_spread.any() and not found.force_spread.any()


def test_members_of_any_kind():
    eam = EAMInteraction(elements=ELEMENTS, cutoff=5.0, n_basis=4).double()
    lj = CalculatorPotential(lambda: LennardJones(sigma=2.0, epsilon=0.1, rc=4.0), name="lj")
    with pytest.raises(ConfigError, match=r"member 2 \(CalculatorPotential\) knows any element, the first O, Si"):
        Committee([eam, lj])
    soft = CalculatorPotential(lambda: LennardJones(sigma=1.9, epsilon=0.1, rc=4.0), name="soft")
    both = Committee([lj, soft])
    structures = cells(2)
    found = evaluate(both, batch_of(structures, both))
    each = [evaluate(p, batch_of(structures, p)).forces.numpy() for p in (lj, soft)]
    np.testing.assert_allclose(found.force_spread, np.linalg.norm(each[0] - each[1], axis=1) / 2**0.5, rtol=1e-9)


def test_what_is_no_committee():
    one = networks(1)[0]
    with pytest.raises(ConfigError, match="needs two potentials or more, found 1"):
        Committee([one])
    with pytest.raises(ConfigError, match="knows Si, the first O, Si; take potentials of the same elements"):
        Committee([one, CGCNN(elements=["Si"], cutoff=4.0, dim1=8, dim2=8).double()])
    with pytest.raises(ConfigError, match=r"float32 and float64; bring them to one precision with \.to\(dtype\)"):
        Committee([one, networks(2, torch.float32)[1]])
    with pytest.raises(DataError, match="only predicts"):
        evaluate(Committee(networks(2)), batch_of(cells(1), one), create_graph=True)
    with pytest.raises(CheckpointError, match=r"open committee:a\.pt,b\.pt"):
        save_potential("never.pt", Committee(networks(2)))


def test_a_strange_element_is_named():
    with pytest.raises(DataError, match=r"holds Au, which this potential does not know \(it knows O, Si\)"):
        evaluate(Committee(networks(2)), build_graph(bulk("Au"), 4.3))


def test_as_a_module():
    committee = Committee(networks(2)).train()
    assert all(member.training for member in committee.potentials)
    assert not committee.eval().potentials[1].training
    assert {p.dtype for p in committee.float().parameters() if p.is_floating_point()} == {torch.float32}


def test_on_a_device():
    members = networks(2, torch.float32)
    committee = Committee(members)
    graph = GraphDataset(cells(2), committee.cutoff, dtype=torch.float32, labels=False).batch([0, 1])
    here = evaluate(committee, graph)
    committee.to(DEVICE)
    with counting() as counts:
        there = evaluate(committee, graph.on(DEVICE))
    assert counts.clashes == {} and counts.waited == 0, counts.syncs
    for name in ("energies", "forces", "energy_spread", "force_spread"):
        assert getattr(there, name).device.type == "gpu"
        assert torch.allclose(getattr(there, name).cpu(), getattr(here, name), atol=1e-4)


def test_stored_runs_tell_committees_apart():
    a, b, c = networks(3)
    keys = set()
    settings = DynamicsSettings()
    for members in ([a, b], [b, a], [a, c], [a, b, c]):
        keys.add(run_key(Committee(members), cells(1), ["s"], [settings], [0]))
    assert len(keys) == 4
    wider = networks(2)
    wider[1].cutoff = 4.35
    assert run_key(Committee(wider), cells(1), ["s"], [settings], [0]) not in keys
    assert run_key(Committee(networks(2)), cells(1), ["s"], [settings], [0]) in keys


def test_checks_before_dynamics_pass():
    checks = examine(Committee(networks(2)), [crystal()], seed=1)
    # random networks have no wall
    rest = [c for c in checks if not c.name.startswith(("pair ", "two atoms"))]
    assert len(rest) > 30 and {c.verdict for c in rest} == {"passed", "n/a"}


def test_as_a_calculator():
    members, atoms = networks(2), cells(1)[0]
    atoms.calc = PotentialCalculator(Committee(members))
    forces = [PotentialCalculator(member).get_forces(atoms) for member in members]
    np.testing.assert_allclose(atoms.get_forces(), np.mean(forces, axis=0), atol=1e-12)
    apart = np.linalg.norm(forces[0] - forces[1], axis=1) / 2**0.5
    np.testing.assert_allclose(atoms.calc.results["force_spread"], apart, rtol=1e-9)
    np.testing.assert_allclose(atoms.calc.get_property("force_spread", atoms), apart, rtol=1e-9)
    assert atoms.calc.get_property("energy_spread", atoms) > 0
    assert "force_spread" not in PotentialCalculator(members[0]).implemented_properties
    atoms.rattle(0.1, seed=1)
    assert not np.allclose(atoms.calc.get_property("force_spread", atoms), apart)


def saved(folder: Path, n: int = 3) -> list[Path]:
    return [save_potential(folder / f"{k}.pt", member) for k, member in enumerate(networks(n))]


def forces_of(potential: Potential) -> np.ndarray:
    return evaluate(potential, batch_of(cells(1), potential)).forces.numpy()


def test_opened_from_files(tmp_path):
    files = saved(tmp_path)
    committee = open_potential(f"committee:{files[0]}, {files[2]}")
    assert isinstance(committee, Committee) and not committee.training
    np.testing.assert_allclose(forces_of(committee), forces_of(Committee([networks(3)[0], networks(3)[2]])), atol=1e-14)
    with pytest.raises(ConfigError, match="needs two potentials or more, found 1"):
        open_potential(f"committee:{files[0]}")
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such file"):
        open_potential(f"committee:{files[0]},{tmp_path}/nowhere.pt")
    with pytest.raises(ConfigError, match="a committee takes no arguments, found rc"):
        open_potential(f"committee:{files[0]},{files[1]}", {"rc": 3.0})
    assert isinstance(make_teacher(f"committee:{files[0]},{files[1]}").parts["base"], Committee)
    made = label(cells(1), f"committee:{files[0]},{files[1]}", dtype=torch.float64, progress=False)
    np.testing.assert_allclose(made[0].get_forces(), forces_of(Committee(networks(2))), atol=1e-12)


def run_with(folder: Path, trained: int, wanted: int = 3) -> Path:
    """A run with two arms of ``wanted`` networks each, of which some are trained."""
    failures = {arm: [verdicts(2, 0.5, k) for k in range(wanted)] for arm in ("baseline", "pretrain")}
    made = make_run(folder, failures, frames=False)
    for arm in failures:
        for k, network in enumerate(networks(trained)):
            place = made / "3-networks" / (arm if k == 0 else f"{arm}-{k + 1}")
            file = save_potential(place / "finetune/best.pt", network)
            write_json(place / "done.json", {"key": "k", "result": {"checkpoint": str(file.relative_to(made))}})
    return made


def test_opened_from_the_arm_of_a_run(tmp_path, caplog):
    run = run_with(tmp_path / "demo", 3)
    for opened in (
        open_potential(f"{run}/pretrain"),
        load_potential(run / "pretrain"),
        open_potential(f"{run}/pretrain/"),
    ):
        assert isinstance(opened, Committee) and len(opened.potentials) == 3 and not opened.training
        np.testing.assert_allclose(forces_of(opened), forces_of(Committee(networks(3))), atol=1e-14)
    assert not caplog.records
    errors = prediction_errors(open_potential(f"{run}/pretrain"), labelled(cells(2)))
    assert errors.forces_mae > 0
    assert isinstance(make_teacher(f"{run}/pretrain").parts["base"], Committee)


def test_an_arm_that_is_not_there(tmp_path, caplog):
    run = run_with(tmp_path / "demo", 2)
    with pytest.raises(CheckpointError, match=r"demo: this run has no arm 'pretrian'; did you mean 'pretrain'\?"):
        open_potential(f"{run}/pretrian")
    with pytest.raises(
        CheckpointError, match=r"no such file, and no run in .*/dmeo; expected a checkpoint file, RUN/ARM"
    ):
        open_potential(f"{tmp_path}/dmeo/pretrain")
    with caplog.at_level(logging.WARNING):
        assert len(open_potential(f"{run}/pretrain").potentials) == 2
    assert "2 of 3 networks are trained" in caplog.text
    (run / "3-networks/pretrain-2/finetune/best.pt").unlink()
    with pytest.raises(CheckpointError, match=r"a checkpoint is gone: .*pretrain-2/finetune/best\.pt"):
        open_potential(f"{run}/pretrain")
    (run / "config.yml").unlink()
    with pytest.raises(CheckpointError, match="demo: holds no run"):
        open_potential(f"{run}/pretrain")


@pytest.mark.parametrize("wanted", [1, 3])
def test_one_network_is_no_committee(tmp_path, wanted):
    run = run_with(tmp_path / "demo", 1, wanted)
    said = rf"needs two networks, and 1 of {wanted} is trained; open it by its file, .*pretrain/finetune/best\.pt"
    with pytest.raises(CheckpointError, match=said) as raised:
        open_potential(f"{run}/pretrain")
    assert ("physpre.n_networks" in str(raised.value)) == (wanted == 1)


def test_the_energies_of_the_training_data_are_those_of_the_first_member():
    members = networks(2)
    members[0].training_energies = {"O2Si": -7.0}
    assert Committee(members).training_energies == {"O2Si": -7.0}
    assert Committee(networks(2)).training_energies is None


def test_the_example_of_the_page_runs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "committee.md").read_text()
    exec(re.search(r"```python\n(.*?)```", text, re.S).group(1), {})
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("(32, 3) 0.0") and told[-1].endswith("('uncertain',)"), told
