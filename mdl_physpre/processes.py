"""Work in several processes at once, one for each piece: results in order, one log, no process left behind, and none in
the folder of another."""

from __future__ import annotations

import logging
import logging.handlers
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from mdl_physpre.errors import ConfigError, PhyspreError
from mdl_physpre.progress import without_bars

logger = logging.getLogger(__name__)


class Piece(NamedTuple):
    """A piece of work: what it is called in the log and in errors, and the arguments of the function."""

    name: str
    arguments: tuple[Any, ...]


def run_in_processes(function: Callable[..., Any], pieces: Sequence[Piece], processes: int) -> list[Any]:
    """``function(*piece.arguments)`` for every piece, each in a process of its own, at most ``processes`` at once.

    The processes are spawned, so that they work with a GPU, too: ``function`` and the arguments must be importable and
    picklable, and a script must call this under ``if __name__ == "__main__":``. Log lines come back to this process
    with the piece's name before them. When a piece fails, the pieces that run are let finish and no other begins. When
    this process is stopped or killed, so are the others.

    Returns
    -------
    What the function gave for each piece, in their order.

    Raises
    ------
    PhyspreError : a piece raised an error or its process died; says which.
    ConfigError : arguments that cannot be sent to a process.
    """
    context = get_context("spawn")
    try:
        sent = [pickle.dumps((function, piece.arguments)) for piece in pieces]
    except Exception as error:
        raise ConfigError(f"cannot be sent to another process ({type(error).__name__}: {error})") from error
    lines = context.Queue()
    listener = logging.handlers.QueueListener(lines, _Emit())
    listener.start()
    waiting = list(range(len(pieces)))
    running: dict[Any, tuple[int, Any]] = {}
    answers: dict[int, tuple[str, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                number = waiting.pop(0)
                mine, theirs = context.Pipe(duplex=False)
                level = logging.getLogger("mdl_physpre").getEffectiveLevel()
                process = context.Process(target=_work, args=(theirs, sent[number], pieces[number].name, lines, level))
                process.start()
                theirs.close()
                running[mine] = (number, process)
            for ready in connection.wait(list(running)):
                assert isinstance(ready, Connection)
                number, process = running.pop(ready)
                try:
                    answers[number] = ready.recv()
                except EOFError:
                    answers[number] = ("died", None)
                process.join()
                if answers[number][0] == "died":
                    answers[number] = ("died", process.exitcode)
                if answers[number][0] != "result":
                    waiting.clear()
    except BaseException:
        for _, process in running.values():
            process.terminate()
        raise
    finally:
        listener.stop()
        lines.close()
    wrong = [
        f"{pieces[number].name}: {_said(*answers[number])}"
        for number in sorted(answers)
        if answers[number][0] != "result"
    ]
    if wrong:
        raise PhyspreError("; ".join(wrong))
    return [answers[number][1] for number in range(len(pieces))]


def _said(kind: str, value: Any) -> str:
    if kind == "died":
        return f"its process died (exit code {value}; −9 is often a lack of memory; use fewer processes)"
    return str(value)


class _Emit(logging.Handler):
    """Hands a record of another process to the loggers of this one."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


def _work(answer: Connection, sent: bytes, name: str, lines: Any, level: int) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which ends this one
    end_with_parent()
    without_bars()
    package = logging.getLogger("mdl_physpre")
    package.handlers, package.propagate = [_Named(lines, name)], False
    package.setLevel(level)
    try:
        function, arguments = pickle.loads(sent)
        answer.send(("result", function(*arguments)))
    except PhyspreError as error:
        answer.send(("error", str(error)))
    except Exception as error:
        logger.debug("the process ends", exc_info=True)
        answer.send(("error", f"{type(error).__name__}: {error}"))
    finally:
        answer.close()


class _Named(logging.handlers.QueueHandler):
    """Sends records to the first process, with the name of the piece of work before every line."""

    def __init__(self, queue: Any, name: str) -> None:
        super().__init__(queue)
        self.piece = name

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record = super().prepare(record)
        text = "\n".join(f"[{self.piece}] {line}" for line in record.getMessage().splitlines())
        record.msg = record.message = text
        return record


def end_with_parent() -> None:
    """From now on, end this process when the one that started it is gone, however it went."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def run_lock(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Keep a second process out of a run's folder; the lock falls with the process that holds it.

    Parameters
    ----------
    wait : seconds in which another process may give it free.

    Raises
    ------
    PhyspreError : another process works in the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")  # noqa: SIM115 - held open for as long as the lock
    except OSError as error:
        raise PhyspreError(f"{folder}: cannot be written: {error.strerror}; give another --out") from None
    deadline = time.monotonic() + wait
    with file:
        while not _lock(file):
            if time.monotonic() >= deadline:
                raise PhyspreError(f"{folder}: another process is running there; wait for it, or give another --out")
            time.sleep(0.1)
        yield


def _lock(file: Any) -> bool:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # no advisory locks on this system, or on this file system
        pass
    return True
