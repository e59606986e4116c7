"""Many small pieces of work in a pool of processes: results in order, and all ends at once where one process dies.

For few long pieces, each with a name and a process of its own, see :mod:`mdl_physpre.utils.processes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from typing import Any

import torch

from mdl_physpre.errors import PhyspreError
from mdl_physpre.utils.processes import available_cores, begin_as_worker, pickled

Chunk = list[int]
Task = Callable[[Chunk], Any]
NAMED = 10  # pieces of work that a message names
MOST_WORKERS = 16  # more only wait for the process that takes their results

# What a worker process works with, the same for all of its chunks.
_task: Task | None = None


def start_method() -> str:
    """``fork``, which is quick; ``spawn`` where that does not exist, or would carry a GPU into the workers."""
    return "fork" if "fork" in get_all_start_methods() and not torch.cuda.is_initialized() else "spawn"


def run_chunks(
    task: Task,
    chunks: Sequence[Chunk],
    workers: int | None = None,
    method: str = "fork",
    name: Callable[[int], str] = str,
) -> Iterable[Any]:
    """``task`` of every chunk, in order, in worker processes where there is more than one.

    Parameters
    ----------
    task : picklable where ``method`` is ``spawn``.
    chunks : numbers of what is to be worked on.
    workers : processes; as many as there are cores, up to 16, where ``None``. With one it is done in this process.
    method : ``fork`` or ``spawn``, see :func:`start_method`; in this process where the system has it not.
    name : of a number, for errors.

    Raises
    ------
    PhyspreError : a worker died; names what the workers had in hand.
    ConfigError : a task that cannot be sent to another process.
    """
    workers = min(min(available_cores(), MOST_WORKERS) if workers is None else workers, len(chunks))
    if workers < 2 or method not in get_all_start_methods():
        return map(task, chunks)
    if method == "spawn":
        pickled(task)
    return _run(task, chunks, workers, method, name)


def _run(task: Task, chunks: Sequence[Chunk], workers: int, method: str, name: Callable[[int], str]) -> Iterator[Any]:
    pool = ProcessPoolExecutor(workers, get_context(method), initializer=_start, initargs=(task,))
    # Only so many results wait at a time: a set may be larger than memory has room for graphs.
    waiting: list[tuple[Chunk, Future[Any]]] = []
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_work, chunk)))
            if len(waiting) > 4 * workers:
                yield waiting[0][1].result()
                waiting.pop(0)
        while waiting:
            yield waiting[0][1].result()
            waiting.pop(0)
    except BrokenProcessPool as error:
        lost = [chunk for chunk, future in waiting if not future.done() or future.exception() is not None]
        numbers = [k for chunk in lost[:workers] for k in chunk]
        names = ", ".join(name(k) for k in numbers[:NAMED]) + (", …" if len(numbers) > NAMED else "")
        raise PhyspreError(
            "a process ended abruptly (out of memory, or a crash in compiled code) while the processes had these in "
            f"hand: {names}; try again with one process (workers=1, --processes 1)"
        ) from error
    except BaseException:  # Ctrl-C, an error, or nobody wants the rest: a structure may take hours, so do not wait
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(task: Task) -> None:
    global _task
    _task = task
    begin_as_worker()
    torch.set_num_threads(1)  # one process for each core; threads on top of that only wait for each other


def _work(chunk: Chunk) -> Any:
    assert _task is not None
    return _task(chunk)
