"""What a newcomer waits for: from `talaria-lab emulate` to the first aggregated round, and what comes before that.

The command runs with the demo's settings, as it does in a terminal; times are those of its events (--json), in seconds
from its start, medians of the repetitions after one that warms the disk's cache. "left" counts the processes of the
command that still run after it has ended, after its last round or after Ctrl-C in the middle of one.

The bars: the first round below 10 s, `--help` of each command below 0.3 s, a base install below 60 MB, nothing left.

    python -m benchmarks.first_round
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from benchmarks.common import RESULTS, ROOT, report

PROGRAMS = ("talaria-coordinator", "talaria-agent", "talaria-lab")
MARK = "TALARIA_BENCHMARK"
"""Environment variable that every process of a command inherits, and nobody else has."""
FLEETS = (2, 8)


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def marked(mark: str) -> Iterator[psutil.Process]:
    """The processes that a command has started and that still run."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds of these processes so far, and of their children that have ended."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def emulate(devices: int, *, interrupt: bool = False) -> dict[str, float]:
    """Seconds from the start of the command to each milestone of a run of one round, and the processes left."""
    mark = secrets.token_hex(8)
    fleet = {"fleet.devices": devices, "rounds.min_devices": devices, "rounds.quorum": devices, "rounds.count": 1}
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [program("talaria-lab"), "emulate", "--json", "--run-dir", str(run)]
        command += [f"--set={key}={value}" for key, value in fleet.items()]
        started = time.time()
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {MARK: mark}) as lab:
            assert lab.stdout is not None
            for line in lab.stdout:
                event, now = json.loads(line)["event"], time.time() - started
                if event == "device" and "opened" not in times:
                    times["devices online"] = now  # the last one stays
                elif event != "device":
                    times.setdefault(event, now)
                if event == "closed":
                    times["CPU s"] = cpu_s(marked(mark))
                if event == "opened" and interrupt:
                    lab.send_signal(signal.SIGINT)
        if not interrupt and lab.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with status {lab.returncode}")
        times["broker up"] = (run / "run.toml").stat().st_mtime - started  # written when the broker listens
        times["ended"] = time.time() - started
    left = list(marked(mark))
    for process in left:
        process.kill()
    return times | {"left": len(left)}


def first_rounds(fleets: Sequence[int], repetitions: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for devices in fleets:
        emulate(devices)
        runs = [emulate(devices) for _ in range(repetitions)]
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        interrupted = emulate(devices, interrupt=True)
        rows.append(
            {
                "devices": devices,
                "broker up": middle["broker up"],
                "coordinator up": middle["started"],
                "devices online": middle["devices online"],
                "round opened": middle["opened"],
                "first update": middle["accepted"],
                "round closed": middle["closed"],
                "CPU s until then": middle["CPU s"],
                "all personalized": middle["finished"],
                "command ended": middle["ended"],
                "left": max(run["left"] for run in runs),
                "left after Ctrl-C": interrupted["left"],
                "load": os.getloadavg()[0],
            }
        )
    return rows


def help_s(name: str, repetitions: int) -> tuple[float, float]:
    """Median wall and CPU seconds of a command's --help."""
    walls, cpus = [], []
    for _ in range(repetitions + 1):
        before, started = os.times(), time.monotonic()
        subprocess.run([program(name), "--help"], check=True, stdout=subprocess.DEVNULL)
        walls.append(time.monotonic() - started)
        after = os.times()
        cpus.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return statistics.median(walls[1:]), statistics.median(cpus[1:])


def install_mb() -> dict[str, float]:
    """Package -> megabytes of a fresh base install, without pip; `total` as well."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        subprocess.run([f"{folder}/bin/pip", "install", "--quiet", "--no-cache-dir", str(ROOT)], check=True)
        (packages,) = Path(folder).glob("lib/python*/site-packages")
        sizes = {
            entry.name: sum(path.stat().st_size for path in [entry, *entry.rglob("*")] if path.is_file()) / 1e6
            for entry in packages.iterdir()
            if entry.name.partition("-")[0] not in ("pip", "setuptools", "pkg_resources", "_distutils_hack")
        }
    return {"total": sum(sizes.values()), **{name: size for name, size in sorted(sizes.items()) if size >= 1}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=FLEETS)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    helps = {name: help_s(name, 2 * options.repetitions + 1) for name in PROGRAMS}
    rows = first_rounds(options.devices, options.repetitions)
    installed = install_mb()
    report(
        "first_round",
        rows,
        directory=options.results,
        help_wall_s={name: round(wall, 3) for name, (wall, _) in helps.items()},
        help_cpu_s={name: round(cpu, 3) for name, (_, cpu) in helps.items()},
        base_install_mb={name: round(size, 1) for name, size in installed.items()},
    )


if __name__ == "__main__":
    main()
