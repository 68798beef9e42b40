"""python -m tests.fuzz [--inputs N | --minutes M] [--seed S] [--area NAME [--one INDEX]]

Without a number of inputs, about a minute.  Failing inputs are kept.  Exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz import AREAS
from tests.fuzz.case import FAILURES, VERDICTS
from tests.fuzz.worker import Result, Worker, show_one


def tasks(areas: dict[str, int], inputs: int | None, seconds: float) -> Iterator[tuple[str, range]]:
    """Some inputs of one area after the other, by their numbers, until there are enough or the time is over."""
    start, made, next_of = time.monotonic(), 0, Counter[str]()
    for name in itertools.cycle(areas):
        count = areas[name] if inputs is None else min(areas[name], inputs - made)
        if count <= 0 or (inputs is None and time.monotonic() - start > seconds):
            return
        yield name, range(next_of[name], next_of[name] + count)
        next_of[name] += count
        made += count


def table(results: dict[str, list[Result]]) -> str:
    """Verdicts by area."""
    head = f"{'area':13} {'inputs':>7} " + " ".join(f"{name:>9}" for name in VERDICTS) + f" {'slowest':>9}"
    lines = [head, "-" * len(head)]
    everything = [one for several in results.values() for one in several]
    for name, some in [*results.items(), ("all", everything)]:
        counts = Counter(one.kind for one in some)
        slowest = max((one.seconds for one in some), default=0.0)
        figures = " ".join(f"{counts[kind]:9,}" for kind in VERDICTS)
        lines.append(f"{name:13} {len(some):7,} {figures} {slowest:7.1f} s")
    return "\n".join(lines)


def report(results: dict[str, list[Result]], kinds: tuple[str, ...], seed: int) -> Iterator[str]:
    """One entry for each different failure, the frequent ones first."""
    groups: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for area, some in results.items():
        for one in some:
            if one.kind in kinds:
                groups[area, one.kind, one.group].append(one)
    for (area, kind, group), some in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = min(some, key=lambda one: one.index)
        changes = ", ".join(change for change, _ in Counter(one.change for one in some).most_common(3))
        said = (first.details.strip().splitlines() or [""])[-1][:160]
        yield f"{len(some):5} x {kind}, {area}: {group}\n        by {changes[:140]}"
        if kind != "hang":  # of which the last line is the end of the stack
            yield f"        {said}"
        yield f"        make fuzz AREA={area} SEED={seed} ONE={first.index}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, help="how many; else as many as the minutes allow")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--area", choices=tuple(AREAS))
    parser.add_argument("--one", type=int, help="the number of a single input to run again, with all it says")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--limit", type=float, default=20, help="seconds that an input may take")
    parser.add_argument("--memory", type=int, default=4096, help="MiB that an input may take")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="folder for failing inputs")
    parser.add_argument("--refused", action="store_true", help="also list harmless inputs that were refused")
    told = parser.parse_args()
    if told.one is not None:
        if not told.area:
            parser.error("--one needs --area")
        return show_one(told.area, told.seed, told.one, told.keep, told.limit)
    areas = {told.area: AREAS[told.area]} if told.area else AREAS
    results: dict[str, list[Result]] = {name: [] for name in areas}
    todo, lock, start = tasks(areas, told.inputs, 60 * told.minutes), threading.Lock(), time.monotonic()

    failed: list[BaseException] = []

    def work() -> None:
        try:
            work_on()
        except BaseException as error:
            failed.append(error)

    def work_on() -> None:
        with Worker(told.seed, told.keep, told.limit, told.memory) as worker:
            while True:
                with lock:
                    area, numbers = next(todo, (None, range(0)))
                if area is None:
                    return
                for result in worker.run(area, numbers):
                    results[area].append(result)

    threads = [threading.Thread(target=work) for _ in range(told.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    kinds = FAILURES + (("refused",) if told.refused else ())
    for line in report(results, kinds, told.seed):
        print(line)
    print(f"\n{table(results)}\n\nseed {told.seed}, {time.monotonic() - start:.0f} s")
    bad = sum(one.kind in FAILURES for some in results.values() for one in some)
    if bad:
        print(f"{bad:,} inputs failed; they are in {told.keep}/")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
