"""A run that can be seen while it goes on, with a real Mosquitto: pages for Prometheus and health, tables, traffic."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_device import FakeDevice
from fleet import running
from prometheus_client.parser import text_string_to_metric_families

from coordinator import observatory
from coordinator.broker import free_port
from coordinator.checkpoints import RunDirectory
from coordinator.cli import cli
from coordinator.journal import read_journal
from coordinator.preparation import InProcess
from coordinator.server import Coordinator
from coordinator.survey import read_survey
from coordinator.watch import Seen, Watcher
from shared.codec import encode_message
from shared.config_base import BrokerSettings
from shared.errors import ConfigError
from shared.link import Connected, Link, Received, Will
from shared.messages import Capabilities, Failure, Message, Report, Task, Vitals
from shared.mqtt import MqttLink
from shared.tensors import Tensors
from shared.topics import Topics

sys.path.insert(0, str(Path(__file__).parents[1] / "broker" / "support"))
from brokers import Mosquitto, online

Begin = Callable[..., RunDirectory]
Answer = tuple[int, dict[str, str], bytes]
TOPICS = Topics("talaria")


async def get(address: str, path: str, method: str = "GET") -> Answer:
    """(status, headers, body)."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")
    writer.close()
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


async def samples(address: str) -> dict[str, float]:
    """`name{label="value"}` -> value."""
    status, headers, body = await get(address, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


class Fleet:
    """One coordinator, one broker, and the events that were told."""

    def __init__(self, directory: RunDirectory, folder: Path, broker: Mosquitto) -> None:
        self.directory, self.folder, self.broker = directory, folder, broker
        self.address = f"127.0.0.1:{free_port()}"
        self.events: list[dict[str, Any]] = []
        self._told = asyncio.Event()

    def link(self, client_id: str, will: Will | None = None) -> Link:
        return MqttLink(BrokerSettings(url=self.broker.url), client_id, will)

    def coordinator(self) -> Coordinator:
        config = self.directory.record().config
        config = config.model_copy(update={"run": config.run.model_copy(update={"http": self.address})})
        path = self.directory.path
        return Coordinator(config, self.link, run_dir=path, on_event=self._tell, prepare=InProcess)

    def device(self, name: str, **fields: Any) -> FakeDevice:
        return FakeDevice(name, self.link, self.folder / "devices" / name, **fields)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not true():
                self._told.clear()
                await self._told.wait()

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def _tell(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self._told.set()


@pytest.fixture
async def fleet(begin: Begin, tmp_path: Path) -> AsyncIterator[Fleet]:
    broker = Mosquitto(tmp_path / "broker")
    yield Fleet(begin(count=2, min_devices=3, quorum=2), tmp_path, broker)
    broker.kill()


@asynccontextmanager
async def at_work(coordinator: Coordinator) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(coordinator.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def say(fleet: Fleet, topic: str, payload: bytes, *, retain: bool = False) -> None:
    link = fleet.link("somebody")
    await link.open()
    await online(link)
    await link.publish(topic, payload, retain=retain)
    await link.close()


def fails(tensors: Tensors, task: Task) -> Failure:
    return Failure(run=task.run, round=task.round, code="out_of_memory", reason="too\nmuch")


class Mute(FakeDevice):
    """It never reports."""

    async def say(self, message: Message) -> None:
        if not isinstance(message, Report):
            await super().say(message)


def vitals(epoch: int, **metrics: float) -> bytes:
    return encode_message(Vitals(epoch=epoch, phase="working", uptime_s=5.0, metrics=metrics))


# --- a whole run ------------------------------------------------------------------------------------------------------


async def test_what_prometheus_is_told_is_what_the_journal_says(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Honest devices, one that fails, one that may not be asked, and one that never reports: the run waits for it in
    the end, while it is scraped."""
    monkeypatch.setattr(observatory, "PERIOD_S", 0.05)
    hot = Capabilities(profile="phone", train=False, reason="82 C\nis too hot")
    mute = Mute("mute", fleet.link, fleet.folder / "devices" / "mute")
    await say(fleet, TOPICS.vitals("a"), vitals(1, temperature_c=61.5), retain=True)
    async with (
        at_work(fleet.coordinator()),
        running(fleet.device("c", train=fails), fleet.device("hot", capabilities=hot)),
    ):
        await fleet.until(lambda: len(fleet.told("device")) == 2)
        async with running(fleet.device("a"), fleet.device("b"), mute):
            await fleet.until(lambda: len(fleet.told("reported")) >= 2)
            found = await samples(fleet.address)
            status, headers, body = await get(fleet.address, "/health")
    assert (status, json.loads(body)) == (200, {"status": "ok", "reasons": []})
    assert headers["Content-Type"] == "application/json"
    journal = [line for line in read_journal(fleet.directory.journal_path) if line["event"] == "round"]
    assert found["talaria_rounds_closed_total"] == len(journal) == 2
    assert found["talaria_updates_accepted_total"] == sum(len(line["accepted"]) for line in journal) >= 4
    failed = [entry["code"] for line in journal for entry in line["failed"]]
    assert found['talaria_failures_total{code="out_of_memory"}'] >= len(failed) >= 1
    assert found["talaria_received_bytes_total"] == sum(line["bytes_up"] for line in journal) > 0
    assert found["talaria_sent_bytes_total"] >= sum(line["bytes_down"] for line in journal) > 0
    assert found["talaria_round_duration_seconds_count"] == 2
    assert found["talaria_round_duration_seconds_sum"] == pytest.approx(sum(line["wall_s"] for line in journal))
    spread = journal[-1]["evaluation"]["accuracy"]
    assert found['talaria_accuracy{metric="accuracy",statistic="p10"}'] == spread["p10"]
    assert found['talaria_devices{state="ready"}'] == 4
    assert found['talaria_devices{state="unfit"}'] == 1
    assert found['talaria_phase{phase="personalizing"}'] == 1
    assert found["talaria_broker_connected"] == 1
    assert found['talaria_device_vital{device="a",name="temperature_c"}'] == 61.5
    assert found["process_resident_memory_bytes"] > 0


async def test_the_tables_of_a_run_and_of_what_is_left_of_it(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observatory, "PERIOD_S", 0.05)
    hot = Capabilities(profile="phone", train=False, reason="82 C\nb ready")
    path = fleet.directory.path
    async with (
        running(fleet.device("a"), fleet.device("b"), fleet.device("c"), fleet.device("hot", capabilities=hot)),
        at_work(fleet.coordinator()) as task,
    ):
        await fleet.until(lambda: len(fleet.told("reported")) == 3)
        await task
    survey = read_survey(path / observatory.FILE)
    assert survey is not None
    assert (survey.phase, survey.serving, survey.connected) == ("finished", False, False)
    done = CliRunner().invoke(cli, ["devices", str(path), "--json"])
    listed = {each["device"]: each for each in json.loads(done.output)["devices"]}
    assert next(iter(listed)) == "hot"  # what needs somebody comes first
    assert (listed["hot"]["state"], listed["hot"]["why"]) == ("unfit", "82 C\nb ready")
    assert (listed["a"]["rounds_asked"], listed["a"]["rounds_answered"], listed["a"]["accepted"]) == (2, 2, 2)
    text = CliRunner().invoke(cli, ["devices", str(path)], env={"COLUMNS": "80"}).output
    assert "no coordinator is at work" in text
    assert max(map(len, text.splitlines())) <= 80
    assert not any(line.startswith("b ready") for line in text.splitlines())
    live = CliRunner().invoke(cli, ["status", str(path), "--live"], env={"COLUMNS": "120"}).output
    assert "2 of 2 rounds closed" in live  # the run is finished: it ends by itself


async def test_health_names_what_is_wrong(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observatory, "PROBE_S", 0.0)
    async with at_work(fleet.coordinator()):
        await fleet.until(lambda: bool(fleet.told("connected")))
        fleet.broker.kill()
        await fleet.until(lambda: bool(fleet.told("disconnected")))
        status, _, body = await get(fleet.address, "/health")
        said = json.loads(body)
        assert (status, said["status"], len(said["reasons"])) == (503, "failing", 1)
        assert "not connected to the broker" in said["reasons"][0]
        (fleet.directory.path / observatory.PROBE).mkdir()  # nothing can be written there
        said = json.loads((await get(fleet.address, "/health"))[2])
        assert "cannot be written" in said["reasons"][1]
        fleet.broker.start()
        (fleet.directory.path / observatory.PROBE).rmdir()
        await fleet.until(lambda: len(fleet.told("connected")) == 2)
        assert (await get(fleet.address, "/health"))[0] == 200


async def test_an_address_that_is_taken_is_named_before_anything_is_sent(fleet: Fleet) -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", int(fleet.address.split(":")[1]))
    with pytest.raises(ConfigError, match=r"run\.http .* port of its own"):
        await fleet.coordinator().run()
    assert not fleet.events
    server.close()


async def test_vital_signs_of_an_earlier_start_do_not_count(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observatory, "PERIOD_S", 0.05)
    async with running(fleet.device("a", epoch=5)), at_work(fleet.coordinator()):
        await fleet.until(lambda: bool(fleet.told("device")))
        await say(fleet, TOPICS.vitals("a"), vitals(5, temperature_c=50))
        await say(fleet, TOPICS.vitals("a"), vitals(4, temperature_c=99))
        await say(fleet, TOPICS.vitals("a"), b"\xff")
        await fleet.until(lambda: bool(fleet.told("rejected")))
        found = await samples(fleet.address)
    assert found['talaria_device_vital{device="a",name="temperature_c"}'] == 50
    assert found['talaria_rejections_total{code="malformed_message"}'] == 1


# --- traffic ----------------------------------------------------------------------------------------------------------


async def test_watch_decodes_everything_that_passes_by(fleet: Fleet) -> None:
    """Every byte string of a whole run becomes a line, also what is no message; the broker keeps nothing for it."""
    lines: list[Seen] = []
    watcher = Watcher(TOPICS)
    link = MqttLink(BrokerSettings(url=fleet.broker.url), "watch", lasting=False)
    await link.open()

    async def listen() -> None:
        while not any(line.device == "end" for line in lines):
            if isinstance(event := await link.receive(), Received):
                lines.extend(watcher.see(event, 0.0))

    assert isinstance(await link.receive(), Connected)
    listening = asyncio.create_task(listen())
    await link.subscribe(*watcher.filters())
    await say(fleet, TOPICS.up("evil"), b"\x1b[2Jno message")
    async with (
        running(fleet.device("a"), fleet.device("b"), fleet.device("c")),
        at_work(fleet.coordinator()) as task,
    ):
        async with asyncio.timeout(60):
            await task
    await say(fleet, TOPICS.infer("end"), b"?")
    async with asyncio.timeout(30):
        await listening
    lines.extend(watcher.rest(10.0))
    await link.close()
    kinds = {line.kind for line in lines}
    assert {"coordinator", "presence", "task", "offer", "grant", "receipt", "chunk", "blob", "report"} <= kinds
    assert {"cleared", "malformed"} <= kinds
    assert all(line.text.isprintable() for line in lines)
    up = [line for line in lines if line.kind == "chunk" and line.device == "a"]
    sent = fleet.told("finished")[0]["devices"]["a"]["bytes_up"]
    assert sum(line.bytes for line in up) == sent > 0
    assert next(line for line in lines if line.device == "evil").kind == "malformed"
