"""Work in several processes: order, errors, log lines, death of a worker and of the parent."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from mdl_physpre.errors import ConfigError, DataError, PhyspreError
from mdl_physpre.utils.processes import Piece, run_in_processes
from tests.helpers.processes import environment


def square(x: int) -> int:
    logging.getLogger("mdl_physpre.somewhere").info("squaring\n%d", x)
    return x * x


def fail(x: int) -> int:
    if x == 2:
        raise DataError("structure 7 is damaged")
    return x


def kill_oneself(x: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note(path: str, x: int) -> None:
    if x == 0:
        raise ValueError("no")
    with open(path, "a") as file:
        file.write(f"{x}\n")


def sleep(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(120)


def test_results_come_in_order_and_log_lines_by_name(caplog):
    package = logging.getLogger("mdl_physpre")
    before = package.propagate, package.level
    package.propagate, package.level = True, logging.INFO
    try:
        with caplog.at_level(logging.INFO, logger="mdl_physpre"):
            assert run_in_processes(square, [Piece(f"piece {x}", (x,)) for x in (3, 1, 2)], 2) == [9, 1, 4]
    finally:
        package.propagate, package.level = before
    assert "[piece 3] squaring\n[piece 3] 3" in {record.getMessage() for record in caplog.records}


def test_an_error_names_its_piece():
    with pytest.raises(PhyspreError, match=r"^network 2: structure 7 is damaged$"):
        run_in_processes(fail, [Piece(f"network {x}", (x,)) for x in (1, 2)], 2)


def test_a_process_that_dies_is_named():
    with pytest.raises(PhyspreError, match=r"b: its process died \(exit code -9"):
        run_in_processes(kill_oneself, [Piece("b", (1,))], 2)


def test_after_an_error_nothing_else_begins(tmp_path):
    path = tmp_path / "notes"
    with pytest.raises(PhyspreError, match="0: ValueError: no"):
        run_in_processes(note, [Piece(str(x), (str(path), x)) for x in range(3)], 1)
    assert not path.exists()


def test_what_cannot_be_sent():
    with pytest.raises(ConfigError, match="cannot be sent to another process"):
        run_in_processes(square, [Piece("a", (lambda: 1,))], 2)


def test_processes_end_with_the_one_that_started_them(tmp_path):
    path = tmp_path / "pid"
    script = (
        "from tests.utils.test_processes import *\n"
        "if __name__ == '__main__':\n"
        f"    run_in_processes(sleep, [Piece('a', ({str(path)!r},))], 1)\n"
    )
    (tmp_path / "script.py").write_text(script)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], env=environment())
    try:
        for _ in range(600):
            if path.exists() and path.read_text():
                break
            time.sleep(0.1)
        child = int(path.read_text())
    finally:
        parent.kill()
        parent.wait()
    for _ in range(200):
        try:
            os.kill(child, 0)
            with open(f"/proc/{child}/stat") as file:
                if file.read().split()[2] == "Z":  # ended; nobody has asked for its exit status yet
                    return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.1)
    raise AssertionError("the process goes on without the one that started it")
