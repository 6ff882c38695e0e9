"""What the tests of the agent share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.job import Job
from shared.config import DataSettings
from shared.messages import Blob, Plan, Task
from shared.profiles import Profile

ENTRIES = Path(__file__).parent / "entries"


def make_profile(**training: Any) -> Profile:
    return Profile.model_validate(
        {"id": "test", "title": "test", "cores": 2, "memory_mib": 4096, "training": {"memory_mib": 256, **training}}
    )


def make_task(round_: int = 1, *, action: Any = "train", run: str = "run", digest: str = "a", **fields: Any) -> Task:
    return Task(
        run=run,
        action=action,
        round=round_,
        plan=fields.pop("plan", Plan(model="smallcnn", algorithm="fedavg")),
        payload=fields.pop("payload", Blob(digest=digest * 64, size=1000, chunk=512)),
        time_left_s=fields.pop("time_left_s", 60.0),
        **fields,
    )


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """A job for `entries.unruly`, which does what `do` says."""
    count = 0

    def make(do: str, *, deadline_s: float = 60.0, memory_mib: int = 256, **options: Any) -> Job:
        nonlocal count
        count += 1
        out = tmp_path / f"out{count}"
        out.mkdir()
        return Job(
            task=make_task(plan=Plan(model="smallcnn", model_options={"do": do, **options}, algorithm="fedavg")),
            device="device",
            payload=tmp_path / "payload",
            memory=None,
            out=out,
            data=DataSettings(),
            profile=make_profile(memory_mib=memory_mib),
            threads=1,
            deadline_s=deadline_s,
        )

    return make
