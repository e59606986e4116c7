"""What ``physpre hosts`` says of an installed MatDeepLearn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mdl_physpre.hosts.matdeeplearn.names import EXTENSIONS, missing_names, unregistered_path


def problems(root: Path) -> list[str]:
    """What of the MatDeepLearn below ``root`` would not work, a sentence each."""
    found = []
    lacking = [pip for module, pip in EXTENSIONS.items() if find_spec(module) is None]
    if lacking:
        found.append(f"{', '.join(lacking)} missing: pip install {' '.join(lacking)}; wheels: https://data.pyg.org/whl")
    package = root / "matdeeplearn"
    problem = unregistered_path(package)
    if problem:
        found.append(problem)
    for folder in ("tasks", "common/config"):
        if not (package / folder).is_dir():
            found.append(f"{folder} is missing, as pip install without -e leaves it out: pip install -e a checkout")
    if not (root / "main.py").is_file():
        found.append(f"there is no main.py in {root}, with which runs are started: pip install -e a checkout")
    return found if lacking else [*found, *missing_names()]


def registered() -> list[str]:
    """The names that are registered in MatDeepLearn, after registering them."""
    from mdl_physpre.hosts.matdeeplearn.plugin import REGISTERED, register

    register()
    return [f"{kind} {name}" for kind, names in REGISTERED.items() for name in names]
