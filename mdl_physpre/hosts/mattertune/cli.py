"""The command ``mattertune``, which MatterTune itself does not have."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from mdl_physpre.cli.program import Out, Overrides, log_to_terminal, print_version, program, run_program
from mdl_physpre.hosts.locate import HOSTS, require_installed

HOST = HOSTS["mattertune"]
app = program("Train MatterTune's models from a configuration file, with pretraining on an embedded-atom potential.")

Config = Annotated[Path, typer.Argument(help="MatterTune configuration (YAML), with a section physpre or without.")]


@app.command()
def finetune(config: Config, overrides: Overrides = None, out: Out = None) -> None:
    """Train a model; with a section physpre, fit an embedded-atom potential and pretrain on its labels first.

    Goes on after the last stage that is done, and redoes only what changed.
    """
    require_installed(HOST)
    _run(config, overrides, out)


@app.command()
def pretrain(config: Config, overrides: Overrides = None, out: Out = None) -> None:
    """The stages before the finetuning alone; mattertune finetune finds them done."""
    require_installed(HOST)
    _run(config, overrides, out, pretrain_only=True)


def _run(config: Path, overrides: Overrides, out: Out, *, pretrain_only: bool = False) -> None:
    """The run; of several processes, the first alone says how it goes."""
    from mdl_physpre.hosts.mattertune.ranks import is_first
    from mdl_physpre.hosts.mattertune.run import finetune as train

    if not is_first():
        log_to_terminal(logging.WARNING)
    checkpoint = train(config, overrides or (), out, pretrain_only=pretrain_only)
    if is_first():
        print(checkpoint)


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of MatterTune (.ckpt), of any backbone.")],
    source: Annotated[Path, typer.Argument(metavar="IN", help="Structures.")],
    target: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="Structures with predictions.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Structures in a batch.")] = 16,
) -> None:
    """Predict energies, forces and stress; print the errors where the structures carry labels."""
    require_installed(HOST)
    from mdl_physpre.analysis.errors import format_errors, label_errors
    from mdl_physpre.hosts.mattertune.predict import predict as predicted_by
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.structures.write import write_structures

    structures = read_structures(source)
    found = predicted_by(checkpoint, structures, device=device, batch_size=batch_size)
    if target is not None:
        write_structures(target, found)
    errors = label_errors(found, structures)
    labelled = any(errors.counts.values())
    print(format_errors({source.name: errors}) if labelled else f"{len(found)} structures, none with labels")


@app.callback()
def common(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""
    log_to_terminal(logging.WARNING if quiet else logging.INFO)


def main() -> None:
    """Entry point. Where the host brings a command ``mattertune`` of its own, that; ours is then ``python -m`` this."""
    commands = entry_points(group="console_scripts", name="mattertune")
    own = [p for p in commands if not p.value.startswith("mdl_physpre.")]
    if own:
        own[0].load()()
    else:
        run()


def run() -> None:
    """Our command."""
    run_program(app, "mattertune", "stopped; the same command goes on after the last stage that is done")


if __name__ == "__main__":
    run()
