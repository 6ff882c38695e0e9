"""With how much of a network a device starts: real forks under real limits."""

import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.job import MEMORY, UPDATE, Job
from edge_agent.probe import starting_width
from edge_agent.trainer import Trainer
from edge_agent.worker import run_job
from shared.algorithms import algorithm
from shared.algorithms.device import set_up, starting_channels
from shared.algorithms.hermes import HERMES, HermesHyperparameters
from shared.channel_trace import channel_layout
from shared.codec import decode_payload, encode_payload
from shared.config_data import DataSettings, PartitionSettings
from shared.errors import OutOfMemory
from shared.messages import Blob, Plan, Task
from shared.model_state import state_tensors
from shared.models import build_model, example_input
from shared.profiles import Profile
from shared.pruning import take
from shared.tensors import Subnet

DATA = DataSettings(partition=PartitionSettings(kind="iid", devices=20, index=3))

ANSWERS = """
    import json, os, signal
    import torch
    from edge_agent.fork_server import limit_memory
    from edge_agent.probe import starting_width
    from shared.errors import OutOfMemory

    MIB = 2**20
    torch.set_num_threads(1)
    torch.randn(64, 64) @ torch.randn(64, 64)

    def allocates(width):
        torch.zeros(int(300 * width) * MIB, dtype=torch.uint8)

    def killed_above_a_quarter(width):
        if width > 0.25:
            os.kill(os.getpid(), signal.SIGKILL)

    def fails_otherwise(width):
        raise ZeroDivisionError

    def trains(width):
        torch.set_num_threads(2)
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3))
        layers(torch.randn(8, 3, 32, 32)).square().mean().backward()
        torch.randn(2_000_000).exp().sum()

    def too_much(width):
        raise MemoryError

    limit_memory(200)
    found = {
        "allocates": starting_width(allocates, 1.0, 200),
        "reserve": starting_width(allocates, 1.0, 1000),
        "killed": starting_width(killed_above_a_quarter, 1.0, 200),
        "bounded": starting_width(lambda width: None, 0.6, 200),
        "narrow": starting_width(lambda width: None, 0.1, 200),
        "other": starting_width(fails_otherwise, 1.0, 200),
        "threads": starting_width(trains, 1.0, 200),
    }
    try:
        starting_width(too_much, 1.0, 200)
    except OutOfMemory as error:
        found["none"] = str(error)
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        found["children"] = 0
    print(json.dumps(found))
"""


def test_answers_of_a_process_with_a_limit() -> None:
    """Whatever ends a rehearsal for want of memory is a no, anything else is left to the job, and nothing is left."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ANSWERS)], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(ran.stdout)
    reason = found.pop("none")
    assert found == {
        "allocates": 0.5,  # 225 MiB are too many
        "reserve": 0.25,  # of 1000 MiB 100 are kept back, which leaves 100 of the 200
        "killed": 0.25,
        "bounded": 0.5,
        "narrow": 0.1,
        "other": 1.0,
        "threads": 1.0,
        "children": 0,
    }
    assert "even with 0.125 of each layer's channels: raise training.memory_mib, lower training.batch_size" in reason


def test_without_a_limit_nothing_is_rehearsed() -> None:
    def rehearse(width: float) -> None:
        raise AssertionError

    assert starting_width(rehearse, 1.0, 100) == 1.0
    assert starting_width(rehearse, 0.4, 100) == 0.375


def test_it_starts_with_the_strongest_of_what_was_received() -> None:
    """Of which it always has some, in every group."""
    model, example = build_model("digitscnn", {"width": 8}, seed=0), example_input("digitscnn", {"width": 8})
    setup = set_up(HERMES, HermesHyperparameters(), model, example)
    layout = setup.layout
    assert layout is not None
    tensors = state_tensors(model)
    tensors["0.weight"][:4] *= 10
    alone = starting_channels(setup, Subnet(tensors), 0.5, 2)
    assert alone is not None
    assert alone["0"].tolist() == [True] * 4 + [False] * 4
    alive = {group: np.arange(units) >= units - 3 for group, units in layout.groups.items()}
    held = starting_channels(setup, Subnet(take(tensors, layout, alive), alive), 0.5, 2)
    assert held is not None
    assert all(mask.any() and not (mask & ~alive[group]).any() for group, mask in held.items())
    assert starting_channels(setup, Subnet(tensors), 1.0, 2) is None


# --- jobs ------------------------------------------------------------------------------------------------------------


def make_job(
    folder: Path, name: str, *, width: int, memory: Path | None = None, number: int = 1, **training: Any
) -> Job:
    options: dict[str, Any] = {"width": width}
    model = build_model("digitscnn", options, seed=0)
    payload = encode_payload(Subnet(state_tensors(model)), run="run", round=number)
    out = folder / f"{name}-{number}"
    out.mkdir()
    (folder / "download").write_bytes(payload)
    layout = channel_layout(model, example_input("digitscnn", options)) if algorithm(name).prunes else None
    return Job(
        task=Task(
            run="run",
            action="train",
            round=number,
            plan=Plan(
                model="digitscnn",
                model_options=options,
                algorithm=name,
                hyperparameters={"epochs": 1},
                layout=layout.digest if layout else None,
            ),
            payload=Blob(digest=hashlib.sha256(payload).hexdigest(), size=len(payload), chunk=1024),
            time_left_s=120.0,
        ),
        device="device",
        payload=folder / "download",
        memory=memory,
        out=out,
        data=DATA,
        profile=Profile.model_validate(
            {"id": "small", "title": "", "cores": 2, "memory_mib": 1024, "training": {"batch_size": 8, **training}}
        ),
        threads=1,
        deadline_s=120.0,
    )


def update(job: Job) -> Subnet:
    data = (job.out / UPDATE).read_bytes()
    return decode_payload(data, limit=len(data)).subnet


async def test_where_fedavg_runs_out_of_memory_hermes_trains_a_part(tmp_path: Path) -> None:
    """24 MiB of parameters in a budget of 80, in the agent's own trainer; and the round after it."""
    trainer = Trainer()
    try:
        fedavg = make_job(tmp_path, "fedavg", width=256, memory_mib=80)
        outcome = await trainer(fedavg)
        assert outcome.code == "out_of_memory", outcome.reason
        hermes = make_job(tmp_path, "hermes", width=256, memory_mib=80)
        outcome = await trainer(hermes)
        assert outcome.succeeded, outcome.reason
        again = make_job(tmp_path, "hermes", width=256, memory_mib=80, memory=hermes.out / MEMORY, number=2)
        assert (await trainer(again)).succeeded
    finally:
        await trainer.close()
    first, second = update(hermes), update(again)
    assert first.held is not None
    assert second.held is not None
    assert all(0.125 <= mask.mean() <= 0.5 for mask in first.held.values())
    assert all((second.held[group] == mask).all() for group, mask in first.held.items())
    assert first.tensors["0.weight"].shape[0] == first.held["0"].sum()
    assert {path.name for path in hermes.out.iterdir()} == {"job.json", "outcome.json", MEMORY, UPDATE}


def test_the_profile_bounds_the_width_without_a_limit(tmp_path: Path) -> None:
    job = make_job(tmp_path, "hermes", width=32, max_width=0.5)
    outcome = run_job(job)
    held = update(job).held
    assert held is not None
    assert [int(mask.sum()) for mask in held.values()] == [16, 32, 64, 32]  # of 32, 64, 128 and 56, in eights
    assert outcome.metrics["channels"] == 144
    assert outcome.metrics["accuracy"] == outcome.metrics["accuracy_global"]


def test_no_width_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job ends with what the rehearsals found."""
    monkeypatch.setattr("edge_agent.probe._limited", lambda: True)
    monkeypatch.setattr("edge_agent.probe._fits", lambda *rest: False)
    with pytest.raises(OutOfMemory, match=r"does not fit into 512 MiB even with 0\.125"):
        run_job(make_job(tmp_path, "hermes", width=8))
