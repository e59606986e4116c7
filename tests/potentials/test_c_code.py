from __future__ import annotations

import math

import pytest
import torch
from ase.build import bulk

from mdl_physpre.potentials.backbones.cgcnn import operators
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.kernels import c_code
from mdl_physpre.structures.graph import build_graph


@pytest.fixture(autouse=True)
def forgetful(monkeypatch, tmp_path):
    """Libraries are found anew, in an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    c_code.compiled.cache_clear()
    yield
    c_code.compiled.cache_clear()


def forces(scale: float = 1.0) -> torch.Tensor:
    torch.manual_seed(0)
    potential = CGCNN(cutoff=4.0, dim1=6, gc_count=2)
    with torch.no_grad():
        for convolution in potential.conv_list:
            convolution.lin_s.bias += scale
            convolution.lin_f.bias -= scale
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=0)
    return evaluate(potential, build_graph(atoms, cutoff=4.0, dtype=torch.float32)).forces


def with_compiler() -> None:
    if operators.CODE.library("float") is None:
        pytest.skip("there is no C compiler here")


@pytest.mark.parametrize("scale", [0.0, 3.0, -3.0, 30.0, -30.0, 80.0, -80.0, 300.0, -300.0])
def test_large_arguments_of_the_gate(scale, monkeypatch):
    """sigmoid and softplus far from zero: finite, and as the tensor operations in double precision have them."""
    with_compiler()
    found = forces(scale)
    monkeypatch.setattr(operators.CODE, "dtypes", {})
    by_tensors = forces(scale)
    assert torch.isfinite(found).all()
    scale = max(by_tensors.abs().max().item(), 1e-6)
    assert (found - by_tensors).abs().max().item() < 1e-4 * scale
    assert math.isfinite(scale)


def test_the_library_is_compiled_once(tmp_path):
    with_compiler()
    made = list((tmp_path / "cache" / "mdl_physpre").iterdir())
    assert [p.suffix for p in made] == [".so"]
    before = made[0].stat().st_mtime_ns
    c_code.compiled.cache_clear()
    assert operators.CODE.library("float") is not None
    assert made[0].stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "value"), [("CC", "/no/such/compiler"), ("CC", "false"), ("MDL_PHYSPRE_NATIVE", "0"), ("CC", "true")]
)
def test_without_a_compiler_the_tensor_operations_do(name, value, monkeypatch):
    expected = forces()
    c_code.compiled.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")  # cannot be written
    monkeypatch.setenv(name, value)
    assert operators.CODE.library("float") is None
    torch.testing.assert_close(forces(), expected, rtol=1e-4, atol=1e-7)


def test_a_cache_folder_that_cannot_be_written(monkeypatch):
    with_compiler()
    c_code.compiled.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert operators.CODE.library("float") is not None
