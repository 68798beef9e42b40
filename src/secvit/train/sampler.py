"""Which samples each step sees: a pure function of (seed, step), so resuming needs no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch


class Keys:
    """Key batches for optimizer steps start..stop-1 of one process, a list for each of its parts.

    A step's keys are dealt out to its parts one by one, and the parts to the processes likewise, so
    that repeats of a sample lie on different processes, as in DeiT.

    A key is `draw * samples + index`: its remainder by `samples` is the sample, and no key occurs
    twice in a run.  A dataset that seeds its augmentation with the key gives the same data to any
    number of workers and after any resume.

    order: of an epoch's samples, from a generator that the seed and the epoch decide; a random one if None.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        *,
        parts: int = 1,
        repeats: int = 1,
        rank: int = 0,
        processes: int = 1,
        order: Callable[[torch.Generator], torch.Tensor] | None = None,
    ) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.start, self.stop, self.parts = start, stop, max(parts, processes)
        self.repeats, self.rank, self.processes = repeats, rank, processes
        self.order = order

    def __len__(self) -> int:
        return (self.stop - self.start) * self.parts // self.processes

    def epoch(self, epoch: int) -> torch.Tensor:
        """The keys of one epoch in order, over all processes."""
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        order = self.order(generator) if self.order else torch.randperm(self.samples, generator=generator)
        draw = torch.arange(self.repeats) + epoch * self.repeats
        return (order[:, None] + draw * self.samples).flatten()[: self.samples]

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch, current = self.samples // self.batch_size, -1
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, per_epoch)
            if epoch != current:
                keys, current = self.epoch(epoch), epoch
            batch = keys[position * self.batch_size :][: self.batch_size]
            for part in range(self.rank, self.parts, self.processes):
                yield batch[part :: self.parts].tolist()


def mix(*numbers: int) -> int:
    """One 63-bit seed from several whole numbers (splitmix64), so that near seeds share nothing."""
    state = 0
    for number in numbers:
        state = (state ^ (number % 2**64)) + 0x9E3779B97F4A7C15 & 2**64 - 1
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 2**64 - 1
        state ^= state >> 31
    return state >> 1
