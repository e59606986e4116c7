"""What ``physpre hosts`` says of MatterTune."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from mdl_physpre.hosts.locate import HostError
from mdl_physpre.hosts.mattertune.names import missing_names

NEEDED = {
    "nshconfig": "nshconfig[extra]==0.56.0",
    "nshconfig_extra": "nshconfig-extra",
    "lightning": "lightning",
    "torchmetrics": "torchmetrics",
    "sklearn": "scikit-learn",
    "watchdog": "watchdog",
}


def problems(root: Path) -> list[str]:
    """What of the installed host would not work with this package, a sentence each."""
    found = [
        f"{module} is missing: pip install '{name}'" for module, name in NEEDED.items() if find_spec(module) is None
    ]
    if not found:
        release = _release("nshconfig")
        if release and release >= (1,):
            found.append("nshconfig 1 and later have no Registry: pip install 'nshconfig[extra]==0.56.0'")
    if not hasattr(import_module("ase.constraints"), "voigt_6_to_full_3x3_stress"):
        found.append(
            f"stress of backbones other than physpre-m3gnet: the host imports names that ASE {version('ase')} does not "
            "have; pip install ase==3.27.0"
        )
    compiled = (root / "mattertune" / "wrappers" / "utils").glob("graph_partition.*")
    if not any(file.suffix in (".so", ".pyd") for file in compiled):
        found.append(
            "its ASE calculator: graph_partition is not compiled; pip install Cython numpy setuptools, then "
            "pip install --no-deps --no-build-isolation -e the checkout"
        )
    if find_spec("peft") is None:
        found.append("the recipe lora: pip install peft")
    if any("is missing: pip" in line for line in found):
        return found
    try:
        found += missing_names()
    except HostError as error:
        found.append(str(error))
    return found


def registered() -> list[str]:
    """What this package registers in the host. Raises HostError where it cannot."""
    from mdl_physpre.hosts.mattertune.plugin import register

    register()
    return [
        "backbone physpre-m3gnet",
        "data sources physpre-structures and physpre-pretraining",
        "recipes physpre-start-from and physpre-save-averages",
    ]


def _release(package: str) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in re.findall(r"\d+", version(package))[:2])
    except PackageNotFoundError:
        return None
