"""Batches of a dataset in a given order, and what to say when a process that loads them fails."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from secvit.fields import abridged

CLEAR = (ValueError, OSError, ImportError, ArithmeticError, MemoryError)  # errors whose own text says enough


def read(
    dataset: Any,
    keys: Iterable[list[int]],
    workers: int,
    names: Sequence[str] = (),
    pin: bool = False,
    timeout_minutes: float = 30.0,
) -> Generator[Any, None, None]:
    """The dataset's batch for each list of keys, in order.

    names: of the samples, for errors.  An error in a process that loads data is raised here as if it had happened
    here, without that process's traceback in its text.  ValueError if such a process dies or gives nothing for
    `timeout_minutes`.
    """
    reader: Any = Reader(dataset) if workers else dataset
    loader: DataLoader[Any] = DataLoader(
        reader,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=reader.collate if workers else getattr(dataset, "collate", None),
        pin_memory=pin,
        generator=torch.Generator(),
        worker_init_fn=_follow_the_main_process,
        timeout=60 * timeout_minutes if workers else 0,
    )
    if not workers:
        yield from loader
        return
    with contextlib.closing(_from_workers(loader, timeout_minutes)) as loaded:
        for batch, chosen in zip(loaded, keys, strict=True):
            if isinstance(batch, Failure):
                batch.reraise()
            elif isinstance(batch, Lost):
                batch.reraise([names[key % len(dataset)] for key in chosen] if names else [])
            yield batch


class Reader:
    """A dataset whose errors travel from a loading process as a value, so that the process lives on.

    torch would hand them on with the process's whole traceback as their text.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.own_collate = getattr(dataset, "collate", None) or default_collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: list[int]) -> Any:
        try:
            if hasattr(self.dataset, "__getitems__"):
                return self.dataset.__getitems__(keys)
            return [self.dataset[key] for key in keys]
        except Exception as error:
            return Failure(error, [key % len(self) for key in keys])

    def collate(self, batch: Any) -> Any:
        if isinstance(batch, Failure):
            return batch
        try:
            return self.own_collate(batch)
        except Exception as error:
            return Failure(error, [])


class Failure:
    """An error in a process that loads data."""

    def __init__(self, error: Exception, samples: Sequence[int]) -> None:
        self.trace = traceback.format_exc()
        if not isinstance(error, CLEAR):
            of = f"samples {', '.join(map(str, samples[:8]))}{', ...' if len(samples) > 8 else ''}: " if samples else ""
            error = ValueError(f"{of}{type(error).__name__}: {error}")
        try:
            self.pickled = pickle.dumps(error)
            pickle.loads(self.pickled)
        except Exception:
            self.pickled = pickle.dumps(ValueError(f"{type(error).__name__}: {error}"))

    def reraise(self) -> None:
        raise pickle.loads(self.pickled) from WorkerTraceback(self.trace)


class WorkerTraceback(Exception):
    """Where in a loading process an error happened."""

    def __str__(self) -> str:
        return f"in a process that loads data:\n{self.args[0]}"


class Lost:
    """A process that loads data, and is gone or silent."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def reraise(self, names: Sequence[str]) -> None:
        raise ValueError(self.reason + (f". It was the turn of {abridged(names, 4)}" if names else "")) from None


def _from_workers(loader: DataLoader[Any], timeout_minutes: float) -> Generator[Any, None, None]:
    """What the loading processes give; none of them outlives this, however it ends."""
    before = set(multiprocessing.active_children())
    iterator = iter(loader)
    workers = set(multiprocessing.active_children()) - before
    batch: Any = None
    with _Deaths() as deaths:
        try:
            while not isinstance(batch, Lost):
                try:
                    with deaths.raised():
                        if any(not worker.is_alive() for worker in workers):
                            raise RuntimeError("DataLoader worker exited unexpectedly")
                        batch = next(iterator)
                except StopIteration:
                    return
                except (RuntimeError, OSError, EOFError) as error:
                    batch = Lost(_reason(error, workers, timeout_minutes))
                yield batch
        finally:
            if isinstance(batch, Lost):
                for worker in workers:
                    worker.kill()  # torch asks them to end, and waits; one that hangs would not hear
            # what deleting the iterator does; an error on its way would keep it alive by its traceback
            getattr(iterator, "_shutdown_workers", lambda: None)()
            for worker in workers:
                worker.kill()


class _Deaths:
    """While entered, torch's error for a loading process that died comes where the next batch is waited for.

    Otherwise it comes wherever the main process is, in the middle of a step too.
    """

    def __init__(self) -> None:
        self.waiting, self.previous = False, None  # type: bool, Any

    def __enter__(self) -> _Deaths:
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGCHLD, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGCHLD, self.previous)

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False

    def _handle(self, number: int, frame: Any) -> None:
        if self.waiting and callable(self.previous):
            self.previous(number, frame)


def _reason(error: Exception, workers: Iterable[Any], timeout_minutes: float) -> str:
    """What to tell of loading processes that gave no batch; another error is raised again."""
    text = str(error).partition("\n")[0]
    if "timed out" in text:
        return (
            f"the processes that load data gave nothing for {timeout_minutes:g} minutes: a disk or a network "
            "that hangs, or samples that take long; --loop.data_timeout_minutes sets the limit"
        )
    for worker in workers:
        worker.join(0.5)  # the pipe breaks a moment before its process is gone
    if text.startswith("DataLoader worker") or any(not worker.is_alive() for worker in workers):
        codes = ", ".join(str(worker.exitcode) for worker in workers if worker.exitcode)
        return (
            f"a process that loads data was ended from outside (exit code {codes or 'unknown'}), most often for lack "
            "of memory; give fewer --loop.workers, or 0 to load in the main process"
        )
    raise error


def _follow_the_main_process(worker: int) -> None:
    """Leave signals to it, and end with it: torch asks for the parent, which a fork server outlives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers send it to all processes; the main one still saves
    threading.Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(process: Any) -> None:
    process.join()
    os._exit(1)
