"""Reports of a small run: by the run itself, while it goes on, and from its folder."""

import json
import re

import pytest
from typer.testing import CliRunner

from mdl_physpre.cli.main import app
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.workflow.run import run
from tests.helpers.small_runs import called


@pytest.fixture
def without_figures(monkeypatch):
    """Figures take most of a report's time, and have tests of their own."""
    monkeypatch.setattr("mdl_physpre.report.output.sections.drawn", lambda *_: None)


def fail(error):
    raise error


def test_a_run_leaves_page_figures_tables_and_cards(finished):
    folder, summary = finished
    for figure in ("energy-curves.png", "survival.png", "parity-test.svg", "force-angles-test.png"):
        assert (folder / "report" / figure).stat().st_size > 5000
    card = (folder / summary.arms["pretrain"].networks[0].checkpoint).with_name("model_card.md").read_text()
    assert "| elements | O, Mg |" in card and "16 structures" in card and "| energies trained on | MgO −" in card
    assert "| short-range repulsion | none |" in card
    assert (
        "| test | this network | 4 |" in card and "| test | EAM | 4 |" in card and "| test | null model | 4 |" in card
    )
    page = (folder / "report.html").read_text()
    assert 0 < page.index("Use potential.pt:") < page.index("Stability:")
    assert "null model" in (folder / "report" / "table-2-errors.csv").read_text()


def test_a_report_does_not_outlive_its_configuration(finished, config, monkeypatch):
    folder, _ = finished
    shown = {"summary.json", "potential.pt", "report.html", "survival.png", "structures.csv"}
    assert shown <= {p.name for p in folder.glob("*")} | {p.name for p in folder.glob("report/*")}
    with monkeypatch.context() as patched:
        patched.setattr(
            "mdl_physpre.workflow.setup.load_data", lambda _: (_ for _ in ()).throw(DataError("unreadable"))
        )
        with pytest.raises(DataError):  # nothing is known yet of what the change means: all stays
            run(config, ["physpre.dynamics.temperature=320"], out=folder, overwrite=True)
        assert shown <= {p.name for p in folder.rglob("*")}
    with monkeypatch.context() as patched:
        stop = "mdl_physpre.workflow.stages.network.dynamics_stage"
        patched.setattr(stop, lambda *_: fail(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(config, ["physpre.dynamics.temperature=320"], out=folder, overwrite=True)
        assert not shown & {p.name for p in folder.rglob("*")}
    run(config, out=folder)
    assert shown <= {p.name for p in folder.rglob("*")}


def test_the_report_links_the_files_that_exist(finished, config, tmp_path):
    folder, _ = finished
    linked = set(re.findall(r'href="(report/.*?)"', (folder / "report.html").read_text()))
    assert {"report/survival.svg", "report/table-2-errors.csv", "report/structures.csv"} <= linked
    assert linked == {f"report/{p.name}" for p in (folder / "report").glob("[!.]*.*")}
    run(config, ["physpre.arms=[baseline]", "physpre.dynamics.n_structures=0"], out=tmp_path / "one")
    page = (tmp_path / "one" / "report.html").read_text()
    assert "survival.svg" not in page and "No simulation has finished" in page and "not finished.</strong>" not in page
    run(config, ["physpre.arms=[baseline]", "physpre.report.formats=[]"], out=tmp_path / "none")
    assert not list((tmp_path / "none").glob("report*"))


def test_a_report_while_the_run_goes_on(config, tmp_path, monkeypatch, without_figures):
    """It shows the arms that are done, says what is missing, and the same from its folder alone."""
    import mdl_physpre.workflow.stages.network as module

    monkeypatch.setattr("mdl_physpre.workflow.reports.REFRESH", 0.0)
    original = module.network_stages

    def stop_at_the_second(*arguments):
        if arguments[-1].arm.name == "pretrain":
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "network_stages", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run(config, out=tmp_path)
    pages = [(tmp_path / "report.html").read_text()]
    called("report", tmp_path)
    pages.append((tmp_path / "report.html").read_text())
    for page in pages:
        assert "This run is not finished." in page
        assert "pretrain: molecular dynamics is not finished" in page and "baseline: molecular" not in page
        assert "Table 1. Structures that failed" in page and '<th scope="row" class="word">baseline (NVT)' in page
    told = called("status", tmp_path)
    assert re.search(r"3-networks/baseline +done", told) and re.search(r"3-networks/pretrain +waiting", told)
    assert "not running, 4 of 6 stages done" in told
    run(config, out=tmp_path)
    assert "This run is not finished." not in (tmp_path / "report.html").read_text()
    assert "every stage is done" in called("status", tmp_path)


def test_formats_and_mistakes(finished, tmp_path):
    folder, _ = finished
    told = called("report", folder, "--format", "pdf,csv")
    assert (folder / "report.pdf").read_bytes()[:5] == b"%PDF-" and "report.pdf" in told
    assert not list(folder.glob("report/*.svg")) and list(folder.glob("report/*.csv"))
    wrong = CliRunner().invoke(app, ["report", str(folder), "--format", "word"])
    assert isinstance(wrong.exception, ConfigError) and "word" in str(wrong.exception)
    wrong = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(wrong.exception, DataError) and "holds no run" in str(wrong.exception)


def test_data_that_changed_are_not_taken_for_those_of_the_run(data, finished, without_figures):
    folder, _ = finished
    content = data.read_bytes()
    stored = {path: path.read_bytes() for path in (folder / "report" / "data").iterdir()}
    try:
        for path in stored:
            path.unlink()
        data.write_bytes(content.replace(b"Mg ", b"Mg  ", 1))
        called("report", folder)
        assert "the data files have changed since the run" in (folder / "report.html").read_text()
    finally:
        data.write_bytes(content)
        for path, kept in stored.items():
            path.write_bytes(kept)


def test_nothing_is_computed_twice(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr("mdl_physpre.report.measurements.load_potential", lambda *_: pytest.fail("computed again"))
    called("report", folder)
    page = (folder / "report.html").read_text()
    assert "could not be drawn" not in page and "parity-test.svg" in page
    assert json.loads((folder / "data.json").read_text())["sets"]["train"]["structures"] == 16
