"""Teachers by name with a repulsion and a zero of energy, and the processes that they label in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from typer.testing import CliRunner

from mdl_physpre.cli.main import app
from mdl_physpre.errors import ConfigError, DataError, PhyspreError
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.sum import HybridPotential, SumPotential
from mdl_physpre.potentials.zbl import ZBL
from mdl_physpre.pretraining import labelling as teacher_module
from mdl_physpre.pretraining.labelling import compute_labels, label
from mdl_physpre.pretraining.teacher import make_teacher
from mdl_physpre.pretraining.teacher_energy_zero import fit_teacher_zero
from mdl_physpre.structures.graph import build_graph
from mdl_physpre.structures.labels import get_labels, set_labels
from mdl_physpre.structures.read import read_structures
from mdl_physpre.structures.write import write_structures
from tests.helpers.pages import run_page

EMT_NAME = "calculator:ase.calculators.emt.EMT"


def alloys(n: int = 6, squeeze: float = 1.0) -> list[Atoms]:
    rng = np.random.default_rng(0)
    structures = []
    for k in range(n):
        atoms = bulk("Cu", cubic=True, a=3.7 * squeeze)
        atoms.numbers[: 1 + k % 3] = 79
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
        atoms.info["structure_id"] = f"alloy-{k}"
        structures.append(atoms)
    return structures


@pytest.mark.parametrize("workers", [1, 2])
def test_calculator_plus_repulsion_is_their_sum(workers):
    structures = [*alloys(3, squeeze=0.6), Atoms("CuAu", [[0, 0, 0], [0.5, 0, 0]])]  # one without stress
    teacher = make_teacher(EMT_NAME, short_range="zbl", short_range_radii={"Cu-Au": 2.0})
    repulsion = ZBL(radii={"Cu-Au": 2.0})
    for atoms, labelled in zip(structures, label(structures, teacher, workers=workers), strict=True):
        plain = atoms.copy()
        plain.calc = EMT()
        added, found = evaluate(repulsion, build_graph(atoms, repulsion.cutoff)), get_labels(labelled)
        assert float(added.energies[0]) > 5.0
        assert found.energy == pytest.approx(plain.get_potential_energy() + float(added.energies[0]), rel=1e-12)
        np.testing.assert_allclose(found.forces, plain.get_forces() + added.forces.numpy(), rtol=1e-10, atol=1e-9)
        if atoms.pbc.all():
            stress = plain.get_stress(voigt=False) + added.stress[0].numpy()
            np.testing.assert_allclose(found.stress, stress, rtol=1e-10, atol=1e-10)
        else:
            assert found.stress is None
        whole = evaluate(teacher, build_graph(atoms, teacher.cutoff))  # as a potential it is the same
        assert float(whole.energies[0]) == pytest.approx(found.energy, rel=1e-9)
        np.testing.assert_allclose(whole.forces.numpy(), found.forces, rtol=1e-9, atol=1e-9)


def test_a_checkpoint_plus_repulsion(tmp_path):
    eam = EAMInteraction(["Cu", "Au"], cutoff=5.0, n_basis=2)
    file = save_potential(tmp_path / "eam.pt", eam)
    structures = alloys(2, squeeze=0.6)
    with_repulsion = EAMInteraction(["Cu", "Au"], cutoff=5.0, n_basis=2, short_range="zbl")
    with_repulsion.load_state_dict(eam.state_dict())
    teacher = make_teacher(str(file), short_range="zbl")
    for one, other in zip(*(compute_labels(structures, t, dtype=torch.float64) for t in (teacher, with_repulsion))):
        assert one.energy == pytest.approx(other.energy, rel=1e-10)
        np.testing.assert_allclose(one.forces, other.forces, rtol=1e-9, atol=1e-9)
    atoms = structures[0]
    graph = build_graph(atoms, teacher.cutoff)
    energies = [p.atomic_energies(graph).detach() for p in (teacher, with_repulsion)]
    torch.testing.assert_close(*energies, rtol=1e-10, atol=1e-10)
    file = save_potential(tmp_path / "repulsion.pt", with_repulsion)
    with pytest.raises(ConfigError, match="has a short-range repulsion already"):
        make_teacher(str(file), short_range="zbl")


def test_the_repulsion_of_a_hybrid_is_found(tmp_path):
    for repulsion in (None, "zbl"):
        eam = EAMInteraction(["Cu", "Au"], cutoff=4.0, n_basis=2, short_range=repulsion)
        network = CGCNN(elements=["Cu", "Au"], cutoff=4.0, dim1=4, dim2=4, gc_count=1, edge_dim=4)
        file = save_potential(tmp_path / "hybrid.pt", HybridPotential(network, eam))
        if repulsion is None:
            assert make_teacher(str(file), short_range="zbl").parts["repulsion"] is not None
        else:
            with pytest.raises(ConfigError, match="has a short-range repulsion already"):
                make_teacher(str(file), short_range="zbl")


def test_the_repulsion_of_a_network_shorter_than_it():
    """The repulsion may reach further than the potential, which then sees its own edges alone."""
    from tests.helpers.pair_teachers import SoftWall

    base, repulsion, atoms = SoftWall(cutoff=2.0), ZBL(["Au"]), bulk("Au", a=3.2)
    both = SumPotential(base=base, repulsion=repulsion)
    assert both.cutoff == pytest.approx(2 * 1.24)
    energy = [float(evaluate(p, build_graph(atoms, p.cutoff)).energies[0].detach()) for p in (both, base, repulsion)]
    assert energy[0] == pytest.approx(energy[1] + energy[2], rel=1e-12)
    assert energy[2] > 0.1


@pytest.mark.parametrize("workers", [1, 2])
def test_the_zero_of_energy_is_fitted(workers):
    """Labels that differ from the teacher by an energy of each element: nothing is left; forces stay."""
    structures = alloys(8)
    labelled = label(structures, EMT_NAME)
    shifts = {29: -3.5, 79: 11.0}
    for atoms in labelled:
        labels = get_labels(atoms)
        set_labels(atoms, labels.energy + sum(shifts[z] for z in atoms.numbers), labels.forces, labels.stress)
    teacher = make_teacher(EMT_NAME)
    found = fit_teacher_zero(teacher, [*labelled, bulk("Cu")], workers=workers)  # the last one has no label
    assert found["energies"] == pytest.approx({"Cu": -3.5, "Au": 11.0}, abs=1e-6)
    assert found["structures"] == 8 and found["before"] > 100 and found["after"] < 1e-3
    for atoms, again in zip(labelled, label(structures, teacher, workers=workers)):
        assert get_labels(again).energy == pytest.approx(get_labels(atoms).energy, abs=1e-6)
        np.testing.assert_allclose(get_labels(again).forces, get_labels(atoms).forces, atol=1e-12)


def test_zero_of_energy_without_energies_or_from_a_teacher_that_fails():
    teacher = make_teacher(EMT_NAME)
    with pytest.raises(DataError, match="none of 1 structures carries an energy"):
        fit_teacher_zero(teacher, [bulk("Cu")])
    iron = set_labels(bulk("Fe"), -8.0)
    with pytest.raises(DataError, match="zero of energy of the teacher: 1 of 1 .* 0 .no id.: NotImplementedError"):
        fit_teacher_zero(teacher, [iron])


def test_teachers_are_named_with_their_arguments():
    one, other = (make_teacher("ase.calculators.lj.LennardJones", {"rc": rc}) for rc in (3.0, 4.0))
    assert one.base.name != other.base.name and "LennardJones(rc=3.0)" in one.base.name
    with pytest.raises(ConfigError, match="expected zbl"):
        make_teacher(EMT_NAME, short_range="Zbl")
    with pytest.raises(ConfigError, match="no such checkpoint file"):
        make_teacher("nothing")


class Crash(LennardJones):
    """Ends its process when it meets gold."""

    def calculate(self, atoms=None, *args, **kwargs):
        if 79 in atoms.numbers:
            os._exit(3)
        super().calculate(atoms, *args, **kwargs)


def test_spawned_workers_give_the_same(monkeypatch):
    structures = alloys(4)
    expected = compute_labels(structures, EMT_NAME, workers=1)
    monkeypatch.setattr(teacher_module, "start_method", lambda: "spawn")
    for one, other in zip(expected, compute_labels(structures, EMT_NAME, workers=2), strict=True):
        assert one.energy == other.energy
        np.testing.assert_array_equal(one.forces, other.forces)
    with pytest.raises(ConfigError, match="cannot be sent to another process"):
        compute_labels(structures, lambda: LennardJones(), workers=2)


def test_a_crash_names_what_was_in_hand():
    structures = [bulk("Cu"), bulk("Cu"), bulk("Au"), bulk("Cu")]
    structures[2].info["structure_id"] = "nugget"
    with pytest.raises(PhyspreError, match=r"ended abruptly.*2 \(nugget\).*workers=1"):
        label(structures, Crash, workers=2)


def test_ctrl_c_ends_the_workers_at_once(tmp_path):
    """The first process stops within seconds though every structure takes a minute, and leaves no worker behind."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time, os\n"
        "from ase.build import bulk\n"
        "from ase.calculators.lj import LennardJones\n"
        "from mdl_physpre import label\n"
        "class Slow(LennardJones):\n"
        "    def calculate(self, *args, **kwargs):\n"
        "        os.write(1, b'%d\\n' % os.getpid())\n"  # in one piece, whatever the other worker writes
        "        time.sleep(60)\n"
        "label([bulk('Cu')] * 4, Slow, workers=2, progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    workers = [int(process.stdout.readline()) for _ in range(2)]
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=30)
    assert time.monotonic() - started < 20
    assert process.returncode in (-signal.SIGINT, 1, 130)
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_command(tmp_path):
    bare, dft = tmp_path / "bare.extxyz", tmp_path / "dft.extxyz"
    write_structures(bare, alloys(4))
    shifted = label(alloys(4), EMT_NAME)
    write_structures(dft, [set_labels(a, get_labels(a).energy + 2.0 * len(a)) for a in shifted])
    arguments = ["label", bare, tmp_path / "out.extxyz", "--teacher", EMT_NAME, "--short-range", "zbl"]
    arguments += ["--short-range-radius", "Cu-Au=1.0", "--short-range-radius", "Au-Au=1.0"]
    arguments += ["--short-range-radius", "Cu-Cu=1.0", "--zero-from", dft, "--processes", 2]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    for atoms, true in zip(read_structures(tmp_path / "out.extxyz"), read_structures(dft), strict=True):
        assert get_labels(atoms).energy == pytest.approx(get_labels(true).energy, abs=1e-5)
    wrong = CliRunner().invoke(app, [*(str(a) for a in arguments[:5]), "--short-range-radius", "Cu-Au"])
    assert isinstance(wrong.exception, ConfigError) and "PAIR=DISTANCE" in str(wrong.exception)


def test_perturbed_structures_carry_the_labels_of_the_same_teacher(tmp_path):
    """``physpre perturb`` takes the repulsion and the zero of ``physpre label``, says what it drew, and redraws."""
    dft, out, again = (tmp_path / name for name in ("dft.extxyz", "out.extxyz", "again.extxyz"))
    write_structures(dft, [set_labels(a, 2.0 * len(a)) for a in alloys(4)])
    teacher = ["--teacher", EMT_NAME, "--short-range", "zbl", "--zero-from", str(dft), "--processes", "2"]
    made = CliRunner().invoke(app, ["perturb", str(dft), str(out), "--n-aug", "2", *teacher])
    assert made.exit_code == 0, (made.output, made.exception)
    assert made.output.count("pretraining set:") == 1 and "8 structures" in made.output
    assert CliRunner().invoke(app, ["label", str(out), str(again), *teacher]).exit_code == 0
    for atoms, labelled in zip(read_structures(out), read_structures(again), strict=True):
        assert get_labels(atoms).energy == pytest.approx(get_labels(labelled).energy, abs=1e-5)
        np.testing.assert_allclose(get_labels(atoms).forces, get_labels(labelled).forces, atol=1e-5)
    alone = CliRunner().invoke(app, ["perturb", str(dft), str(out), "--short-range", "zbl"])
    assert isinstance(alone.exception, ConfigError) and "give --teacher" in str(alone.exception)


class Program(LennardJones):
    """Ends the program when it meets gold, and counts its calculations in a file."""

    def __init__(self, count: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def calculate(self, atoms=None, *args, **kwargs):
        if self.count:
            with open(self.count, "a") as file:
                file.write("x")
        if 79 in atoms.numbers:
            sys.exit(3)
        super().calculate(atoms, *args, **kwargs)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_calculator_that_ends_the_program_fails_at_that_structure(workers):
    found = compute_labels([bulk("Cu"), bulk("Au"), bulk("Ag")], Program, workers=workers)
    assert [getattr(result, "reason", "") for result in found] == ["", "SystemExit: 3", ""]


def test_a_calculator_that_ends_the_program_when_it_is_built():
    def build():
        sys.exit(3)

    with pytest.raises(ConfigError, match="cannot be built: SystemExit: 3"):
        label([bulk("Cu")], build)


def test_the_command_labels_what_can_be_labelled(tmp_path):
    mixed, out = tmp_path / "mixed.extxyz", tmp_path / "out.extxyz"
    structures = [bulk("Cu"), *(bulk("Si") for _ in range(12)), bulk("Au")]
    for k, atoms in enumerate(structures):
        atoms.info["structure_id"] = f"s{k}"
    write_structures(mixed, structures)
    arguments = ["label", str(mixed), str(out), "--teacher", EMT_NAME, "--processes", "1"]
    failed = CliRunner().invoke(app, arguments)
    assert isinstance(failed.exception, DataError) and not out.exists()
    assert "12 of 14" in str(failed.exception) and "physpre label --skip-failed" in str(failed.exception)
    done = CliRunner().invoke(app, [*arguments, "--skip-failed"])
    assert done.exit_code == 0, (done.output, done.exception)
    told = f"{out}: 2 structures; 12 of 14 left out: " + ", ".join(f"{k} (s{k})" for k in range(1, 13))
    assert told in done.output
    assert [atoms.info["structure_id"] for atoms in read_structures(out)] == ["s0", "s13"]
    write_structures(mixed, [bulk("Si")])
    nothing = CliRunner().invoke(app, [*arguments, "--skip-failed"])
    assert "1 of 1 structures could not be labelled" in str(nothing.exception)
    assert "--skip-failed" not in str(nothing.exception)


@pytest.mark.parametrize("command", ["label", "perturb"])
def test_what_cannot_be_written_is_said_before_labelling(command, tmp_path):
    bare, count, file = tmp_path / "bare.extxyz", tmp_path / "count", tmp_path / "file"
    write_structures(bare, [bulk("Cu", cubic=True)])
    file.write_text("")
    teacher = ["--teacher", f"calculator:{__name__}.Program?count={count}", "--processes", "1"]
    for target, words in (
        ("out.cif", ".cif stands for no known format"),
        ("", "is a folder|no suffix stands for no known format"),
        ("file/out.extxyz", "cannot be written"),
    ):
        result = CliRunner().invoke(app, [command, str(bare), str(tmp_path / target), *teacher])
        assert isinstance(result.exception, DataError), result.output
        assert re.search(words, str(result.exception)), result.exception
    (tmp_path / "folder.extxyz").mkdir()
    result = CliRunner().invoke(app, [command, str(bare), str(tmp_path / "folder.extxyz"), *teacher])
    assert isinstance(result.exception, DataError) and "is a folder" in str(result.exception)
    assert not count.exists()
    assert CliRunner().invoke(app, [command, str(bare), str(tmp_path / "new" / "out.extxyz"), *teacher]).exit_code == 0
    assert count.exists()


@pytest.mark.parametrize("command", ["label", "perturb"])
def test_at_least_one_process(command, tmp_path):
    bare, out = tmp_path / "bare.extxyz", tmp_path / "out.extxyz"
    write_structures(bare, [bulk("Cu", cubic=True)])
    result = CliRunner().invoke(app, [command, str(bare), str(out), "--teacher", EMT_NAME, "--processes", "0"])
    assert result.exit_code == 2 and re.search("--processes.*1", result.output) and "Error" in result.output
    assert not out.exists()
    with pytest.raises(ConfigError, match="workers is 0; expected at least 1"):
        label([bulk("Cu")], EMT_NAME, workers=0)


def test_chgnet_labels_oxides():
    """A foundation model whose weights come with its package, with another zero of energy than the labels."""
    pytest.importorskip("chgnet", reason="CHGNet is not installed (docs/teachers.md says how)")
    atoms = bulk("MgO", "rocksalt", 4.25)
    atoms.rattle(0.05, seed=0)
    (labelled,) = label([atoms], "calculator:chgnet.model.dynamics.CHGNetCalculator?use_device=cpu", workers=1)
    found = get_labels(labelled)
    assert -15 < found.energy < -9  # a pair of Mg and O in MgO, with the corrections of the Materials Project
    assert found.forces.shape == (2, 3) and np.abs(found.forces.sum(0)).max() < 1e-3
    assert found.stress.shape == (3, 3)


def test_the_page_on_teachers_of_others_runs(tmp_path):
    run_page("extending/teacher.md", tmp_path)
