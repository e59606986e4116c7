"""Several tests in a folder: what is done is read again, what has changed is done anew, mistakes come before work."""

from __future__ import annotations

import json
import logging
import pickle
import re
import sys
from pathlib import Path

import pytest

from mdl_physpre import write_structures
from mdl_physpre.errors import ConfigError, DataError, PhyspreError
from mdl_physpre.report.tables.stress import format_stress
from mdl_physpre.stress_tests import BreakingPoint, StressResult, run_stress_tests
from mdl_physpre.utils.processes import run_lock
from mdl_physpre.workflow.config.file import parse_config, stress_settings
from mdl_physpre.workflow.config.reference import section
from mdl_physpre.workflow.config.schema import Config
from tests.cli.test_commands import called
from tests.helpers.pages import run_page
from tests.helpers.pair_potentials import Attraction, Morse
from tests.helpers.small_structures import crystals

PAGE = Path(__file__).parents[2] / "docs" / "extending" / "stress_test.md"
OTHER = "third_party:Rattling"
BRIEF = {"temperature_end": 900.0, "rate": 30_000.0, "timestep": 2.0}
BOTH = {"heating": BRIEF, OTHER: {"largest": 0.2}}
LEAST = {"dataset": {"src": "nothing.xyz"}, "model": {"name": "CGCNN"}}


@pytest.fixture(autouse=True)
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with the class of the documentation."""
    found = re.search(r"```python\n# third_party.py\n(.*?)```", PAGE.read_text(), re.S)
    assert found
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "third_party.py").write_text(found.group(1))
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.delitem(sys.modules, "third_party", raising=False)


@pytest.mark.parametrize("page", ["stress.md", "extending/stress_test.md"])
def test_the_pages_run_as_they_stand(tmp_path: Path, page: str) -> None:
    run_page(page, tmp_path)


def test_a_molecule_that_cannot_be_compressed_is_told_before_it_is_heated(tmp_path: Path) -> None:
    molecule = crystals(1)[0]
    molecule.pbc = False
    with pytest.raises(DataError, match="compression needs three periodic directions"):
        run_stress_tests(Morse(), [molecule], {"heating": BRIEF, "compression": {}}, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_what_is_done_is_read_and_what_changed_is_done_anew(tmp_path: Path, caplog) -> None:
    structures, out = crystals(2), tmp_path / "out"
    first = run_stress_tests(Morse(), structures, BOTH, out, progress=False)
    assert list(first) == ["heating", OTHER] and first["heating"].seconds > 0
    assert first[OTHER].unit == "Å" and not any(p.broken for p in first[OTHER].points)
    assert first[OTHER].settings["largest"] == 0.2 and first["heating"].settings["rate"] == 30_000

    def again(potential=None, tests=None, atoms=None) -> set[str]:
        """Which tests are done anew."""
        caplog.clear()
        with caplog.at_level(logging.INFO, "mdl_physpre"):
            run_stress_tests(potential or Morse(), atoms or structures, tests or BOTH, out, False, True)
        return {n for n in BOTH if f"stress test {n} of" in caplog.text}

    assert again() == set()
    assert run_stress_tests(Morse(), structures, BOTH, out, progress=False) == first
    (out / "third_party-Rattling" / "of-mine.txt").write_text("")
    changed = {**BOTH, OTHER: {"largest": 0.3}}
    assert again(tests=changed) == {OTHER} and not (out / "third_party-Rattling" / "of-mine.txt").exists()
    assert again(tests={"heating": {**BRIEF, "compile": False, "dynamics": {}}}) == set()
    assert again(tests={"heating": {**BRIEF, "seed": 1}}) == {"heating"}
    assert again(atoms=crystals(3)) == set(BOTH)
    other = Morse()
    other.scale *= 0.9
    assert again(other, atoms=crystals(3)) == set(BOTH)
    (out / "heating" / "result.json").write_text('{"key": 3')
    assert again(other, atoms=crystals(3)) == {"heating"}


def test_results_are_plain_and_come_back(tmp_path: Path) -> None:
    made = run_stress_tests(Attraction(), crystals(1), {"heating": BRIEF}, tmp_path, progress=False)["heating"]
    assert StressResult.model_validate(json.loads(json.dumps(made.plain()))) == made
    assert StressResult.model_validate(json.loads((tmp_path / "heating" / "result.json").read_text())["result"]) == made


def test_one_process_works_in_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mdl_physpre.stress_tests.run.LOCK_WAIT", 0.0)
    with run_lock(tmp_path), pytest.raises(PhyspreError, match="another process is running there"):
        run_stress_tests(Morse(), crystals(1), BOTH, tmp_path)


def test_mistakes_come_before_any_work(tmp_path: Path) -> None:
    for tests, words in (
        ({"heating": BRIEF, "heatin": {}}, "unknown stress test 'heatin': did you mean 'heating'"),
        ({"heating": BRIEF, OTHER: {"large": 3}}, f"{OTHER}.large: unknown key; did you mean 'largest'"),
        ({"heating": BRIEF, "third_party:RattlingSettings": {}}, "is not a class derived from"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            run_stress_tests(Morse(), crystals(1), tests, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path) -> None:
    from ase.build import bulk

    write_structures(tmp_path / "cu.extxyz", [bulk("Cu", cubic=True)])
    told = called(
        "stress", "calculator:ase.calculators.emt.EMT", tmp_path / "cu.extxyz", "--min-atoms", 8, "--tests",
        f"heating,{OTHER}", "--set", "heating.temperature_end=700", "--set", "heating.rate=2e4", "--set",
        f"{OTHER}.points=4", "--out", tmp_path / "out", "--json", tmp_path / "all.json",
    )  # fmt: skip
    assert "heating: median breaking point above 700 K; 0 of 1 broke" in told and "Cu8" in told
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["heating"]["points"][0]["value"] == 700 and found[OTHER]["settings"]["points"] == 4
    assert (tmp_path / "out" / "third_party-Rattling" / "result.json").is_file()


def test_overrides_of_the_command() -> None:
    found = stress_settings(["heating"], ["heating.dynamics.overlap_ratio=0.4", "heating.seed=2"])
    assert found["heating"].dynamics == {"overlap_ratio": 0.4} and found["heating"].seed == 2
    with pytest.raises(ConfigError, match="'heatin.rate=3' is a setting of none of the tests; did you mean 'heating'"):
        stress_settings(["heating"], ["heatin.rate=3"])


def test_the_section_of_a_configuration() -> None:
    assert parse_config(LEAST).physpre.stress.chosen() == {}
    stress = {"tests": ["heating", OTHER], "heating": {"rate": 900}, OTHER: {"largest": 2.0}}
    made = parse_config({**LEAST, "physpre": {"stress": stress}})
    chosen = made.physpre.stress.chosen()
    assert chosen["heating"].rate == 900 and chosen[OTHER].largest == 2
    dumped = made.model_dump(mode="json")["physpre"]["stress"]
    assert dumped["heating"]["rate"] == 900 and dumped[OTHER]["largest"] == 2
    assert Config.model_validate(made.model_dump(mode="json")) == made
    assert pickle.loads(pickle.dumps(made)) == made  # it goes to the processes of a run
    assert (
        parse_config({**LEAST, "physpre": {"stress": {"tests": [OTHER]}}}).physpre.stress.chosen()[OTHER].points == 20
    )
    assert "| `rate` | `5000.0` | K/ps |" in section("physpre.stress.heating")
    for wrong, words in (
        ({"tests": ["heatin"]}, "unknown stress test 'heatin': did you mean 'heating'"),
        ({"heating": {"rat": 1}}, "physpre.stress.heating.rat: unknown key; did you mean 'rate'"),
        ({"heatin": {"rate": 1}}, "physpre.stress.heatin: unknown key; did you mean 'heating'"),
        ({"tests": [OTHER], OTHER: {"points": 0}}, f"physpre.stress.{OTHER}.points: found 0"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            parse_config({**LEAST, "physpre": {"stress": wrong}})


def point(value: float, broken: bool, k: int = 0) -> BreakingPoint:
    reason = "overlap" if broken else None
    return BreakingPoint(
        structure_id=str(k), index=k, formula="Si", n_atoms=1, value=value, broken=broken, reason=reason
    )


def test_the_table_of_the_terminal() -> None:
    points = (point(812.34, True), point(900, False, 1))
    told = format_stress({"heating": StressResult(test="heating", quantity="temperature", unit="K", points=points)})
    assert "heating: median breaking point 812 K; 1 of 2 broke: overlap 1" in told and "> 900" in told
