"""What another version's `talaria-agent doctor --json` finds, asked of it as a program."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from shared.errors import StateError


def problems(agent: Path, arguments: Sequence[str]) -> dict[str, str]:
    """Check -> what is wrong. StateError where it cannot even say so."""
    done = subprocess.run([str(agent), *arguments], capture_output=True, text=True, check=False)
    try:
        return {each["check"]: each["detail"] for each in json.loads(done.stdout) if each["status"] == "problem"}
    except (ValueError, KeyError, TypeError) as error:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise StateError(f"{agent} {arguments[0]} fails: {words[0]}") from error
