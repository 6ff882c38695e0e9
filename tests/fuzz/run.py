"""Coverage-guided fuzzing of one target with Atheris: `scripts/fuzz TARGET [SECONDS | -runs=N]`.

Inputs that reach something new, and those that break something, stay in .fuzz/TARGET and .fuzz/TARGET-crashes; the next
run goes on from there. `scripts/fuzz TARGET --keep` writes them, reduced to the fewest that reach as much, into
tests/fuzz/corpus, which the ordinary tests replay.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["shared", "coordinator", "edge_agent"]):
    import targets

import seeds  # noqa: E402 (what it imports of ours is instrumented by now)

WORK = ROOT / ".fuzz"
MOST_KEPT = 150
LONGEST_KEPT = 600
"""Inputs of a target, and bytes of one, that are kept in the repository."""
LIMITS = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=2048", "-print_final_stats=1", "-reload=0"]


def fuzz(target: str, options: list[str]) -> None:
    place, crashes = WORK / target, WORK / f"{target}-crashes"
    for folder in (place, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds.seeds(target)):
        (place / f"seed-{number}").write_bytes(data)
    budget = [f"-max_total_time={word}" if word.isdigit() else word for word in options]
    arguments = [sys.argv[0], *LIMITS, f"-artifact_prefix={crashes}/", *budget, str(place)]
    atheris.Setup(arguments, targets.TARGETS[target])
    atheris.Fuzz()


def keep(target: str) -> None:
    """Into the repository: crashes first, then the shortest inputs that fuzzing held on to."""
    crashes = sorted((WORK / f"{target}-crashes").glob("*"))
    found = sorted((WORK / target).glob("*"), key=lambda path: (path.stat().st_size, path.name))
    kept = [path.read_bytes() for path in found if not path.name.startswith("seed-")]
    lines = [path.read_bytes().hex() for path in crashes]
    lines += [data.hex() for data in kept if 0 < len(data) <= LONGEST_KEPT]
    place = seeds.corpus(target)
    before = place.read_text().split() if place.exists() else []
    chosen = list(dict.fromkeys([*before, *lines]))[:MOST_KEPT]
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
