"""C code that comes compiled with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase.build import bulk

from mdl_physpre import build_graph, evaluate
from mdl_physpre.potentials import EAMInteraction
from mdl_physpre.potentials.eam import operators
from mdl_physpre.potentials.kernels import c_build, c_code

SOURCE = Path("potentials/eam/operators.c")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder with the embedded-atom potential's code for all levels, as a wheel has it."""
    if c_build.find_compiler() is None or c_build.family() not in c_build.LEVELS:
        pytest.skip("there is no C compiler here, or the processor is of another family")
    monkeypatch.setattr(c_build, "SOURCES", {str(SOURCE): ("float", "double")})
    made = list(c_build.build_levels(c_code.PACKAGE, tmp_path / c_build.FOLDER))
    assert len(made) == 2 * len(c_build.LEVELS[c_build.family()])
    return tmp_path


def test_every_source_is_listed():
    sources = {str(path.relative_to(c_code.PACKAGE)) for path in c_code.PACKAGE.rglob("*.c")}
    assert sources == set(c_build.SOURCES)


def test_the_best_level_that_the_processor_can_run_is_taken(package, monkeypatch):
    levels = c_build.LEVELS[c_build.family()]
    for level, needs in levels.items():
        monkeypatch.setattr(c_build, "processor_flags", lambda needs=needs: {"fpu", *needs})
        found = c_build.built_library(package, SOURCE, "float")
        assert found is not None and found.name == f"eam-operators-float-{level}.so"
    (package / c_build.FOLDER / f"eam-operators-float-{level}.so").unlink()
    assert c_build.built_library(package, SOURCE, "float") is None


def test_without_a_compiler_the_code_that_came_with_the_package_is_used(package, monkeypatch):
    potential = EAMInteraction(["Si"], cutoff=5.0)
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=0)
    graph = build_graph(atoms, 5.0)
    with c_code.tensor_operations():
        expected = evaluate(potential, graph)
    monkeypatch.setattr(c_code, "PACKAGE", package)
    monkeypatch.setattr(c_code, "find_compiler", lambda: None)
    c_code.compiled.cache_clear()
    try:
        assert operators.CODE.library("double") is not None
        found = evaluate(potential, graph)
    finally:
        c_code.compiled.cache_clear()
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.stress, expected.stress, rtol=1e-9, atol=1e-11)
