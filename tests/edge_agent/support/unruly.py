"""Trainers that end badly, or not at all: entries for edge_agent.fork_server."""

import ctypes
import json
import os
import signal
import time
from pathlib import Path

imported = time.monotonic()


def behave(path: Path) -> None:
    """Do what the job's plan says."""
    job = json.loads(path.read_text())
    options = job["task"]["plan"]["model_options"]
    out = Path(job["out"])
    match options["do"]:
        case "succeed":
            facts = {"nice": os.nice(0), "pid": os.getpid(), "server": os.getppid(), "deadline": job["deadline_s"]}
            (out / "facts.json").write_text(json.dumps({**facts, "imported": imported}))
            print("prints are no replies")
            (out / "outcome.json").write_text(json.dumps({"examples": 7, "metrics": {"accuracy": 0.5}}))
        case "allocate":
            try:
                held = bytearray(options["mib"] * 2**20)
                (out / "outcome.json").write_text(json.dumps({"examples": len(held) // 2**20}))
            except MemoryError:
                (out / "outcome.json").write_text(json.dumps({"code": "out_of_memory", "reason": "budget"}))
        case "signal":
            os.kill(os.getpid(), options["number"])
            time.sleep(60)
        case "segfault":
            ctypes.string_at(0)
        case "raise":
            raise ValueError("nobody catches this")
        case "garbage":
            (out / "outcome.json").write_text("{")
        case "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            (out / "pid.tmp").write_text(str(os.getpid()))
            (out / "pid.tmp").rename(out / "pid")
            while True:
                time.sleep(60)
