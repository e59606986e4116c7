"""The commented configurations that come with the package, in ``mdl_physpre/configs``."""

from __future__ import annotations

from pathlib import Path

from mdl_physpre.errors import ConfigError
from mdl_physpre.utils.files import write_text

FOLDER = Path(__file__).parents[2] / "configs"


def examples() -> dict[str, str]:
    """The first line of each configuration by its name, such as ``demo``, ``paper/silica_cgcnn``."""
    found = {file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in FOLDER.rglob("*.yml")}
    ordered = sorted(found, key=lambda name: (name.count("/"), name))
    return {name: found[name].read_text(encoding="utf-8").partition("\n")[0].strip("#, ") for name in ordered}


def write_example(name: str, folder: str | Path = ".") -> Path:
    """Write a configuration into a folder, with its comments.

    Parameters
    ----------
    name : as :func:`examples` has it. The part before an underscore is enough: ``silica`` is ``silica_eam_pretrain``,
        ``phosphorus`` the first of several, ``phosphorus_cgcnn``.

    Raises
    ------
    ConfigError : no configuration of this name, or the folder has a file of its name.
    """
    known = examples()
    whole = name if name in known else next((k for k in known if k.startswith(f"{name}_")), None)
    if whole is None:
        raise ConfigError(f"there is no configuration {name!r}; known: {', '.join(known)}")
    target = Path(folder) / f"{Path(whole).name}.yml"
    if target.exists():
        raise ConfigError(f"{target} exists, and is not overwritten; rename it, or go to another folder")
    write_text(target, (FOLDER / f"{whole}.yml").read_text(encoding="utf-8"))
    return target
