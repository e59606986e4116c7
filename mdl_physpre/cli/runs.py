"""Commands on configurations: ``physpre run``, ``demo``, ``fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdl_physpre.cli.program import Out, Overrides, Overwrite


def run(
    config: Annotated[Path, typer.Argument(help="Configuration file (YAML).")],
    overrides: Overrides = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit, perturb, label, pretrain, finetune, simulate, report.

    Goes on where it stopped. What is added (arms, networks, tests, epochs) leaves what is done.
    """
    from mdl_physpre.workflow.run import run as run_config

    run_config(config, overrides or (), out, overwrite)


def demo(overrides: Overrides = None, out: Out = None, overwrite: Overwrite = False) -> None:
    """Run the whole method on silica data in the package.

    Takes minutes on two cores.
    """
    from mdl_physpre.workflow.run import run as run_config

    run_config(Path(__file__).parent.parent / "demo" / "demo.yml", overrides or (), out, overwrite)


def config(
    section: Annotated[str | None, typer.Argument(help="Such as optim or physpre.dynamics; all if not given.")] = None,
) -> None:
    """Print every key of the configuration: default, unit, values, and what it does."""
    from mdl_physpre.workflow.config.reference import page
    from mdl_physpre.workflow.config.reference import section as section_of_page

    print(page() if section is None else section_of_page(section), end="")


def fit(
    config: Annotated[Path, typer.Argument(help="Configuration file (YAML).")],
    overrides: Overrides = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit the embedded-atom potential of a configuration.

    This is the first stage of its run: physpre run finds it done.
    """
    from mdl_physpre.workflow.run import fit_only

    fit_only(config, overrides or (), out, overwrite)
