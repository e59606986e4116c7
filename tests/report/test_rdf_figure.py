"""The figure of radial distribution functions: its files, panels, curves and words."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from matplotlib import pyplot

from mdl_physpre.analysis.radial_distribution import RDF, RDFAccumulator, rdf
from mdl_physpre.errors import DataError
from mdl_physpre.report.figures.rdf import draw_rdfs


def result(seed: int, symbols: str = "O4Si2") -> dict:
    rng = np.random.default_rng(seed)
    return rdf([Atoms(symbols, rng.random((len(Atoms(symbols)), 3)) * 5, cell=[5, 5.5, 6], pbc=True)], bins=60)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    kept: list = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    return kept


def test_a_panel_for_each_pair_with_units_and_errors(tmp_path: Path, figures: list) -> None:
    files = draw_rdfs(
        {"baseline": result(1), "pretrain": RDF.model_validate(result(2).plain())},
        tmp_path / "new" / "rdf.png",
        result(3),
        "DFT",
    )
    assert [file.name for file in files] == ["rdf.png", "rdf.svg"]
    assert files[0].read_bytes()[:4] == b"\x89PNG"
    assert ElementTree.parse(files[1]).getroot().tag.endswith("svg")
    axes = [axis for axis in figures[0].axes if axis.get_visible()]
    assert [axis.get_title() for axis in axes] == ["O–O", "O–Si", "Si–Si"]
    for axis in axes:
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("distance r (Å)", "g(r)")
        names = [text.get_text() for text in axis.get_legend().get_texts()]
        assert [name.split(":")[0] for name in names] == ["DFT", "baseline", "pretrain"]
        assert names[1].endswith(" Å"), "its errors"
        curves = [line for line in axis.get_lines() if line.get_label() in names]
        np.testing.assert_allclose(curves[0].get_ydata(), result(1).g[axis.get_title().replace("–", "-")])
        assert axis.get_xlim() == (0, 6)


def test_any_names_can_be_told_apart_in_grey(tmp_path: Path, figures: list) -> None:
    names = ["baseline", "mattersim", "pretrain", "mace", "EAM", "chgnet"]
    draw_rdfs({name: result(k) for k, name in enumerate(names)}, tmp_path / "rdf")
    assert (tmp_path / "rdf.png").exists()
    curves = [line for line in figures[0].axes[0].get_lines() if line.get_label() in names]
    assert len({str(line.get_linestyle()) + str(line._unscaled_dash_pattern) for line in curves}) == len(names)
    assert len({line.get_color() for line in curves}) == len(names)


def test_pairs_that_only_some_have_and_no_pair_at_all(tmp_path: Path, figures: list) -> None:
    draw_rdfs({"one": result(1, "O6"), "other": result(2)}, tmp_path / "rdf.svg", result(3, "Si6"))
    assert [axis.get_title() for axis in figures[0].axes if axis.get_visible()] == ["Si–Si", "O–O", "O–Si"]
    with pytest.raises(DataError, match="no frames"):
        draw_rdfs({"one": RDFAccumulator([8, 14]).result()}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_pictures_are_closed(tmp_path: Path) -> None:
    before = pyplot.get_fignums()
    draw_rdfs({"one": result(1)}, tmp_path / "rdf.png")
    assert pyplot.get_fignums() == before
