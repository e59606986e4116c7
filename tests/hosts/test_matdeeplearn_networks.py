"""The real MatDeepLearn with networks of this package, complete edges for its own, and the report of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from mdl_physpre import build_graph, evaluate, open_potential
from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.checkpoints.matdeeplearn_models import LATE
from tests.helpers.gpu_stand_in import DEVICE, counting  # before any gradient is taken
from tests.helpers.matdeeplearn_runs import (
    CUTOFF,
    configuration,
    crystals,
    host_batch,
    host_model,
    needs_host,
    run_here,
)

pytestmark = needs_host
POOLED = {"pool": "global_add_pool", "pool_order": "late"}
SIZES: dict[str, dict[str, Any]] = {
    "CGCNN": {"dim1": 16, "dim2": 16, "gc_count": 2, "post_fc_count": 1, "batch_norm": False, "act": "silu", **POOLED},
    LATE: {
        "hidden_channels": 16,
        "num_layers": 2,
        "num_rbf": 16,
        "num_heads": 4,
        "num_post_layers": 1,
        "post_hidden_channels": 16,
        "aggr": "add",
        **POOLED,
    },
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mdl_physpre.hosts.matdeeplearn.plugin import register

    register()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("names", [("CGCNN", "physpre.CGCNN"), (LATE, "physpre.torchmd_etEarly")])
def test_same_parameters_same_numbers(names: tuple[str, str]) -> None:
    """The host's network, this package's in its place, and the host's with kept edges; edges found or brought along."""
    from mdl_physpre.hosts.matdeeplearn import CompleteEdges

    theirs, ours = (host_model(name, **SIZES[names[0]]) for name in names)
    given_edges = host_model(names[0], edges="physpre", **SIZES[names[0]])
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert [n for n, _ in ours.named_parameters()] and ours.state_dict().keys() == theirs.state_dict().keys()
    given_edges.load_state_dict(ours.state_dict())
    found = host_batch(crystals(3))
    brought = Batch.from_data_list([CompleteEdges(CUTOFF)(data) for data in found.to_data_list()])
    expected = theirs(found.clone())
    slope = torch.autograd.grad(expected["pos_grad"].square().sum(), [*theirs.parameters()], allow_unused=True)
    for model in (ours, given_edges):
        for batch in (found, brought):
            out = model(batch.clone())
            for name, values in expected.items():
                torch.testing.assert_close(out[name], values, rtol=1e-4, atol=2e-5)
        own = torch.autograd.grad(out["pos_grad"].square().sum(), [*model.parameters()], allow_unused=True)
        for one, other in zip(own, slope):
            if other is not None and one is not None:
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max() + 1e-3))


def test_edges_that_are_brought_along_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing is fetched from a GPU for them; those of another cutoff are refused."""
    from mdl_physpre.hosts.matdeeplearn import CompleteEdges, edges

    models = [host_model("physpre.CGCNN", dim1=8, dim2=8), host_model("eam_interaction", atom_types=["Si", "O"])]
    parts = host_batch(crystals(2)).to_data_list()
    brought, others = (Batch.from_data_list([CompleteEdges(c)(d.clone()) for d in parts]) for c in (CUTOFF, 3.0))
    monkeypatch.setattr(edges, "_found_in", None)
    for model in models:
        assert torch.isfinite(model(brought)["output"]).all()
        with pytest.raises(ConfigError, match="cutoff of 3 Å, and the network one of 4.5"):
            model(others)


@pytest.mark.parametrize("name", ["eam_interaction", "physpre.CGCNN"])
def test_a_batch_on_a_gpu_is_not_waited_for(name: str) -> None:
    """Nothing is fetched from it for edges that the structures bring along; for others positions are."""
    from mdl_physpre.hosts.matdeeplearn import CompleteEdges

    given: dict[str, Any] = {"atom_types": ["Si", "O"]} if name == "eam_interaction" else {"dim1": 8, "dim2": 8}
    model, found = host_model(name, **given).to(DEVICE), host_batch(crystals(2))
    brought = Batch.from_data_list([CompleteEdges(CUTOFF)(data.clone()) for data in found.to_data_list()])
    waited = []
    for batch in (brought, found):
        batch = batch.to(DEVICE)
        model(batch.clone())  # once for what is made once
        with counting() as counts:
            model(batch)["pos_grad"].square().sum().backward()
        waited.append(counts.waited)
        assert not counts.clashes
    assert waited[0] == 0 < waited[1], counts.syncs


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"name": "physpre.CGCNN", "batch_norm": True}}, "batch_norm"),
        ({"model": {"name": "CGCNN", "edges": "all"}}, "expected host, MatDeepLearn's, or physpre"),
    ],
)
def test_what_cannot_be_is_said(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_here(configuration(tmp_path, **sections))


def test_hosts_network_with_kept_edges_trains(tmp_path: Path) -> None:
    """Perturbed anew in each epoch, so that edges must follow the atoms."""
    config = configuration(tmp_path, model={"edges": "physpre"})
    config["physpre"]["pretrain"]["online"] = True
    trainer = run_here(config)
    assert "CompleteEdges" in repr(trainer.dataset["train"].transform)
    folder = tmp_path / "results" / trainer.timestamp_id / "pretrain" / "finetune"
    open_potential(folder / "checkpoint_0" / "best_checkpoint.pt")


def test_kept_edges_with_the_hosts_own_trainer(tmp_path: Path) -> None:
    """Where MatDeepLearn's graph would lack most of them; what cannot be is refused, not passed over."""
    from mdl_physpre.hosts.matdeeplearn.data import host_dataset, host_items, loading_of_datasets
    from mdl_physpre.hosts.matdeeplearn.settings import complete, engine_config

    config, wanted = configuration(tmp_path), ("energy", "forces", "stress")
    complete(config, engine_config(config), 0)
    items = host_items(crystals(), np.zeros(119), wanted)
    parts = {"train": items[:8], "val": items[8:10], "test": items[10:]}
    config["dataset"] = host_dataset(tmp_path / "host", parts, config["dataset"], wanted)
    config["trainer"], config["model"]["edges"] = "property", "physpre"
    with loading_of_datasets():
        trainer = run_here(config)
        batch = next(iter(trainer.data_loader[0]["val_loader"]))
        with torch.no_grad():
            trainer.model[0](batch)
        expected = build_graph(crystals()[8], CUTOFF, torch.float32).edge_index.shape[1]
        assert int((batch.batch[batch.edge_index[0]] == 0).sum()) == expected
        config["model"]["otf_edge_index"] = False
        with pytest.raises(ConfigError, match="set model.otf_edge_index and otf_edge_attr to True"):
            run_here(config)
        config["model"]["edges"] = "all"
        with pytest.raises(ConfigError, match="expected host, MatDeepLearn's, or physpre"):
            run_here(config)


def test_report_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors, dynamics, comparison and report of both arms, from checkpoints of the host. Nothing is done twice."""
    from mdl_physpre.hosts.matdeeplearn import plan

    whole = plan.report_config

    def without_figures(*given: Any) -> Any:
        found = whole(*given)
        tables = found.physpre.model_copy(update={"report": found.physpre.report.changed(formats=["csv"])})
        return found.model_copy(update={"physpre": tables})

    monkeypatch.setattr(plan, "report_config", without_figures)
    config = configuration(tmp_path, model={"name": "physpre.CGCNN"})
    dynamics = {"n_structures": 2, "steps": 20, "temperature": 300}
    config["physpre"].update(arms=["baseline", "pretrain"], report=True, dynamics=dynamics)
    trainer = run_here(config)
    folder = tmp_path / "results" / trainer.timestamp_id
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert [*summary["arms"]] == ["baseline", "pretrain"] and [*(folder / "run" / "report").glob("*.csv")]
    pretrained = summary["arms"]["pretrain"]
    assert pretrained["dynamics"]["counts"] and pretrained["errors_before_finetuning"]["test"]
    assert pretrained["training"]["pretrain"]["epochs"] == 2 and pretrained["training"]["finetune"]["steps"] == 4
    host_loss = json.loads((folder / "pretrain" / "finetune" / "done.json").read_text())["best_loss"][0]
    assert pretrained["networks"][0]["training"]["finetune"]["best_loss"] == pytest.approx(host_loss)
    atoms = crystals(1)[0]
    files = ("pretrain/finetune/checkpoint_0/best_checkpoint.pt", "run/3-networks/pretrain/finetune/best.pt")
    energies = [
        float(evaluate(open_potential(folder / f), build_graph(atoms, CUTOFF, torch.float32)).energies) for f in files
    ]
    assert energies[0] == pytest.approx(energies[1], rel=1e-6)
    config["task"].update(continue_job=True, checkpoint_path=str(folder))
    before = (folder / "run" / "3-networks" / "pretrain" / "dynamics" / "done.json").stat().st_mtime_ns
    run_here(config)
    assert (folder / "run" / "3-networks" / "pretrain" / "dynamics" / "done.json").stat().st_mtime_ns == before


def test_no_report_of_a_network_that_the_host_alone_has(tmp_path: Path) -> None:
    config = configuration(tmp_path, model={"name": "SchNet"})
    config["physpre"]["report"] = True
    with pytest.raises(ConfigError, match="network of MatDeepLearn alone"):
        run_here(config)
