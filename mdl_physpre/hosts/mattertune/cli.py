"""The command ``mattertune``, which MatterTune itself does not have."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from mdl_physpre import __version__
from mdl_physpre.errors import PhyspreError
from mdl_physpre.hosts.mattertune.names import require_installed

app = typer.Typer(
    help="Train MatterTune's models from a configuration file, with pretraining on an embedded-atom potential.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path, typer.Argument(help="MatterTune configuration (YAML), with a section physpre or without.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Configuration keys to change.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run; runs/NAME if not given.")]


@app.command()
def finetune(config: Config, overrides: Overrides = None, out: Out = None) -> None:
    """Train a model; with a section physpre, fit an embedded-atom potential and pretrain on its labels first.

    Goes on after the last stage that is done, and redoes only what changed.
    """
    require_installed()
    from mdl_physpre.hosts.mattertune.run import finetune as run

    print(run(config, overrides or (), out))


@app.command()
def pretrain(config: Config, overrides: Overrides = None, out: Out = None) -> None:
    """The stages before the finetuning alone; mattertune finetune finds them done."""
    require_installed()
    from mdl_physpre.hosts.mattertune.run import finetune as run

    print(run(config, overrides or (), out, pretrain_only=True))


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of MatterTune (.ckpt), of any backbone.")],
    source: Annotated[Path, typer.Argument(metavar="IN", help="Structures.")],
    target: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="Structures with predictions.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Structures in a batch.")] = 16,
) -> None:
    """Predict energies, forces and stress; print the errors where the structures carry labels."""
    require_installed()
    from mdl_physpre.hosts.mattertune.predict import errors
    from mdl_physpre.hosts.mattertune.predict import predict as predicted_by
    from mdl_physpre.structures.read import read_structures
    from mdl_physpre.structures.write import write_structures

    structures = read_structures(source)
    found = predicted_by(checkpoint, structures, device=device, batch_size=batch_size)
    if target is not None:
        write_structures(target, found)
    print(errors(structures, found) or f"{len(found)} structures, none with labels")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mdl-physpre {__version__}")
        raise typer.Exit


@app.callback()
def common(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("mdl_physpre")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def main() -> None:
    """Entry point: errors that a user can act on are printed without a traceback."""
    try:
        app(prog_name="mattertune")
    except PhyspreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
