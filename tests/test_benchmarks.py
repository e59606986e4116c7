"""``benchmarks/gpu.py`` runs in small: on the CPU, and on the stand-in for a GPU without a clash of devices.

``benchmarks/known_truth.py`` runs in small, goes on where it was stopped, and finds the truth without error.
"""

from __future__ import annotations

import json
import os

import gpu as script
import known_truth
import learning_curve
import pytest
import small_data

from tests.helpers.gpu_stand_in import DEVICE, counting


def rows_without_errors(content: dict, section: str) -> list[dict]:
    found = content["sections"][section]
    assert "error" not in found, found
    rows = [row for row in found["rows"] if row.get("error") != "not installed"]
    assert all("error" not in row for row in rows), rows
    return rows


def test_it_keeps_to_twenty_minutes_in_parts_of_nine():
    assert set(script.MINUTES) == set(script.SECTIONS)
    assert sum(script.MINUTES.values()) <= 20 and max(script.MINUTES.values()) < 9


def test_all_sections_on_the_cpu(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    script.main(["--device", "cpu", "--small", "--out", str(out)])
    content, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert list(content["sections"]) == list(script.SECTIONS) and content["small"]
    for row in rows_without_errors(content, "same"):
        bound = 1e-10 if row["dtype"] == "float64" else 1e-4
        assert all(row[what] < bound for what in ("energies", "forces", "stress", "gradient")), row
    for row in rows_without_errors(content, "training"):
        assert row["structures_per_s"] == pytest.approx(row["batch"] / row["ms"] * 1e3)
    assert {row["ensemble"] for row in rows_without_errors(content, "dynamics")} == {"nvt", "npt"}
    sides = {row["side"] for row in rows_without_errors(content, "autograd")}
    assert sides == {"eager", "autograd of atomic energies", "autograd of PyG's CGConv"}
    rows_without_errors(content, "others")
    costs = rows_without_errors(content, "paper")
    assert len(costs) == 7 and all(row["extrapolated_hours"] > 0 and row["measured"] for row in costs)
    for name in script.SECTIONS:
        assert f"\n{name}, " in printed


def test_on_a_device_that_is_not_the_cpu():
    with counting() as counts:
        content = script.main(["--device", str(DEVICE), "--small"])
    assert counts.clashes == {} and counts.kernels > 10_000
    for row in rows_without_errors(content, "same"):
        bound = 1e-6 if row["dtype"] == "float64" else 1e-4  # functions of distance may stand in tables on the CPU
        assert row["forces"] < bound, row
    for name in ("training", "dynamics", "autograd", "paper"):
        assert rows_without_errors(content, name)


def test_plain_differentiation_is_of_the_same_network():
    bench = script.Bench("cpu", small=True)
    for name, cutoff in bench.cases:
        potential, graph = bench.potential(name, cutoff), bench.batch(2, cutoff)
        found = script.differentiated(potential.atomic_energies, graph)
        expected = script.evaluate(potential, graph)
        assert script.difference(found.forces, expected.forces) < 1e-4
        assert script.difference(found.stress, expected.stress) < 1e-4


def test_a_section_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    def fails(bench):
        yield {"first": 1}
        raise RuntimeError("no such kernel")

    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--small", "--out", str(out)]
    monkeypatch.setitem(script.SECTIONS, "same", fails)
    script.main([*arguments, "--section", "same", "--section", "repeatable"])
    monkeypatch.setitem(script.MINUTES, "training", 0.0)
    script.main([*arguments, "--section", "training"])  # another command; what is there stays
    sections = json.loads(out.read_text())["sections"]
    assert sections["same"]["rows"] == [{"first": 1}] and "no such kernel" in sections["same"]["error"]
    assert all(row["forces"] == "same bits" for row in sections["repeatable"]["rows"])
    assert all(row["error"] == "no time left" for row in sections["training"]["rows"])


def test_an_experiment_with_a_known_truth(tmp_path, capsys):
    arguments = ["--truth", "emt", "--quick", "--replicas", "1", "--out", str(tmp_path)]
    content = known_truth.main(arguments)
    arms = content["arms"]
    assert list(arms) == ["truth", "teacher", *known_truth.ARMS]
    right = arms.pop("truth")
    assert all(e["energy"] < 1e-3 and e["forces"] < 1e-6 for e in right["errors"].values())
    assert right["own"]["wrong"] == 0 and right["own"]["forces_mae"] < 1e-6 and right["rdf"]["mae"] == 0
    for found in arms.values():
        assert list(found["errors"]) == ["test", "hot_2000", "hot_4000", "volume_85", "pair_pushed"]
        assert (
            found["errors"]["test"]["forces"] > 1e-3 and found["own"]["forces_mae"] > 1e-3 and found["rdf"]["mae"] > 0
        )
    pushed = [arms[name]["errors"]["pair_pushed"]["forces"] for name in ("baseline", "zbl")]
    assert pushed[1] < pushed[0]  # the repulsion is there where the data end
    stored = json.loads((tmp_path / "known_truth.json").read_text())
    assert set(stored["arms"]) == {"truth", *arms} and (tmp_path / "known_truth.png").exists()
    assert (tmp_path / "known_truth.md").read_text() in capsys.readouterr().out
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/done.json")}
    curve = learning_curve.main([str(tmp_path), "--out", str(tmp_path / "curve")])
    assert "| hybrid | 4 | 1 |" in curve and (tmp_path / "curve" / "learning_curve.png").exists()
    known_truth.main(arguments)
    assert done and {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/done.json")} == done


def test_a_truth_that_is_not_installed_is_told(monkeypatch, capsys):
    monkeypatch.setattr("truths.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        known_truth.main(["--truth", "sio2"])
    assert ended.value.code == 0 and "chgnet is not installed" in capsys.readouterr().err


def test_where_networks_of_small_data_break(tmp_path, capsys):
    if not os.environ.get("PHYSPRE_DATA"):
        pytest.skip("PHYSPRE_DATA names no folder with the real data")
    arms = ["baseline", "zbl"]
    options = ["silicon", "--quick", "--replicas", "1", "--arms", *arms, "--stress", "heating", "--out", str(tmp_path)]
    small_data.main(options)
    told = (tmp_path / "silicon" / "small_data.md").read_text()
    for arm in arms:
        assert f"| default | {arm} | > 600 K" in told, "networks of four steps hold to 600 K"
    assert told.strip() in capsys.readouterr().out


def test_errors_of_recipes_on_small_data(tmp_path, capsys):
    if not os.environ.get("PHYSPRE_DATA"):
        pytest.skip("PHYSPRE_DATA names no folder with the real data")
    options = ["silicon", "--quick", "--replicas", "2", "--out", str(tmp_path)]
    options += ["--try", "a: dataset.fraction=0.04", "--try", "b: dataset.fraction=0.04 optim.ema_decay=0.5"]
    small_data.main(options)
    told = (tmp_path / "silicon" / "small_data.md").read_text()
    for recipe in "ab":
        for arm in ("baseline", "pretrain"):
            (row,) = [line for line in told.splitlines() if line.startswith(f"| {recipe} | {arm} | 2 |")]
            assert row.count("±") == 3
    assert told.strip() in capsys.readouterr().out
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    small_data.main(options)
    assert len(done) > 4 and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")} == done
