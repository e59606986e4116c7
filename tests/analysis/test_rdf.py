"""Radial distribution functions: ideal gas, crystals, ASE's own, supercells, restarts, smoothing and averages."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.geometry.rdf import get_rdf
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl_physpre.analysis.radial_distribution import RDF, RDFAccumulator, average_rdfs, rdf
from mdl_physpre.errors import DataError


def random_frame(seed: int, symbols: str = "O4Si2", size: float = 5.0, skew: float = 0.3) -> Atoms:
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * size + rng.uniform(-skew, skew, (3, 3)) * size
    return Atoms(symbols, rng.random((len(Atoms(symbols)), 3)) @ cell, cell=cell, pbc=True)


def shell_volumes(edges: np.ndarray) -> np.ndarray:
    return 4 * np.pi / 3 * (edges[1:] ** 3 - edges[:-1] ** 3)


def direct(frames: list[Atoms], a: int, b: int, edges: np.ndarray) -> np.ndarray:
    """g_ab by enumeration of images, pair by pair of its definition."""
    total = np.zeros(len(edges) - 1)
    grid = np.stack(np.meshgrid(*[np.arange(-5, 6)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for atoms in frames:
        first, second = atoms.positions[atoms.numbers == a], atoms.positions[atoms.numbers == b]
        vectors = second[None, :, None] - first[:, None, None] + (grid @ atoms.cell[:])[None, None]
        distances = np.linalg.norm(vectors, axis=-1).ravel()
        counts = np.histogram(distances[distances > 1e-9], edges)[0]
        total += atoms.get_volume() * counts / (len(first) * len(second) * shell_volumes(edges))
    return total / len(frames)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_definition_in_skew_narrow_and_changing_cells(seed: int) -> None:
    frames = [random_frame(seed + k, "O3Si2", size=4 + 0.3 * k) for k in range(3)]
    frames[1].positions += np.array([[2, -1, 3]] * 5) @ frames[1].cell[:]  # need not lie in the cell
    found = rdf(frames, r_max=5.0, bins=25)
    assert found.frames == 3
    for pair, (a, b) in {"O-O": (8, 8), "O-Si": (8, 14), "Si-Si": (14, 14)}.items():
        np.testing.assert_allclose(found.g[pair], direct(frames, a, b, found.edges), rtol=1e-10, atol=1e-12)


def test_agrees_with_ase_in_a_cell_that_is_wide_enough() -> None:
    atoms = Atoms("O64Si36", np.random.default_rng(0).random((100, 3)) * 13, cell=[13.0] * 3, pbc=True)
    found = rdf([atoms], r_max=6.0, bins=60)
    for pair, elements in {"O-O": (8, 8), "O-Si": (8, 14), "Si-Si": (14, 14)}.items():
        want, r = get_rdf(atoms, 6.0, 60, elements=elements)
        np.testing.assert_allclose(found.g[pair], want, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found.r, r)


def test_an_ideal_gas_has_one_within_statistics() -> None:
    rng = np.random.default_rng(3)
    n, frames, size = 60, 150, 14.0
    gas = [Atoms(f"O{n // 2}Si{n // 2}", rng.random((n, 3)) * size, cell=[size] * 3, pbc=True) for _ in range(frames)]
    found = rdf(gas, r_max=6.0, bins=12)
    for pair, level, ordered in (("O-Si", 1.0, 1), ("O-O", 1 - 2 / n, 2)):
        # number of independent pairs expected in each shell: its Poisson error
        pairs = frames * (n / 2) ** 2 / ordered * shell_volumes(found.edges) / size**3
        z = (found.g[pair] - level) * np.sqrt(pairs)
        assert np.abs(z[2:]).max() < 4
        assert 0.2 < np.mean(z[2:] ** 2) < 3


def test_shells_and_coordination_numbers_of_crystals() -> None:
    a = 3.6
    found = rdf([bulk("Cu", "fcc", a=a)], r_max=6.0, bins=240)
    number = found.coordination["Cu-Cu"]
    shells = a * np.sqrt([0.5, 1, 1.5, 2, 2.5])
    within = [number[np.searchsorted(found.edges, (r + s) / 2) - 1] for r, s in zip(shells, shells[1:])]
    np.testing.assert_allclose(within, [12, 18, 42, 54])
    filled = np.flatnonzero(found.g["Cu-Cu"])
    assert set(filled) == {int(r / 0.025 + 1e-9) for r in shells}, "nothing between the shells"
    salt = rdf([bulk("NaCl", "rocksalt", a=5.64)], r_max=5.0, bins=100)
    at = np.searchsorted(salt.edges, 3.4) - 1
    assert salt.coordination["Na-Cl"][at] == pytest.approx(6)
    assert salt.coordination["Cl-Na"][at] == pytest.approx(6)
    assert salt.coordination["Na-Na"][at] == 0


def test_coordination_tells_which_atom_is_at_the_centre() -> None:
    # every C has two O, every O has one C
    atoms = Atoms("OCO", [[0, 0, 0], [1.2, 0, 0], [2.4, 0, 0]], cell=[9, 9, 9], pbc=True)
    found = rdf([atoms], r_max=2.0, bins=20)
    assert found.coordination["C-O"][-1] == 2
    assert found.coordination["O-C"][-1] == 1
    assert list(found.g) == ["C-C", "C-O", "O-O"], "lighter element first"
    # the integral of the definition: c_ab = N_b/V Σ g v
    integral = 2 / 9**3 * (found.g["C-O"] * shell_volumes(found.edges)).sum()
    assert integral == pytest.approx(2)


@pytest.mark.parametrize("smoothing", [0.0, 0.07])
def test_a_narrow_cell_has_the_function_of_its_supercell(smoothing: float) -> None:
    for seed in range(5):
        narrow = random_frame(seed, "O2Si", size=3.0, skew=0.2)
        wide = make_supercell(narrow, [[3, 0, 0], [1, 2, 0], [0, -1, 3]])
        one, other = (rdf([a], r_max=6.0, bins=60, smoothing=smoothing) for a in (narrow, wide))
        for pair in one.g:
            np.testing.assert_allclose(one.g[pair], other.g[pair], rtol=1e-10, atol=1e-12)
        for pair in one.coordination:
            np.testing.assert_allclose(one.coordination[pair], other.coordination[pair], rtol=1e-10, atol=1e-12)


def test_one_atom_sees_its_own_images_only() -> None:
    found = rdf([Atoms("Si", cell=[2.5, 9, 9], pbc=True)], r_max=4.0, bins=40)
    assert found.coordination["Si-Si"][-1] == 2
    assert np.flatnonzero(found.g["Si-Si"]).tolist() == [25]


def test_pairs_from_elsewhere_give_the_same() -> None:
    from ase.neighborlist import neighbor_list

    atoms = random_frame(8)
    sums = RDFAccumulator(atoms.numbers, r_max=4.0, bins=40)
    sums.add_pairs(*neighbor_list("ijd", atoms, 5.5), atoms.get_volume())  # farther pairs are left out
    for pair, g in rdf([atoms], r_max=4.0, bins=40).g.items():
        np.testing.assert_allclose(sums.result().g[pair], g, rtol=1e-10)


def test_smoothing_keeps_the_number_of_pairs_and_leaks_at_neither_end() -> None:
    wide = 0.3
    for distance in (0.21, 2.01, 3.95):  # centres of bins: at the wall r = 0, inside, near the end of the range
        atoms = Atoms("ArNe", [[0, 0, 0], [distance, 0, 0]], cell=[30, 30, 30], pbc=True)
        whole = rdf([atoms], r_max=8.0, bins=400, smoothing=wide)
        assert whole.coordination["Ar-Ne"][-1] == pytest.approx(1, abs=1e-6)
        counted = whole.g["Ne-Ar"] * shell_volumes(whole.edges) / 30**3
        assert counted.sum() == pytest.approx(1, abs=1e-6)
        gauss = np.exp(-0.5 * ((whole.r - distance) / wide) ** 2)
        np.testing.assert_allclose(counted, gauss / gauss.sum(), atol=2e-4)
        # a shorter range sees the same function, though pairs lie beyond it
        short = rdf([atoms], r_max=4.0, bins=200, smoothing=wide)
        np.testing.assert_allclose(short.g["Ne-Ar"], whole.g["Ne-Ar"][:200], rtol=1e-5, atol=1e-9)


def test_a_smoothed_gas_is_still_one_at_the_end_of_the_range() -> None:
    rng = np.random.default_rng(5)
    gas = [Atoms("Ar40Ne40", rng.random((80, 3)) * 13, cell=[13.0] * 3, pbc=True) for _ in range(60)]
    found = rdf(gas, r_max=6.0, bins=60, smoothing=0.2)
    assert found.g["Ne-Ar"][-10:].mean() == pytest.approx(1, abs=0.02)
    assert found.g["Ne-Ar"][-2:].mean() == pytest.approx(1, abs=0.04)


def test_stored_sums_go_on() -> None:
    frames = [random_frame(k) for k in range(6)]
    want = rdf(frames, smoothing=0.1)
    sums = RDFAccumulator(frames[0].numbers, smoothing=0.1)
    for k, atoms in enumerate(frames):
        if k == 3:
            state = {name: np.array(value) for name, value in sums.state().items()}
            sums = RDFAccumulator(frames[0].numbers, smoothing=0.1)
            sums.restore(state)
        sums.add(atoms.positions, atoms.cell[:], atoms.pbc)
    for pair in want.g:
        np.testing.assert_array_equal(sums.result().g[pair], want.g[pair])
    assert sums.result().frames == 6
    with pytest.raises(DataError, match="other elements or bins"):
        RDFAccumulator(frames[0].numbers, bins=7).restore(state)


def test_without_a_volume_there_is_coordination_and_no_function() -> None:
    cluster = Atoms("Cu4", [[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]])
    found = rdf([cluster], r_max=2.5, bins=25)
    assert found.g == {}
    assert "no volume" in found.not_applicable
    assert found.coordination["Cu-Cu"][-1] == pytest.approx(6 / 4)
    given = rdf([cluster], r_max=2.5, bins=25, volume=100.0)
    assert given.not_applicable is None
    assert (given.g["Cu-Cu"] * shell_volumes(given.edges)).sum() == pytest.approx(100 * 6 / 16)
    slab = Atoms("Cu", cell=[3, 3, 0], pbc=(True, True, False))
    assert rdf([slab]).g == {}
    assert RDFAccumulator([29]).result().not_applicable == "no frames"


def test_frames_that_cannot_be_counted_are_refused_whole() -> None:
    atoms = random_frame(1)
    sums = RDFAccumulator(atoms.numbers)
    sums.add(atoms.positions, atoms.cell[:], atoms.pbc)
    before = sums.state()
    bad = atoms.positions.copy()
    bad[2, 1] = np.nan
    for positions, cell in ((bad, atoms.cell[:]), (atoms.positions, atoms.cell[:] * 1e-2), (bad, np.zeros((3, 3)))):
        with pytest.raises(DataError):
            sums.add(positions, cell, atoms.pbc)
    with pytest.raises(DataError, match="collapsed"):
        sums.add(atoms.positions, atoms.cell[:] * 1e-2, atoms.pbc)
    for name, value in sums.state().items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(DataError, match="frame 1 holds"):
        rdf([atoms, random_frame(1, "Si6")])
    with pytest.raises(DataError, match="no frames"):
        rdf([])
    for wrong in ({"r_max": 0.0}, {"bins": 0}, {"smoothing": -0.1}, {"volume": 0.0}):
        with pytest.raises(DataError):
            RDFAccumulator([8], **wrong)


def test_an_average_counts_all_frames_of_all_structures_together() -> None:
    """Structures of one density and composition: what a single list of their frames gives."""
    one = [random_frame(k, "O4Si2", size=5.0, skew=0) for k in range(2)]
    other = [random_frame(10 + k, "O4Si2", size=5.0, skew=0) for k in range(5)]
    average, want = average_rdfs([rdf(one), rdf(other)]), rdf([*one, *other])
    assert (average.frames, average.structures) == (7, 2)
    for values in ("g", "coordination"):
        for pair in getattr(want, values):
            np.testing.assert_allclose(
                getattr(average, values)[pair], getattr(want, values)[pair], rtol=1e-10, atol=1e-12
            )


def test_an_average_is_pairs_found_over_pairs_expected() -> None:
    frames = [random_frame(0, "O4Si2", 5.0), random_frame(1, "O9Si", 6.0), random_frame(2, "Si3", 4.0)]
    results = [rdf([a], r_max=4.0, bins=8) for a in frames]
    # averages of averages, and of what JSON gives back, are the same
    nested = average_rdfs([average_rdfs(results[:2]), RDF.model_validate(json.loads(json.dumps(results[2].plain())))])
    for average in (average_rdfs(results), nested):
        shells = shell_volumes(average.edges)
        for a, b, pair in ((8, 14, "O-Si"), (14, 14, "Si-Si"), (8, 8, "O-O")):
            found = expected = 0.0
            for atoms in frames:
                n = np.sum(atoms.numbers == a) * np.sum(atoms.numbers == b)
                if n:
                    expected = expected + n / atoms.get_volume() * shells
                    found = found + n / atoms.get_volume() * shells * direct([atoms], a, b, average.edges)
            np.testing.assert_allclose(average.g[pair], found / expected, rtol=1e-9, atol=1e-12)
        # around each of the six Si, those without any O included
        within = sum(rdf([a], r_max=4.0, bins=8).coordination["Si-O"] * n for a, n in zip(frames[:2], (2, 1))) / 6
        np.testing.assert_allclose(average.coordination["Si-O"], within)
        assert average.structures == 3


def test_averages_need_one_grid_and_pass_by_what_has_no_frames() -> None:
    found = rdf([random_frame(0)])
    empty = RDFAccumulator(random_frame(0).numbers).result()
    assert average_rdfs([empty, found]).structures == 1
    np.testing.assert_allclose(average_rdfs([empty, found]).g["O-Si"], found.g["O-Si"])
    assert average_rdfs([empty]).not_applicable == "no frames"
    with pytest.raises(DataError, match="number 1 has 60 bins up to 6"):
        average_rdfs([found, rdf([random_frame(0)], bins=60)])
    with pytest.raises(DataError, match="smoothed by 0.1"):
        average_rdfs([found, rdf([random_frame(0)], smoothing=0.1)])
    with pytest.raises(DataError, match="no radial"):
        average_rdfs([])
