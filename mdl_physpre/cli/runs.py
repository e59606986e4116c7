"""Commands on configurations: ``physpre init``, ``run``, ``demo``, ``fit``, ``pretraining-set``."""

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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how long each stage will take, by a few trial steps, and stop.")
    ] = False,
) -> None:
    """Fit, perturb, label, pretrain, finetune, simulate, report.

    Goes on where it stopped. What is added (arms, networks, tests, epochs) leaves what is done.
    """
    if dry_run:
        from mdl_physpre.workflow.estimate import estimate_run, format_estimate

        print(format_estimate(estimate_run(config, overrides or (), out)))
        return
    from mdl_physpre.workflow.run import run as run_config

    run_config(config, overrides or (), out, overwrite)


def init(
    name: Annotated[str | None, typer.Argument(help="Such as silica; all are listed if not given.")] = None,
) -> None:
    """Write a commented configuration into this folder, to start from."""
    from mdl_physpre.workflow.config.examples import examples, write_example

    if name is None:
        print("\n".join(f"{known:<28} {text}" for known, text in examples().items()))
    else:
        print(write_example(name))


def demo(overrides: Overrides = None, out: Out = None, overwrite: Overwrite = False) -> None:
    """Run the whole method on silica data in the package.

    Takes minutes on two cores.
    """
    from mdl_physpre.workflow.run import run as run_config

    run_config(Path(__file__).parent.parent / "configs" / "demo.yml", overrides or (), out, overwrite)


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


def pretraining_set(
    config: Annotated[Path, typer.Argument(help="Configuration file (YAML); its section model may be missing.")],
    overrides: Overrides = None,
    trainer: Annotated[
        str, typer.Option("--for", help="mace, nequip, graph-pes, deepmd, sevennet or mattersim, or an import path.")
    ] = ...,  # type: ignore[assignment]
    out: Out = None,
) -> None:
    """Write the pretraining set for a trainer of another package.

    With the DFT sets of the same split, in its files, keys and units, and the commands that pretrain and finetune.
    """
    from mdl_physpre.workflow.outside.write import SCRIPT, pretraining_set_for

    made = pretraining_set_for(trainer, config, overrides or (), out)
    sizes = ", ".join(f"{name} ({size})" for name, size in made.structures.items())
    print(f"{made.folder}: {sizes}\nIn this folder, or by {SCRIPT} in it:")
    for command in made.commands:
        print(f"\n{command}")
