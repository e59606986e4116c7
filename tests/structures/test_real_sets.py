"""The real sets, where PHYSPRE_DATA names their folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mdl_physpre import read_structures
from mdl_physpre.structures import split_structures
from mdl_physpre.structures.labels import label_counts

DATA = os.environ.get("PHYSPRE_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="PHYSPRE_DATA does not name the folder of the real data sets")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("phosphorus/p_gap_20.extxyz.gz", (4798, 140910, 4763)),
        ("silica/si_zeo_22_sample.extxyz.gz", (2060, None, 0)),
        ("li-mn-o-p/li_mn_o.extxyz.gz", (402, None, 402)),
        ("li-mn-o-p/li_mn_o_p_probe.extxyz.gz", (16, None, 16)),
    ],
)
def test_real_sets_read_whole_and_quietly(name, expected, caplog, capsys):
    n, atoms, stresses = expected
    with caplog.at_level("WARNING"):
        structures = read_structures(Path(DATA) / name)
    assert len(structures) == n
    assert atoms is None or sum(len(a) for a in structures) == atoms
    assert label_counts(structures) == {"structures": n, "energy": n, "forces": n, "stress": stresses}
    assert len({a.info["structure_id"] for a in structures}) == n
    assert caplog.text == ""
    assert capsys.readouterr() == ("", "")
    if n == 2060:
        split = split_structures(structures, by="config_type")
        kinds = [{structures[k].info["config_type"] for k in part} for part in (split.train, split.val, split.test)]
        assert not kinds[0] & kinds[1]
        assert not kinds[0] & kinds[2]
        assert not kinds[1] & kinds[2]
