"""A fleet as docs/security.md sets it up: real programs, over TLS, with the generated rules and signatures."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from fake_device import FakeDevice
from fortress import FLEET, TOPICS, Fortress
from processes import PATIENCE_S, Agent, Coordinator, Process, command, template
from scripted_fleet import constant, expected_digest, running

from coordinator.acl import Role
from shared.codec import decode_any, decode_downlink, unsealed
from shared.link import Link, Received, Will
from shared.messages import Capabilities, Offer, Receipt, Sealed
from shared.mqtt import MqttLink
from shared.settings import load_agent_config, load_run_config
from shared.toml import toml_value

DATA = ["data.partition.kind=iid", "data.partition.devices=4", "data.max_per_class=12"]
RUN = [
    "algorithm.name=fedavg",
    "algorithm.epochs=1",
    "algorithm.lr=0.1",
    "rounds.deadline_s=90",
    "rounds.personalize_deadline_s=90",
    "transfer.stall_s=2",
]


def enrol(fortress: Fortress, *names: str) -> str:
    """What the command says."""
    arguments = [command("talaria-coordinator"), "enrol", "--authority", str(fortress.folder), *names]
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


class Fleet:
    """What one test starts."""

    def __init__(self, fortress: Fortress, folder: Path) -> None:
        self.fortress, self.folder = fortress, folder
        self._started: list[Process] = []

    async def coordinator(self, *, devices: int, rounds: int = 1, template: bytes) -> Coordinator:
        """template: in place of the one that takes it longer to make than a round."""
        counts = [f"rounds.count={rounds}", f"rounds.quorum={devices}", f"rounds.min_devices={devices}"]
        config = load_run_config(self.fortress.folder / "coordinator/coordinator.toml", [*RUN, *counts]).config
        coordinator = Coordinator(self.folder, config)
        coordinator.run_dir.mkdir()
        (coordinator.run_dir / "template.onnx").write_bytes(template)
        return await self._start(coordinator)

    async def agent(self, name: str) -> Agent:
        sets = [*DATA, f"state_dir={toml_value(str(self.folder / name / 'state'))}", "health=false", "stall_s=2"]
        config = load_agent_config(self.fortress.folder / f"devices/{name}/agent.toml", sets).config
        return await self._start(Agent(self.folder / name, config))

    async def _start(self, process):  # type: ignore[no-untyped-def]
        self._started.append(process)
        await process.start()
        return process

    async def close(self) -> None:
        for each in self._started:
            if each.running:
                await each.kill()


@pytest.fixture
async def fleet(fortress: Fortress, tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(fortress, tmp_path)
    yield fleet
    await fleet.close()


class Seen:
    """Everything below some filters, as an observer sees it: (topic, payload)."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self._news = asyncio.Condition()

    async def listen(self, link: MqttLink) -> None:
        while True:
            event = await link.receive()
            if isinstance(event, Received):
                async with self._news:
                    self.messages.append((event.topic, event.payload))
                    self._news.notify_all()

    async def more(self, topic: str, than: int) -> None:
        """Return when there are more than so many on that topic."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: len(self.on(topic)) > than)

    def on(self, topic: str) -> list[bytes]:
        return [payload for found, payload in self.messages if found == topic and payload]


@contextlib.asynccontextmanager
async def seen(fortress: Fortress, *filters: str) -> AsyncIterator[Seen]:
    fortress.enrol("eye", role=Role.OBSERVER)
    fortress.reload()
    link, found = MqttLink(fortress.settings("eye", "observer"), "eye"), Seen()
    await link.open()
    listening = asyncio.create_task(found.listen(link))
    await link.subscribe(*filters)
    yield found
    listening.cancel()
    await link.close()


def signed_device(fleet: Fleet, name: str, value: float, *, epoch: int = 1) -> FakeDevice:
    """One in this process, which reads what is sealed and trains nothing."""

    def open_link(client_id: str, will: Will | None) -> Link:
        return MqttLink(fleet.fortress.settings(name), client_id, will)

    capabilities = Capabilities(profile="container", train=True, examples=1000)
    return FakeDevice(
        name, open_link, fleet.folder / name, constant(value, 1), fleet=FLEET, epoch=epoch, capabilities=capabilities
    )


async def test_a_run_from_enrolment_to_the_devices_own_models(fleet: Fleet) -> None:
    """A real agent, whose model is made on the way, beside a device in this process: one that trains is enough."""
    fortress = fleet.fortress
    assert str(fortress.folder / "devices/cellar") in await asyncio.to_thread(enrol, fortress, "cellar")
    async with seen(fortress, TOPICS.coordinator, TOPICS.task("+"), TOPICS.down("+")) as told:
        coordinator = await fleet.coordinator(devices=2, template=template())
        agent = await fleet.agent("cellar")
        async with running(signed_device(fleet, "kitchen", 0)):
            for name in ("opened", "closed", "personalizing", "reported", "finished"):
                finished = await coordinator.event(name)  # each has a patience of its own: the machine may be busy
        assert finished["reported"] == ["cellar", "kitchen"]
        assert await agent.ended() == 0
    assert not any("forged" in line or "unsigned" in line or "replayed" in line for line in agent.lines)
    assert (agent.config.state_dir / "models/a/model.onnx").exists()
    marks = json.loads((agent.config.state_dir / "heard.json").read_bytes())
    (by_topic,) = marks.values()
    assert TOPICS.task("cellar") in by_topic
    said = [decode_any(payload) for _, payload in told.messages if payload]
    assert len(said) >= 1 + 2 * 2 + 2 * 2, "state, tasks, receipts"
    assert all(isinstance(each, Sealed) for each in said), "all of it is signed"


async def test_an_update_that_is_replayed_counts_once(fleet: Fleet, link: Callable) -> None:
    """Everything that kitchen ever said, said again with its own certificate, in the next round and after the end."""
    up, down = TOPICS.up("kitchen"), TOPICS.down("kitchen")
    async with seen(fleet.fortress, up, down) as wire:
        coordinator = await fleet.coordinator(devices=2, rounds=2, template=b"of no use")
        kitchen, hall = signed_device(fleet, "kitchen", 0), signed_device(fleet, "hall", 100)
        async with running(kitchen):
            async with running(hall):
                await coordinator.event("closed", round=1)
            async with asyncio.timeout(PATIENCE_S):
                await kitchen.until(lambda: kitchen.tasks[-1].round == 2)
        said, answers = wire.on(up), len(wire.on(down))
        offers = [payload for payload in said if isinstance(decode_any(payload), Offer)]
        assert {decode_any(payload).round for payload in offers} >= {1}  # type: ignore[union-attr]
        thief = await link(fleet.fortress.settings("kitchen"))
        first = [payload for payload in said if not isinstance(decode_any(payload), Offer) or payload == offers[0]]
        for payload in first:
            await thief.publish(up, payload)
        await wire.more(down, answers)  # the old offer has its answer
        answer = decode_downlink(unsealed(wire.on(down)[-1]))
        assert isinstance(answer, Receipt)
        assert answer.round == 1
        await thief.close()
        async with running(signed_device(fleet, "hall", 100, epoch=2), signed_device(fleet, "kitchen", 0, epoch=2)):
            for name in ("personalizing", "finished"):
                await coordinator.event(name)
    rounds = [line for line in coordinator.journal() if line["event"] == "round"]
    assert [[entry["device"] for entry in line["accepted"]] for line in rounds] == [["hall", "kitchen"]] * 2
    run = coordinator.events("started")[0]["run"]
    for line in rounds:
        digest = expected_digest(last_global(coordinator), run, line["round"], [(0, 1), (100, 1)])
        assert line["digest"] == digest, "each counts once, bit by bit"


def last_global(coordinator: Coordinator) -> Path:
    return max((coordinator.run_dir / "globals").iterdir())
