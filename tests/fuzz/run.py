"""Coverage-guided fuzzing of one target with Atheris: `scripts/fuzz TARGET [SECONDS | -runs=N]`.

Inputs that reach something new, and those that break something, stay in .fuzz/TARGET and .fuzz/TARGET-crashes; the next
run goes on from there. `scripts/fuzz TARGET --keep` writes those that broke something, and a choice of the others, into
tests/fuzz/corpus, which the ordinary tests replay.

Scripts are changed event by event rather than byte by byte, and what is new is told by the states that a machine was in
beside the lines that ran: whole histories run through the same few lines.
"""

import random
import sys
from collections.abc import Callable, Hashable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["shared", "coordinator", "edge_agent"]):
    import targets

import script  # noqa: E402 (what is imported of ours is instrumented by now)
import seeds  # noqa: E402

WORK = ROOT / ".fuzz"
MOST_KEPT = 100
LONGEST_KEPT = 600
"""Inputs of a target, and bytes of one, that are kept in the repository."""
LIMITS = ["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1", "-reload=0"]
STATES = 1 << 13
"""Counters that states are spread over."""


def fuzz(target: str, options: list[str]) -> None:
    place, crashes = WORK / target, WORK / f"{target}-crashes"
    for folder in (place, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds.seeds(target)):
        (place / f"seed-{number}").write_bytes(data)
    budget = [f"-max_total_time={word}" if word.isdigit() else word for word in options]
    scripted = target in targets.SCRIPTED
    length = script.WIDTH * 60 if scripted else 2048
    arguments = [sys.argv[0], *LIMITS, f"-max_len={length}", f"-artifact_prefix={crashes}/", *budget, str(place)]
    if scripted:
        run = _watched(targets.TARGETS[target])
        atheris.Setup(arguments, run, custom_mutator=_mutate, custom_crossover=_cross)
    else:
        atheris.Setup(arguments, targets.TARGETS[target])
    atheris.Fuzz()


def _watched(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The target, each state that it reaches counted once an input as if it were a branch."""
    counters = [atheris._reserve_counter() for _ in range(STATES)]
    seen: set[int] = set()

    def mark(state: Hashable) -> None:
        number = hash(state) % STATES
        if number not in seen:
            seen.add(number)
            atheris._trace_branch(counters[number])

    def run(data: bytes) -> None:
        seen.clear()
        target(data)

    script.mark = mark
    return run


def _events(data: bytes) -> list[bytes]:
    return [data[at : at + script.WIDTH].ljust(script.WIDTH, b"\0") for at in range(0, len(data), script.WIDTH)]


def _mutate(data: bytes, most: int, seed: int) -> bytes:
    """A few events put in, taken out, said again elsewhere, swapped, or changed in one byte."""
    draw = random.Random(seed)
    events = _events(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at, size = draw.randrange(len(events) + 1), draw.choice((1, 1, 2, 3, 6))
        match draw.randrange(6) if events else 0:
            case 0:
                events[at:at] = [draw.randbytes(script.WIDTH) for _ in range(size)]
            case 1:
                del events[at : at + size]
            case 2:
                start = draw.randrange(len(events))
                events[at:at] = events[start : start + size]
            case 3:
                start = draw.randrange(len(events))
                moved = events[start : start + size]
                del events[start : start + size]
                events[at:at] = moved
            case _:
                start, place = draw.randrange(len(events)), draw.randrange(script.WIDTH)
                event = events[start]
                events[start] = event[:place] + draw.randbytes(1) + event[place + 1 :]
    return b"".join(events)[: most - most % script.WIDTH]


def _cross(one: bytes, other: bytes, most: int, seed: int) -> bytes:
    """The beginning of one history, and the end of another."""
    draw = random.Random(seed)
    first, second = _events(one), _events(other)
    events = first[: draw.randrange(len(first) + 1)] + second[draw.randrange(len(second) + 1) :]
    return b"".join(events)[: most - most % script.WIDTH]


def keep(target: str) -> None:
    """Into the repository: crashes first, then some of each length of what fuzzing held on to."""
    crashes = sorted((WORK / f"{target}-crashes").glob("*"))
    found = [path for path in (WORK / target).glob("*") if not path.name.startswith("seed-")]
    sizes = sorted((path.stat().st_size, path.name) for path in found)
    fit = [(WORK / target / name).read_bytes() for size, name in sizes if 0 < size <= LONGEST_KEPT]
    place = seeds.corpus(target)
    before = place.read_text().split() if place.exists() else []
    first = list(dict.fromkeys([*before, *(path.read_bytes().hex() for path in crashes)]))
    room = max(0, MOST_KEPT - len(first))
    spread = [fit[number * len(fit) // room].hex() for number in range(room)] if fit else []
    chosen = list(dict.fromkeys([*first, *spread]))
    place.parent.mkdir(exist_ok=True)
    place.write_text("".join(line + "\n" for line in chosen))
    print(f"{place}: {len(chosen)} inputs")


if __name__ == "__main__":
    name, *rest = sys.argv[1:] or [""]
    if name not in targets.TARGETS:
        sys.exit(f"which of them: {', '.join(targets.TARGETS)}?")
    if rest == ["--keep"]:
        keep(name)
    else:
        fuzz(name, rest or ["60"])
