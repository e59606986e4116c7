"""From one format to another."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdl_physpre.errors import DataError
from mdl_physpre.structures.formats.base import format_to_write
from mdl_physpre.structures.label_sources import look_like_labels
from mdl_physpre.structures.labels import label_counts
from mdl_physpre.structures.read import read_structures
from mdl_physpre.structures.sources import Source, files_of
from mdl_physpre.structures.write import write_structures

logger = logging.getLogger(__name__)


def convert(
    source: Source, target: str | Path, keys: Mapping[str, str] | None = None, **options: Any
) -> dict[str, Any]:
    """Read ``source`` and write it to ``target``; what the target's reader will drop or misread is logged as a warning.

    Parameters
    ----------
    source, keys, options : as in ``read_structures``.
    target : as in ``write_structures``; must not be the source.

    Returns
    -------
    {"structures": number written, "labels": counts, "warnings": list of sentences}

    Raises
    ------
    DataError : as ``read_structures`` and ``write_structures``; source and target are the same file.
    """
    target = Path(target).expanduser()
    files = files_of(source)
    chosen = format_to_write(target)  # before anything is read: a wrong name should not cost the reading
    if any(target.exists() and Path(f).expanduser().exists() and target.samefile(Path(f).expanduser()) for f in files):
        raise DataError(f"{target}: input and output are the same file; give another name")
    structures = read_structures(source, keys=keys, **options)
    warnings = chosen.losses(structures)
    warnings += [
        f"{name} looks like {label} and was not read as that: --key {label}={name}, or keys"
        for name, label in look_like_labels(structures).items()
    ]
    write_structures(target, structures)
    for text in warnings:
        logger.warning("%s: %s", target, text)
    logger.debug("%s: %d structures written", target, len(structures))
    return {"structures": len(structures), "labels": label_counts(structures), "warnings": warnings}
