"""One question to a module of ours in a process of its own: what it loads, and what it may die of, stays there."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from shared.children import dying_with_us
from shared.errors import ExportError, TalariaError


def ask(module: str, *arguments: str) -> Any:
    """What `python -m module arguments` answers; ExportError with the reason if it refuses, or how it died."""
    command = [sys.executable, "-m", module, *arguments]
    # An agent that is killed and started again must not find an earlier child of its own at work on the same files.
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        preexec_fn=dying_with_us(),
    )
    if done.returncode < 0:
        raise ExportError(f"{module} was ended by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise ExportError((done.stderr.strip().splitlines() or [f"{module}: exit status {done.returncode}"])[-1])
    return json.loads(done.stdout)


def answer(function: Callable[..., Any]) -> None:
    """Main of such a module: the function's result for our arguments as JSON, or the reason of its refusal."""
    try:
        print(json.dumps(function(*sys.argv[1:])))
    except TalariaError as error:
        sys.exit(" ".join(str(error).split()))
