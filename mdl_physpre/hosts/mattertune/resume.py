"""A training by MatterTune that was stopped goes on after its last whole epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from mdl_physpre.runs.stage import Stage
from mdl_physpre.utils.files import write_text

logger = logging.getLogger(__name__)

LAST = "last.ckpt"  # as Lightning calls it


def begin_training(stage: Stage, raw: dict[str, Any]) -> str:
    """Begin a training; the file with the state after its last epoch, where it was stopped and can go on."""
    stage.begin()
    folder = stage.folder
    write_text(folder / "config.yml", yaml.safe_dump(raw, sort_keys=False))
    if (folder / LAST).is_file() and resumes(raw):
        logger.info("%s goes on after the last epoch that is whole", folder)
        log = folder / "log" / "metrics.csv"
        if log.is_file():  # the host begins a new one
            log.rename(log.with_name(f"metrics-until-{len(list(log.parent.glob('*.csv')))}.csv"))
        return str(folder / LAST)
    for old in folder.glob("*.ckpt"):  # of a training that was stopped
        old.unlink()
    return ""


def resumes(raw: dict[str, Any]) -> bool:
    """Whether checkpoints hold all that a training goes on from: not beside averages of weights or merged adapters."""
    return all(recipe.get("name") == "physpre-start-from" for recipe in raw.get("recipes", []))


@contextmanager
def fit_from(last: str) -> Iterator[None]:
    """Let the host's next training go on from a checkpoint, for which it has no place; none where it is empty."""
    import mattertune.main as host

    own = host.Trainer

    class GoingOn(own):  # type: ignore[misc, valid-type]
        def fit(self, *arguments: Any, **given: Any) -> None:
            super().fit(*arguments, **{"ckpt_path": last or None, **given})

    host.Trainer = GoingOn
    try:
        yield
    finally:
        host.Trainer = own
