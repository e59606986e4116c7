"""Few long pieces of work, each with a process of its own: results in order, one log, no process left behind, and none
in the folder of another.

For many small pieces see :mod:`mdl_physpre.utils.worker_pool`.
"""

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
from mdl_physpre.utils.progress import without_bars

logger = logging.getLogger(__name__)
SETTLE = 2.0  # seconds in which a failed process may still say why, after this one has noticed


class Piece(NamedTuple):
    """A piece of work: its name in the log and in errors, the arguments of the function, and whether it draws bars."""

    name: str
    arguments: tuple[Any, ...]
    bars: bool = False


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
    with _Processes(function, pieces) as started:
        waiting = list(range(len(pieces)))
        while waiting or started.running:
            while waiting and len(started.running) < processes:
                started.start(waiting.pop(0))
            if started.wait():
                waiting.clear()
        started.raise_errors()
        return [started.answers[number][1] for number in range(len(pieces))]


@contextmanager
def beside(function: Callable[..., Any], pieces: Sequence[Piece]) -> Iterator[None]:
    """Run pieces of work, all at once and each in a process, beside what this process does in the meantime.

    At the end of the block the processes are let finish; after an error in it they are ended. Otherwise as
    :func:`run_in_processes`.

    Raises
    ------
    PhyspreError : a piece raised an error or its process died; says which. Where the block then fails, too, because it
        worked together with that process, its error is the cause.
    """
    with _Processes(function, pieces) as started:
        for number in range(len(pieces)):
            started.start(number)
        try:
            yield
        except PhyspreError:
            raise
        except Exception as error:  # perhaps no more than what another's failure looks like from here
            if started.wait(SETTLE):
                started.raise_errors(error)
            raise
        while started.running:
            started.wait()
        started.raise_errors()


class _Processes:
    """Processes for pieces of work, and what came of them; those that still run are ended with the block."""

    def __init__(self, function: Callable[..., Any], pieces: Sequence[Piece]) -> None:
        self._sent = [pickled((function, piece.arguments)) for piece in pieces]
        self.pieces = pieces
        self.running: dict[Connection, tuple[int, Any]] = {}
        self.answers: dict[int, tuple[str, Any]] = {}
        self._context = get_context("spawn")

    def __enter__(self) -> _Processes:
        self._lines = self._context.Queue()
        self._listener = logging.handlers.QueueListener(self._lines, _Emit())
        self._listener.start()
        return self

    def __exit__(self, *error: object) -> None:
        for _, process in self.running.values():
            process.terminate()
        self._listener.stop()
        self._lines.close()

    def start(self, number: int) -> None:
        """Begin a piece of work."""
        mine, theirs = self._context.Pipe(duplex=False)
        level = logging.getLogger("mdl_physpre").getEffectiveLevel()
        piece = self.pieces[number]
        about = (theirs, self._sent[number], piece.name, piece.bars, self._lines, level)
        process = self._context.Process(target=_work, args=about)
        process.start()
        theirs.close()
        self.running[mine] = (number, process)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until a process ends; whether one failed."""
        failed = False
        for ready in connection.wait(list(self.running), seconds):
            assert isinstance(ready, Connection)
            number, process = self.running.pop(ready)
            try:
                answer = ready.recv()
            except EOFError:
                answer = ("died", None)
            process.join()
            self.answers[number] = ("died", process.exitcode) if answer[0] == "died" else answer
            failed = failed or answer[0] != "result"
        return failed

    def raise_errors(self, cause: Exception | None = None) -> None:
        """Raise PhyspreError where a piece failed, with the reasons of all that did."""
        wrong = [f"{self.pieces[k].name}: {_said(*a)}" for k, a in sorted(self.answers.items()) if a[0] != "result"]
        if wrong:
            raise PhyspreError("; ".join(wrong)) from cause


def _said(kind: str, value: Any) -> str:
    if kind == "died":
        return f"its process died (exit code {value}; −9 is often a lack of memory; use fewer processes)"
    return str(value)


class _Emit(logging.Handler):
    """Hands a record of another process to the loggers of this one."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


def _work(answer: Connection, sent: bytes, name: str, bars: bool, lines: Any, level: int) -> None:
    """What a process does."""
    begin_as_worker()
    if not bars:
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


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pickled(content: Any) -> bytes:
    """What is sent to another process. Raises ConfigError where it cannot be."""
    try:
        return pickle.dumps(content)
    except Exception as error:
        raise ConfigError(
            f"cannot be sent to another process ({type(error).__name__}: {error}); define classes and functions in a "
            "module, give a calculator as a function that builds it, or use one process"
        ) from error


def begin_as_worker() -> None:
    """From now on this process ends with the one that started it, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


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
        while try_lock(file) is False:
            if time.monotonic() >= deadline:
                raise PhyspreError(f"{folder}: another process is running there; wait for it, or give another --out")
            time.sleep(0.1)
        yield


def try_lock(file: Any) -> bool | None:
    """Take a lock until the file is closed; False where another has it, ``None`` where the system has no such locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # or this file system has none
        return None
    return True
