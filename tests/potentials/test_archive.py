"""``checkpoints.archive``: one way to open a PyTorch archive, whoever wrote it."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from mdl_physpre.errors import CheckpointError
from mdl_physpre.potentials.checkpoints.archive import content_of, read_archive


class Makes:
    """Makes a folder where it is unpickled."""

    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_numbers_of_numpy_are_read(tmp_path):
    torch.save({"single": np.float32(0.25), "double": np.float64(0.5)}, tmp_path / "a.pt")
    assert read_archive(tmp_path / "a.pt") == {"single": 0.25, "double": 0.5}


def test_objects_are_refused_or_skipped_and_never_built(tmp_path):
    path, target = tmp_path / "a.pt", tmp_path / "made"
    torch.save({"weights": torch.arange(3.0), "optimizer": Makes(target)}, path)
    with pytest.raises(CheckpointError, match=r"a\.pt: refused.*could execute code"):
        read_archive(path)
    found = read_archive(path, skip_objects=True)
    assert torch.equal(found["weights"], torch.arange(3.0))
    assert not target.exists()


def test_only_what_can_be_read_is_recognised(tmp_path):
    whole, cut, plain = (tmp_path / name for name in ("whole.pt", "cut.pt", "list.pt"))
    torch.save({"mark": 1}, whole)
    cut.write_bytes(whole.read_bytes()[:200])
    torch.save([1], plain)
    assert [content_of(path) for path in (whole, cut, plain)] == [{"mark": 1}, None, [1]]
    with pytest.raises(CheckpointError, match="cut.pt: the checkpoint is truncated or damaged"):
        read_archive(cut)
    with pytest.raises(CheckpointError, match="holds a list, expected a dictionary"):
        read_archive(plain)
