"""Histograms of angles between forces as numbers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from mdl_physpre.analysis.force_alignment import force_alignment
from mdl_physpre.potentials import EAMInteraction
from mdl_physpre.report.output.write import write_report
from mdl_physpre.runs.read import read_run
from mdl_physpre.runs.summary import ArmResult
from tests.helpers.made_up_runs import make_run, verdict


def test_the_csv_file_holds_the_whole_histogram_of_each_arm(tmp_path: Path) -> None:
    structures = [bulk("MgO", "rocksalt", 4.3, cubic=True) for _ in range(2)]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.1, seed=seed)
    near, far = (EAMInteraction(["Mg", "O"], cutoff=r, n_basis=2) for r in (4.0, 5.0))
    found = {"pretrain": force_alignment(near, near, structures), "hybrid": force_alignment(near, far, structures)}
    run = make_run(tmp_path / "run", {arm: [[verdict(0, None)]] for arm in found})
    summary = read_run(run).summary
    for arm, angles in found.items():
        network = summary.arms[arm].networks[0].model_copy(update={"force_angles": {"test": angles}})
        summary.arms[arm] = ArmResult(networks=(network,))
    summary.write(run)
    write_report(run)
    rows = list(csv.DictReader((run / "report" / "force-angles.csv").open()))
    for arm, angles in found.items():
        mine = [row for row in rows if row["arm"] == arm and row["test set"] == "test"]
        assert [float(row["atoms"]) for row in mine] == list(angles.atoms) and sum(angles.atoms) == 16
        assert [float(row["from, °"]) for row in mine] == list(angles.edges[:-1])
        np.testing.assert_allclose([float(row["weight, eV/Å"]) for row in mine], angles.weighted)
        assert sum(float(r["share of independent directions"]) for r in mine) == pytest.approx(1.0)
    assert f"{found['hybrid'].mean:.1f}" in (run / "report.html").read_text()
