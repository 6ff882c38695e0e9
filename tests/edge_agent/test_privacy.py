"""What leaves the device: the shared tensors and numbers about them. Everything that an agent publishes is searched."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scripted import ScriptedCoordinator

from coordinator.template import dense_template
from edge_agent.agent import Agent
from edge_agent.data import load
from edge_agent.health import Reading
from edge_agent.job import Job, Outcome
from edge_agent.store import Store
from edge_agent.worker import attempt
from shared.algorithms import algorithm, hyperparameters, shared_names
from shared.codec import encode_payload, open_payload
from shared.config import AgentConfig
from shared.config_data import DataSettings
from shared.link import Will
from shared.memory_link import MemoryLink
from shared.messages import Offer, Plan, Report, Task
from shared.model_state import state_tensors
from shared.models import build_model, example_input
from shared.tensors import Subnet

OPTIONS = {"size": 8, "classes": 4}
WINDOW = 16
"""Bytes in a row that cannot be the same by chance: four float32 values."""


class Wiretap(MemoryLink):
    """Keeps every byte that is published, topics included."""

    published: list[bytes]

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.published.append(topic.encode() + b" " + payload)
        await super().publish(topic, payload, retain=retain)


async def in_process(job: Job) -> Outcome:
    return attempt(job)


def windows(array: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> Iterator[bytes]:
    """The array's bytes, in pieces that are searched for; of constant pieces nothing can be said."""
    data = np.ascontiguousarray(array).tobytes()
    for start in range(0, len(data) - WINDOW + 1, WINDOW):
        piece = data[start : start + WINDOW]
        if len(set(piece)) > 4:
            yield piece


@pytest.fixture
def secrets(tmp_path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """Examples whose values are like no others."""
    rng = np.random.default_rng(7)
    inputs = rng.normal(3.7, 1.3, (80, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "secret.npz", x=inputs, y=np.arange(80) % 4)
    return inputs


async def test_local_tensors_memory_and_data_stay_on_the_device(
    tmp_path: Path, coordinator: ScriptedCoordinator, secrets: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"
) -> None:
    plan = Plan(model="smallcnn", model_options=OPTIONS, algorithm="fedper", hyperparameters={"epochs": 1})
    model = build_model("smallcnn", OPTIONS, seed=0)
    fedper = algorithm("fedper")
    shared = shared_names(fedper, model, hyperparameters(fedper, plan.hyperparameters))
    local = set(model.state_dict()) - shared
    assert local
    payload = await coordinator.publish(encode_payload(Subnet(state_tensors(model, shared)), run="run", round=1))
    template = await coordinator.publish(dense_template(model.eval(), example_input("smallcnn", OPTIONS), {}))

    published: list[bytes] = []

    def tap(client_id: str, will: Will | None) -> Wiretap:
        link = Wiretap(coordinator.broker, client_id, will)
        link.published = published
        return link

    config = AgentConfig(
        device="device",
        state_dir=tmp_path / "state",
        data=DataSettings(source="npz", path=tmp_path / "secret.npz", options={"channels": "first"}),
    )
    agent = Agent(config, tap, in_process, once=True, look=Reading)
    serving = asyncio.create_task(agent.run())
    task = Task(run="run", action="train", round=1, plan=plan, payload=payload, time_left_s=60.0)
    await coordinator.ask(task)
    offer = await coordinator.hears(Offer)
    update = await coordinator.pull(offer, tmp_path / "update")
    await coordinator.receipt(offer)
    own = task.model_copy(update={"action": "personalize", "round": 2, "template": template})
    await coordinator.ask(own)
    report = await coordinator.hears(Report, timeout_s=60)
    await coordinator.receipt(report)
    await asyncio.wait_for(serving, 20)
    assert {"parity", "onnx_bytes", "accuracy", "bytes_up"} <= report.metrics.keys()
    assert (config.state_dir / "models/current/model.onnx").is_file()

    everything = b"\x00".join([*published, update])
    store = Store(config.state_dir)
    memory = store.memory("run")
    assert memory is not None
    with open_payload(memory, limit=2**24) as remembered:
        kept = {name: array.copy() for name, array in remembered.subnet.tensors.items()}
    assert {name.partition("/")[2] for name in kept if name.startswith("local/")} == local
    for name, array in kept.items():
        assert not any(piece in everything for piece in windows(array)), f"{name} was published"
    data = load(config.data)
    for examples in (secrets, data.train.inputs, data.validation.inputs, data.test.inputs):
        assert not any(piece in everything for piece in windows(examples)), "examples were published"
    for word in (b"secret", *(name.encode() for name in local), *(name.encode() for name in kept)):
        assert word not in everything, f"{word!r} was published"

    # And the search would find them: the shared tensors are all there.
    path = tmp_path / "update"
    with open_payload(path, limit=2**24) as sent:
        assert sent.subnet.tensors.keys() == shared
        weights = [array for array in sent.subnet.tensors.values() if array.size >= WINDOW]
        assert weights
        assert all(piece in everything for array in weights for piece in windows(array))
