"""The initial model of a run on a device: fetched once, kept for the run, and what training starts from."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import ScriptedCoordinator, make_profile, make_task

from edge_agent.agent import Agent
from edge_agent.health import Reading
from edge_agent.job import MEMORY, PERSONAL, UPDATE, Job, Outcome
from edge_agent.worker import attempt, run_job
from shared.codec import decode_payload, encode_payload
from shared.config import AgentConfig
from shared.config_data import DataSettings, PartitionSettings
from shared.errors import MalformedPayload
from shared.messages import Blob, Chunk, Failure, Offer, Plan, Report, Task, Want
from shared.model_state import state_tensors
from shared.models import build_model
from shared.tensors import Subnet, Tensors

OPTIONS = {"width": 4}
DATA = DataSettings(partition=PartitionSettings(kind="iid", devices=8))
EARLY = ("0.", "1.", "4.", "5.", "7.", "8.")
"""The convolutions and their BatchNorm: what stays local here, as in LG-FedAvg."""
INITIAL = bytes(range(256)) * 9
"""3 chunks of 1 KiB: the agent itself does not look into it."""


def state(seed: int) -> Tensors:
    return state_tensors(build_model("digitscnn", OPTIONS, seed=seed))


def later(tensors: Tensors) -> Subnet:
    return Subnet({name: array for name, array in tensors.items() if not name.startswith(EARLY)})


def tensors_in(path: Path) -> Tensors:
    data = path.read_bytes()
    return decode_payload(data, limit=len(data)).subnet.tensors


# --- the agent -------------------------------------------------------------------------------------------------------


class Work:
    """Work that only notes what it was given."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.given: list[bytes | None] = []

    async def __call__(self, job: Job) -> Outcome:
        self.jobs.append(job)
        self.given.append(job.initial.read_bytes() if job.initial else None)
        (job.out / MEMORY).write_bytes(b"memory")
        (job.out / UPDATE).write_bytes(job.payload.read_bytes())
        return Outcome(examples=12)


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return AgentConfig(device="device", state_dir=tmp_path / "state", stall_s=0.1)


@contextlib.asynccontextmanager
async def running(config: AgentConfig, coordinator: ScriptedCoordinator, work: Any) -> AsyncIterator[None]:
    agent = Agent(config, coordinator.broker.link, work, look=Reading)
    task = asyncio.create_task(agent.run())
    try:
        yield
    finally:
        agent.stop()
        await task


async def ask(coordinator: ScriptedCoordinator, number: int, initial: Blob | None, **fields: Any) -> Task:
    payload = await coordinator.publish(f"payload of round {number}".encode())
    task = make_task(number, payload=payload, initial=initial, **fields)
    await coordinator.ask(task)
    return task


async def answer(coordinator: ScriptedCoordinator, kind: type[Offer] | type[Report] = Offer) -> None:
    """Wait until the device answers for the first time since, and let it forget."""
    await coordinator.receipt(await coordinator.hears(kind))
    coordinator.heard.clear()


def kept(config: AgentConfig) -> list[str]:
    return sorted(path.name for path in (config.state_dir / "downloads").iterdir())


async def test_it_is_fetched_once_and_kept_for_the_run_also_over_a_restart(
    config: AgentConfig, coordinator: ScriptedCoordinator
) -> None:
    work = Work()
    blob = await coordinator.publish(INITIAL)
    async with running(config, coordinator, work):
        await ask(coordinator, 1, blob)
        await answer(coordinator)
    assert kept(config) == [blob.digest]
    coordinator.broker.retained = {
        topic: payload for topic, payload in coordinator.broker.retained.items() if blob.digest not in topic
    }
    async with running(config, coordinator, work):
        await ask(coordinator, 2, blob)
        await answer(coordinator)
        await ask(coordinator, 3, blob, action="personalize")
        await answer(coordinator, Report)
    assert work.given == [INITIAL] * 3
    assert not coordinator.all(Want)
    assert kept(config) == [], "the run is over for this device"


async def test_a_template_that_comes_with_every_task_is_fetched_once(
    config: AgentConfig, coordinator: ScriptedCoordinator
) -> None:
    """Where channels are chosen by measured latency."""
    work = Work()
    blob = await coordinator.publish(INITIAL)
    async with running(config, coordinator, work):
        await ask(coordinator, 1, None, template=blob)
        await answer(coordinator)
        assert kept(config) == [blob.digest]
        coordinator.broker.retained = {
            topic: payload for topic, payload in coordinator.broker.retained.items() if blob.digest not in topic
        }
        await ask(coordinator, 2, None, template=blob)
        await answer(coordinator)
        assert [job.template is not None and job.template.read_bytes() for job in work.jobs] == [INITIAL] * 2
        await ask(coordinator, 3, None)
        await answer(coordinator)
    assert not coordinator.all(Want)
    assert kept(config) == []


async def test_a_restart_in_the_download_fetches_only_what_is_missing(
    config: AgentConfig, coordinator: ScriptedCoordinator
) -> None:
    """The broker has lost a chunk, so the coordinator is asked for it; the round does not start without."""
    work = Work()
    blob = await coordinator.publish(INITIAL)
    lost = coordinator.broker.retained.pop(coordinator.topics.chunk(blob.digest, 0, 1))
    async with running(config, coordinator, work):
        await ask(coordinator, 1, blob)
        want = await coordinator.hears(Want)
    assert (want.digest, want.ranges) == (blob.digest, ((1, 2),))
    assert work.jobs == []
    coordinator.broker.retained = {
        topic: payload for topic, payload in coordinator.broker.retained.items() if blob.digest not in topic
    }
    coordinator.heard.clear()
    async with running(config, coordinator, work):
        assert (await coordinator.hears(Want)).ranges == ((1, 2),), "the others are on the disk"
        await coordinator.say(Chunk(digest=blob.digest, index=1, data=lost))
        await coordinator.hears(Offer)
    assert work.given == [INITIAL]


async def test_a_task_of_another_run_removes_it(config: AgentConfig, coordinator: ScriptedCoordinator) -> None:
    work = Work()
    async with running(config, coordinator, work):
        await ask(coordinator, 1, await coordinator.publish(INITIAL))
        await answer(coordinator)
        await ask(coordinator, 1, None, run="another")
        await answer(coordinator)
    assert work.given == [INITIAL, None]
    assert kept(config) == []


async def test_bytes_that_are_not_those_that_were_announced_are_not_used(
    config: AgentConfig, coordinator: ScriptedCoordinator
) -> None:
    work = Work()
    blob = await coordinator.publish(INITIAL)
    topic = coordinator.topics.chunk(blob.digest, 0, 0)
    coordinator.broker.retained[topic] = coordinator.broker.retained[topic][::-1]
    async with running(config, coordinator, work):
        await ask(coordinator, 1, blob)
        assert (await coordinator.hears(Failure)).code == "digest_mismatch"
    assert work.jobs == []


async def test_one_that_rots_on_the_disk_is_fetched_anew(config: AgentConfig, coordinator: ScriptedCoordinator) -> None:
    work = Work()
    blob = await coordinator.publish(INITIAL)
    async with running(config, coordinator, work):
        await ask(coordinator, 1, blob)
        await answer(coordinator)
        (config.state_dir / "downloads" / blob.digest).write_bytes(INITIAL[::-1])
        await ask(coordinator, 2, blob)
        await answer(coordinator)
    assert work.given == [INITIAL, INITIAL]


async def test_one_beyond_the_device_is_refused_unfetched(
    config: AgentConfig, coordinator: ScriptedCoordinator
) -> None:
    work = Work()
    async with running(config, coordinator, work):
        await ask(coordinator, 1, Blob(digest="a" * 64, size=2**40, chunk=2**20))
        assert "memory" in (await coordinator.hears(Failure)).reason
    assert work.jobs == []


# --- the worker ------------------------------------------------------------------------------------------------------


class MakeJob:
    """Jobs of a device whose run starts from `initial`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0

    def __call__(
        self,
        initial: Subnet | None,
        received: Subnet,
        algorithm: str = "fedper",
        *,
        number: int = 1,
        action: Any = "train",
        memory: Path | None = None,
        **hyperparameters: Any,
    ) -> Job:
        self.made += 1
        out = self.folder / f"out{self.made}"
        out.mkdir()
        path, begin = self.folder / f"payload{self.made}", self.folder / f"initial{self.made}"
        path.write_bytes(encode_payload(received, run="run", round=number))
        if initial is not None:
            begin.write_bytes(encode_payload(initial, run="run", round=0))
        plan = Plan(model="digitscnn", model_options=OPTIONS, algorithm=algorithm, hyperparameters=hyperparameters)
        return Job(
            task=make_task(
                number,
                action=action,
                plan=plan,
                payload=_blob(path),
                initial=None if initial is None else _blob(begin),
            ),
            device="device",
            payload=path,
            initial=None if initial is None else begin,
            memory=memory,
            out=out,
            data=DATA,
            profile=make_profile(),
            threads=1,
            deadline_s=60,
        )


def _blob(path: Path) -> Blob:
    return Blob(digest=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size, chunk=1024)


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    return MakeJob(tmp_path)


def early(tensors: Tensors) -> Tensors:
    return {name: array for name, array in tensors.items() if name.startswith(EARLY)}


def test_local_layers_start_from_it_and_go_on_from_what_was_learnt(make_job: MakeJob) -> None:
    """FedPer with the early layers in the part that stays: LG-FedAvg's split."""
    trained = state(5)
    split = {"head": ("0", "1", "4", "5", "7", "8")}
    still = make_job(Subnet(trained), later(trained), epochs=0, **split)
    run_job(still)
    memory = tensors_in(still.out / MEMORY)
    for name, array in early(trained).items():
        np.testing.assert_array_equal(memory[f"local/{name}"], array, err_msg=name)
    assert not np.array_equal(memory["local/0.weight"], state(0)["0.weight"]), "not the seed's"

    first = make_job(Subnet(trained), later(trained), epochs=1, **split)
    run_job(first)
    learnt = tensors_in(first.out / MEMORY)["local/0.weight"]
    assert not np.array_equal(learnt, trained["0.weight"])
    second = make_job(Subnet(trained), later(trained), number=2, memory=first.out / MEMORY, epochs=0, **split)
    run_job(second)
    np.testing.assert_array_equal(tensors_in(second.out / MEMORY)["local/0.weight"], learnt)


def test_a_device_that_never_took_part_personalizes_from_it(make_job: MakeJob) -> None:
    trained = state(5)
    job = make_job(Subnet(trained), later(trained), action="personalize", head=("0", "1", "4", "5", "7", "8"))
    metrics = run_job(job).metrics
    personal = tensors_in(job.out / PERSONAL)
    assert all(np.array_equal(personal[name], trained[name]) for name in trained)
    assert metrics["accuracy"] == metrics["accuracy_global"], "the model without anything of this device is the file's"


def test_without_one_the_seed_draws(make_job: MakeJob) -> None:
    job = make_job(None, later(state(5)), epochs=0, head=("0", "1", "4", "5", "7", "8"))
    run_job(job)
    np.testing.assert_array_equal(tensors_in(job.out / MEMORY)["local/0.weight"], state(0)["0.weight"])


@pytest.mark.parametrize(
    "initial", [later(state(5)), Subnet({**state(5), "14.bias": np.zeros(9, np.float32)})], ids=["part", "shape"]
)
def test_one_that_is_not_the_models_fails_the_round(make_job: MakeJob, initial: Subnet) -> None:
    with pytest.raises(MalformedPayload):
        run_job(make_job(initial, Subnet(state(5)), "fedavg"))
    assert attempt(make_job(initial, Subnet(state(5)), "fedavg")).code == "malformed_payload"
