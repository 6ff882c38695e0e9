"""What every benchmark prints and writes: a table for people, JSON for comparisons."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def report(name: str, rows: Sequence[Mapping[str, object]], *, directory: Path = RESULTS, **facts: object) -> Path:
    """Print `rows` as a table and `facts` below it; write both to {directory}/{name}.json, with the commit, the
    command and the machine they come from. All rows have the keys of the first, which are the headings."""
    print(f"\n{name}\n\n{_table(rows)}\n")
    for key, value in facts.items():
        print(f"{key}: {_cell(value)}")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    origin = {
        "commit": _commit(),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    path.write_text(
        json.dumps({"benchmark": name, **origin, "rows": rows, "facts": facts}, indent=2, default=str) + "\n"
    )
    print(f"written to {path}")
    return path


def peak_rss_mib(pid: int | None = None) -> float:
    """The largest resident memory of a process so far, this one by default, in MiB."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    headings = list(rows[0])
    lines = [headings, *([_cell(row[heading]) for heading in headings] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _commit() -> str:
    """The commit that was measured, with `-dirty` where the tree had changes."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"
