"""Errors of radial distribution functions, and references from stored trajectories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from scipy.stats import wasserstein_distance

from mdl_physpre.analysis.radial_distribution import RDF, RDFAccumulator, average_rdfs, rdf
from mdl_physpre.analysis.rdf_errors import RDFError, rdf_errors, reference_rdf
from mdl_physpre.errors import DataError


def frames(seed: int, n: int = 4, symbols: str = "O4Si2", name: str | None = None) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        atoms = Atoms(symbols, rng.random((len(Atoms(symbols)), 3)) * 5, cell=[5, 5.5, 6], pbc=True)
        if name is not None:
            atoms.info["structure_id"] = name
        found.append(atoms)
    return found


def test_wasserstein_is_that_of_scipy_for_evenly_filled_bins() -> None:
    one, other = rdf(frames(1), r_max=4.0, bins=16), rdf(frames(2), r_max=4.0, bins=16)
    edges, parts = one.edges, 4000
    shells = edges[1:] ** 3 - edges[:-1] ** 3
    fine = (np.arange(16 * parts) + 0.5) * (4.0 / 16 / parts)
    for pair, error in rdf_errors(one, other).items():
        weights = [np.repeat(result.g[pair] * shells, parts) for result in (one, other)]
        assert error.wasserstein == pytest.approx(wasserstein_distance(fine, fine, *weights), rel=1e-5)
        assert error.mae == pytest.approx(np.mean(np.abs(one.g[pair] - other.g[pair])))
        assert error.wasserstein > 0.01


def test_a_shifted_distance_is_as_far_as_it_is_shifted() -> None:
    def pair_at(distance: float) -> dict:
        return rdf([Atoms("ArNe", [[0, 0, 0], [distance, 0, 0]], cell=[30] * 3, pbc=True)], r_max=6.0, bins=60)

    for far in (2.05, 2.35, 5.05):
        assert rdf_errors(pair_at(far), pair_at(1.55))["Ne-Ar"].wasserstein == pytest.approx(far - 1.55)
    # the mean absolute error cannot tell near from far once peaks no longer overlap
    near, distant = (rdf_errors(pair_at(far), pair_at(1.55))["Ne-Ar"].mae for far in (2.05, 5.05))
    assert near > distant


def test_nothing_is_wrong_with_itself_and_json_changes_nothing() -> None:
    found, reference = rdf(frames(1)), rdf(frames(2))
    assert all(error == RDFError(mae=0.0, wasserstein=0.0) for error in rdf_errors(found, found).values())
    read_back = [RDF.model_validate(json.loads(json.dumps(one.plain()))) for one in (found, reference)]
    assert rdf_errors(*read_back) == rdf_errors(found, reference)
    forward, back = rdf_errors(found, reference), rdf_errors(reference, found)
    assert forward["O-Si"].plain() == pytest.approx(back["O-Si"].plain())


def test_other_bins_are_an_error_that_names_both() -> None:
    with pytest.raises(DataError, match=r"found has 40 bins up to 6 Å.*the reference has 120 bins up to 6 Å"):
        rdf_errors(rdf(frames(1), bins=40), rdf(frames(1)))
    with pytest.raises(DataError, match=r"found has 120 bins up to 5 Å.*the reference has 120 bins up to 6 Å"):
        rdf_errors(rdf(frames(1), r_max=5.0), rdf(frames(1)))
    with pytest.raises(DataError, match=r"smoothed by 0.05 Å.*smoothed by 0 Å"):
        rdf_errors(rdf(frames(1), smoothing=0.05), rdf(frames(1)))


def test_pairs_that_one_lacks_have_no_error() -> None:
    errors = rdf_errors(rdf(frames(1)), rdf(frames(2, symbols="O6")))
    assert errors["O-Si"] == errors["Si-Si"] == RDFError()
    assert errors["O-O"].mae > 0
    broken = RDFAccumulator(frames(1)[0].numbers).result()
    assert rdf_errors(broken, rdf(frames(1)))["O-O"] == RDFError()
    # two atoms that never come within range: heights can be compared, distances cannot
    far = rdf([Atoms("ArNe", [[0, 0, 0], [15, 15, 15]], cell=[30] * 3, pbc=True)])
    near = rdf([Atoms("ArNe", [[0, 0, 0], [2, 0, 0]], cell=[30] * 3, pbc=True)])
    assert rdf_errors(near, far)["Ne-Ar"].wasserstein is None
    assert rdf_errors(near, far)["Ne-Ar"].mae > 0


def test_references_from_files(tmp_path: Path) -> None:
    one, other = frames(1, 6, name="one"), frames(2, 3, "OSi5", name="other")
    mixed = [one[0], other[0], one[1], *other[1:], *one[2:]]
    write(tmp_path / "both.extxyz", mixed)
    found = reference_rdf(tmp_path / "both.extxyz", bins=30)
    assert {name: result.frames for name, result in found.items()} == {"one": 6, "other": 3}
    np.testing.assert_allclose(found["one"].g["O-Si"], rdf(one, bins=30).g["O-Si"], rtol=1e-6)
    average = average_rdfs(found.values())
    assert (average.frames, average.structures) == (9, 2)

    # a folder, other formats, no names: those of the files
    folder = tmp_path / "many"
    folder.mkdir()
    write(folder / "a.traj", frames(1, 6))
    write(folder / "b.extxyz.gz", frames(2, 3), format="extxyz")
    found = reference_rdf(folder, bins=30, skip=1, every=2)
    assert {name: result.frames for name, result in found.items()} == {"a": 3, "b": 1}
    np.testing.assert_allclose(found["a"].g["O-Si"], rdf(frames(1, 6)[1::2], bins=30).g["O-Si"], rtol=1e-10)


def test_references_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no reference trajectory"):
        reference_rdf(tmp_path / "absent.extxyz")
    with pytest.raises(DataError, match="holds no frames"):
        reference_rdf(tmp_path)
    write(tmp_path / "mixed.extxyz", [*frames(1, 2), *frames(1, 1, "OSi5")])
    with pytest.raises(DataError, match=r"mixed.extxyz, frame 2: OSi5 .*structure_id"):
        reference_rdf(tmp_path / "mixed.extxyz")
    whole = tmp_path / "cut.extxyz"
    write(whole, frames(1, 3))
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cut.extxyz cannot be read after 2 frames"):
        reference_rdf(whole)
    broken = frames(1, 3)
    broken[1].positions[0] = np.nan
    write(tmp_path / "nan.traj", broken)
    with pytest.raises(DataError, match=r"nan.traj, frame 1: positions are not finite"):
        reference_rdf(tmp_path / "nan.traj")
    with pytest.raises(DataError, match="every at least 1"):
        reference_rdf(whole, every=0)
