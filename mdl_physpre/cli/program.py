"""What the commands ``physpre`` and ``mattertune`` have in common: options, the log, and how errors end them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mdl_physpre import __version__
from mdl_physpre.errors import PhyspreError

Modules = Annotated[
    list[str] | None, typer.Option("--import", metavar="MODULE", help="Import first: it defines the backbone. Repeat.")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Configuration keys to change.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run; runs/NAME if not given.")]

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete what other settings, data or references gave in the folder.")
]


def program(text: str) -> typer.Typer:
    """A program with commands; ``text`` is the first line of its help."""
    return typer.Typer(
        help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )


def log_to_terminal(level: int) -> None:
    """Write the package's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("mdl_physpre")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)


def print_version(wanted: bool) -> None:
    """The option ``--version``."""
    if wanted:
        print(f"mdl-physpre {__version__}")
        raise typer.Exit


def let_waiting_threads_sleep() -> None:
    """Tell OpenMP, before PyTorch loads it, that threads with nothing to do sleep, unless the user has told it how.

    By default they wait in a loop, and keep others from their work: on a busy machine two threads took 30 times as long
    as one.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def run_program(app: Callable[..., Any], name: str, stopped: str) -> None:
    """Run a program. Errors that a user can act on are printed without a traceback; ``stopped`` after Ctrl-C."""
    let_waiting_threads_sleep()
    try:
        app(prog_name=name)
    except SystemExit as end:
        if end.code == 130:
            print(stopped, file=sys.stderr)
        raise
    except PhyspreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
