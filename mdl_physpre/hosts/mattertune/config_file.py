"""Reading a configuration of MatterTune: YAML, overrides, paths, and mistakes named by their keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mdl_physpre.errors import ConfigError, PhyspreError
from mdl_physpre.hosts.mattertune.settings import Physpre, parse_physpre
from mdl_physpre.workflow.config.file import read_raw, resolve_path

PATHS = ("src", "checkpoint", "teacher", "per_atom_references")
"""Keys whose text is the path of a file."""
SECTIONS = ("model", "data", "trainer", "recipes")


def load_mattertune_config(path: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Physpre | None]:
    """The host's sections as nested values with absolute paths, and the section ``physpre``, or None without one.

    ``~`` and environment variables are put in; a relative path is looked for from the working directory first, then
    from the configuration's folder.

    Raises
    ------
    ConfigError : a file that cannot be read or is no YAML, unknown sections, wrong keys of ``physpre``, a variable that
        is not set.
    """
    path = Path(path)
    raw = read_raw(path, overrides, sections=", ".join((*SECTIONS, "physpre")))
    strange = [key for key in raw if key not in (*SECTIONS, "physpre")]
    if strange:
        raise ConfigError(f"{path}: unknown section {strange[0]!r}; MatterTune has {', '.join(SECTIONS)}")
    for section in ("model", "data"):
        if not isinstance(raw.get(section), dict):
            raise ConfigError(f"{path}: the section {section!r} is missing")
    raw = _with_paths(raw, path.resolve().parent)
    physpre = parse_physpre(raw.pop("physpre"), str(path)) if "physpre" in raw else None
    return {key: value for key, value in raw.items() if value is not None}, physpre


def validated(raw: dict[str, Any], source: str) -> Any:
    """The host's ``MatterTunerConfig``. Raises ConfigError that names each wrong key."""
    from mattertune.main import MatterTunerConfig

    try:
        return MatterTunerConfig.model_validate(raw)
    except ValidationError as error:
        lines = [f"{_key(problem['loc'])}: {_message(problem)}" for problem in error.errors()]
        raise ConfigError(f"{source}: " + "\n  ".join(dict.fromkeys(lines))) from None
    except PhyspreError:
        raise
    except ValueError as error:  # the host's own checks
        raise ConfigError(f"{source}: {error}") from None


def _with_paths(value: Any, folder: Path, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _with_paths(v, folder, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_paths(v, folder) for v in value]
    if key in PATHS and isinstance(value, str) and not value.startswith(("calculator:", "torchsim:")):
        return resolve_path(value, folder)
    return value


def _key(location: Sequence[Any]) -> str:
    """The key in the file: without what pydantic adds, the names of classes and of tags that were tried."""
    kept = [str(p) for p in location if isinstance(p, int) or (p.isidentifier() and not p[:1].isupper())]
    return ".".join(kept) or "configuration"


def _message(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key"
    if problem["type"] == "missing":
        return "missing"
    return f"found {problem.get('input')!r}; {problem['msg'].removeprefix('Value error, ')}"
