"""A small run with every arm: one configuration, one report, and what each arm is made of."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms

from mdl_physpre import build_graph, evaluate, load_potential
from mdl_physpre.analysis import force_alignment
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials import HybridPotential, RepulsivePotential
from mdl_physpre.potentials.zbl import shortest_distances
from mdl_physpre.workflow.config.file import load_config
from mdl_physpre.workflow.data import load_data
from mdl_physpre.workflow.run import run
from tests.helpers.small_runs import write_oxide

ARMS = [
    "baseline", "sam", "pretrain", "hybrid", "replay", "sam+pretrain", "pretrain+hybrid", "pretrain+hybrid+replay",
    "zbl", "pretrain+zbl", "hybrid+zbl",
]  # fmt: skip

CONFIG = """
dataset: {{src: {data}, split: {{test: 4, val: 4}}}}
model: {{name: CGCNN, cutoff: 4.0, dim1: 8, dim2: 8, gc_count: 1, post_fc_count: 1, edge_dim: 8}}
optim: {{max_epochs: 3, lr: 1.0e-3, batch_size: 3}}
physpre:
  arms: [{arms}]
  eam: {{cutoff: 5.0, n_basis: 2, epochs: 5}}
  perturbation: {{n_aug: 2, n_pairs: 1}}
  pretrain: {{max_epochs: 2, batch_size: 4}}
  sam: {{rho: 0.05}}
  replay: {{share: 0.4, weight: 0.5}}
  dynamics: {{temperature: 300, timestep: 1.0, steps: 20, n_structures: 2}}
  report: {{formats: []}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_oxide(folder / "mgo.extxyz", 20)
    path = folder / "small.yml"
    path.write_text(CONFIG.format(data=folder / "mgo.extxyz", arms=", ".join(ARMS)))
    return path


def checkpoint(summary, arm):
    return summary.arms[arm].networks[0].checkpoint


def when_done(folder):
    return {p.parent.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("done.json")}


def test_every_arm_has_the_same_parts_of_the_summary(finished):
    folder, summary = finished
    for name in ARMS:
        arm = summary.arms[name]
        assert arm.errors["test"].counts["forces"] == 4
        assert arm.dynamics.counts.n == 2
        assert bool(arm.errors_before_finetuning) == ("pretrain" in name or name == "replay")
        angles = arm.force_angles["test"]
        assert angles.n_atoms + angles.zero_force == 32
    assert len({summary.arms[name].errors["test"].forces_mae for name in ARMS if "zbl" not in name}) == len(ARMS) - 3
    tables = (folder / "log.txt").read_text()
    assert all(f"test: {arm} " in tables for arm in ARMS)


def test_budgets_say_what_each_arm_spends(finished):
    _, summary = finished
    steps = 12  # three epochs of twelve structures, three at a time
    for arm in ARMS:
        spent = summary.arms[arm].training
        finetune = spent["finetune"]
        assert finetune.steps == steps
        assert finetune.gradients == steps * (2 if "sam" in arm else 1)
        assert finetune.structures == steps * (3 + (2 if "replay" in arm else 0))
        assert ("pretrain" in spent) == ("pretrain" in arm or arm == "replay")
        if "pretrain" in spent:
            assert (spent["pretrain"].steps, spent["pretrain"].gradients) == (12, 12)


def test_the_same_pretraining_is_done_once(finished):
    folder, _ = finished

    def weights(arm):
        return load_potential(folder / "3-networks" / arm / "pretrain" / "best.pt").state_dict()

    first = (folder / "3-networks" / "pretrain" / "pretrain" / "best.pt").read_bytes()
    for arm in ("replay", "sam+pretrain"):
        assert (folder / "3-networks" / arm / "pretrain" / "best.pt").read_bytes() == first
    assert weights("pretrain+hybrid").keys() != weights("pretrain").keys()
    log = (folder / "log.txt").read_text()
    assert "sam+pretrain: pretraining is that of" in log
    assert "pretrain+hybrid+replay: pretraining is that of pretrain+hybrid" in log


def test_a_repulsion_ends_where_the_training_data_begin(finished, config):
    """So that the network beside it is that of the baseline: what it adds, it adds where there are no data."""
    folder, summary = finished
    shortest = shortest_distances(load_data(load_config(config)).train)
    known = {"O-O": shortest[8, 8], "O-Mg": shortest[8, 12], "Mg-Mg": shortest[12, 12]}
    for arm in ("zbl", "pretrain+zbl", "hybrid+zbl"):
        assert summary.arms[arm].networks[0].short_range_radii == known
    zbl, plain = (load_potential(folder / checkpoint(summary, arm)) for arm in ("zbl", "baseline"))
    assert zbl.reference.as_dict() == plain.reference.as_dict()
    for name, value in plain.state_dict().items():
        if "reference" not in name:
            torch.testing.assert_close(zbl.network.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    close = Atoms("MgO", [[0, 0, 0], [0, 0, 0.8]])
    energies = [float(evaluate(p, build_graph(close, 4.0, dtype=torch.float32)).energies) for p in (zbl, plain)]
    assert energies[0] > energies[1] + 10
    both = load_potential(folder / checkpoint(summary, "hybrid+zbl"))
    assert isinstance(both, HybridPotential) and isinstance(both.network, RepulsivePotential)
    hybrid = load_potential(folder / checkpoint(summary, "hybrid"))
    assert both.reference.as_dict() == pytest.approx(hybrid.reference.as_dict())
    assert "repulsion of the nuclei (ZBL) up to" in (folder / "log.txt").read_text()


def test_two_repulsions_in_one_arm_are_an_error(config, tmp_path):
    with pytest.raises(ConfigError, match="has a short-range repulsion already"):
        run(config, ["physpre.arms=[hybrid+zbl]", "physpre.eam.short_range=zbl"], out=tmp_path / "run")
    with pytest.raises(ConfigError, match="'MgO' is no pair of elements"):
        load_config(config, ["physpre.zbl.short_range_radii={MgO: 1.0}"])


def test_hybrids_hold_the_fitted_potential_and_one_reference(finished):
    folder, summary = finished
    fitted = load_potential(folder / "1-eam" / "eam.pt")
    for arm in ("hybrid", "pretrain+hybrid"):
        potential = load_potential(folder / checkpoint(summary, arm))
        assert isinstance(potential, HybridPotential) and potential.cutoff == 5.0
        assert not torch.equal(potential.eam.D, fitted.D)  # it was trained
        assert potential.reference.as_dict() == pytest.approx(dict(zip([12, 8], fitted.E0.tolist())))
        assert not potential.eam.E0.detach().any() and not potential.network.reference.as_dict()
    # before finetuning, the embedded-atom part is still the teacher
    before = load_potential(folder / "3-networks" / "pretrain+hybrid" / "pretrain" / "best.pt")
    assert torch.equal(before.eam.D, fitted.D)


def test_angles_of_a_hybrid_are_those_of_its_two_parts(finished):
    folder, summary = finished
    structures = load_data(load_config(folder / "config.yml")).test
    potential = load_potential(folder / checkpoint(summary, "hybrid"))
    assert summary.arms["hybrid"].force_angles["test"] == force_alignment(potential.eam, potential.network, structures)
    eam, network = (load_potential(folder / p) for p in ("1-eam/eam.pt", checkpoint(summary, "baseline")))
    assert summary.arms["baseline"].force_angles["test"] == force_alignment(eam, network, structures)


def test_a_frozen_potential_stays_and_only_hybrids_are_done_again(finished, config):
    folder, _ = finished
    before = when_done(folder)
    changes = ["physpre.hybrid.train_eam=false", "physpre.dynamics.n_structures=0"]
    summary = run(config, changes, out=folder, overwrite=True)
    after = when_done(folder)
    hybrids = ("hybrid", "pretrain+hybrid", "pretrain+hybrid+replay", "hybrid+zbl")
    # what is not wanted any more is cleared away with the training that it belonged to, and stays elsewhere
    assert {n for n in before if after.get(n) != before[n]} == {
        f"3-networks/{arm}{stage}" for arm in hybrids for stage in ("", "/errors", "/dynamics")
    }
    assert all(arm.dynamics is None for arm in summary.arms.values())
    potential = load_potential(folder / checkpoint(summary, "hybrid"))
    fitted = load_potential(folder / "1-eam" / "eam.pt")
    assert all(
        torch.equal(p, dict(fitted.named_parameters())[n]) for n, p in potential.eam.named_parameters() if n != "E0"
    )


def test_an_arm_depends_on_its_own_keys_alone(config):
    arms = ["physpre.arms=[sam, baseline, sam+pretrain]"]
    loaded = load_config(config, [*arms, "physpre.sam.rho=0.3", "physpre.sam.adaptive=false"])
    sam, plain, both = loaded.arms
    assert (loaded.training_settings(sam).sam_rho, loaded.training_settings(sam).sam_adaptive) == (0.3, False)
    assert loaded.training_settings(plain).sam_rho is None
    assert loaded.pretraining_settings(both).sam_rho is None
    everywhere = load_config(config, [*arms, "physpre.sam.pretraining=true"])
    assert everywhere.pretraining_settings(everywhere.arms[2]).sam_rho == 0.05


FREEZE = """
from mdl_physpre.training import Part
from mdl_physpre.utils.settings import setting


class Freeze(Part):
    name = "freeze"
    description = "The parameters whose names begin like this are not trained in finetuning."

    class Settings(Part.Settings):
        layers: tuple[str, ...] = setting((), "Beginnings of names.")

    def prepare(self, stage, potential):
        for name, parameter in potential.named_parameters():
            if stage == "finetune" and name.startswith(self.settings.layers):
                parameter.requires_grad_(False)
"""


def test_a_part_in_one_file_of_somebody_else(config, tmp_path, monkeypatch):
    (tmp_path / "frozen_of_somebody.py").write_text(FREEZE)
    monkeypatch.syspath_prepend(tmp_path)
    arm = "pretrain+frozen_of_somebody:Freeze"
    few = ["physpre.dynamics.n_structures=0", f"physpre.arms=[pretrain, '{arm}']", "optim.max_epochs=1"]
    layers = "physpre.freeze.layers=[conv_list.]"
    for change, message in (
        ("physpre.freeze.layers=3", "physpre.freeze.layers: found 3"),
        ("physpre.freeze.layer=[a]", "physpre.freeze.layer: unknown key; did you mean 'layers'"),
        ("physpre.freze.layers=[a]", "physpre.freze: unknown key"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(config, [*few, change])
    folder = tmp_path / "run"
    summary = run(config, [*few, layers], out=folder)
    assert list(summary.arms) == ["pretrain", "pretrain+freeze"]
    first, second = (
        load_potential(folder / f"3-networks/pretrain+freeze/{s}/best.pt") for s in ("pretrain", "finetune")
    )
    for name, value in dict(first.named_parameters()).items():
        assert torch.equal(value, dict(second.named_parameters())[name]) == name.startswith("conv_list."), name
    before = when_done(folder)
    run(folder / "config.yml", out=folder)
    assert when_done(folder) == before
    run(config, [*few, "physpre.freeze.layers=[]"], out=folder, overwrite=True)
    changed = {name for name, time in when_done(folder).items() if before[name] != time}
    assert changed == {"3-networks/pretrain+freeze", "3-networks/pretrain+freeze/errors"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("physpre.arms=[hybrid+replay]", "has no pretraining; write 'pretrain[+]hybrid[+]replay'"),
        ("physpre.arms=[replay, pretrain+replay]", "is the same as 'replay'"),
        ("physpre.arms=[pretrian]", "did you mean 'pretrain'"),
        ("physpre.replay.share=1.5", "physpre.replay.share"),
        ("physpre.sam.rho=-1", "physpre.sam.rho"),
        ("physpre.hybrid.freeze=true", "unknown key"),
        ("optim.sam_rho=0.1", "optim.sam_rho: unknown key"),
    ],
)
def test_mistakes_are_named_before_anything_runs(config, change, message):
    with pytest.raises(ConfigError, match=message):
        load_config(config, [change])
