"""`talaria-agent infer` and `export`, as a user calls them, and inference over a link."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from coordinator.broker import EmbeddedBroker
from edge_agent import slots
from edge_agent.export_command import export
from edge_agent.infer_command import infer
from edge_agent.infer_service import InService, serve
from shared.codec import Decoder, encode_message
from shared.config_base import BrokerSettings
from shared.errors import ConfigError, DataError, ExportError, LinkClosed
from shared.link import Connected, Link, Received
from shared.memory_link import MemoryBroker
from shared.messages import InferReply, InferRequest
from shared.mqtt import MqttLink
from shared.topics import Topics

RAW = np.random.default_rng(0).uniform(0, 16, (3, 1, 8, 8)).astype(np.float32)
INFER = """
import sys
from edge_agent.infer_command import infer
infer(sys.argv[1:], standalone_mode=False)
print(*sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.fixture
def served(make_personal: Callable[[str], Any], tmp_path: Path) -> Any:
    """A personal model in service below tmp_path/state, and examples in tmp_path/raw.npy."""
    personal = make_personal("state")
    personal.export()
    np.save(tmp_path / "raw.npy", RAW)
    return personal


def invoke(command: Any, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def expected(personal: Any) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = personal.network(torch.from_numpy((RAW - 4) / 2)).numpy()
    return logits


def test_files_become_predictions(served: Any, tmp_path: Path) -> None:
    report = json.loads(invoke(infer, "--state-dir", tmp_path / "state", tmp_path / "raw.npy", "--json"))
    logits = expected(served)
    assert [row["class"] for row in report["predictions"]] == logits.argmax(1).tolist()
    np.testing.assert_allclose([row["logits"] for row in report["predictions"]], logits, atol=1e-5)
    assert report["predictions"][2]["input"].endswith("raw.npy[2]")
    assert report["card"]["round"] == 3
    table = invoke(infer, "--state-dir", tmp_path / "state", tmp_path / "raw.npy").splitlines()
    assert table[0].split() == ["input", "label", "probability"]
    assert f"digit {logits[0].argmax()}" in table[1]
    assert len(table) == 4


def test_a_model_file_needs_no_state(served: Any, tmp_path: Path) -> None:
    model = slots.in_service(served.models) / slots.MODEL
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(model.read_bytes())
    report = json.loads(invoke(infer, "--model", alone, tmp_path / "raw.npy", "--bench", "--json"))
    assert len(report["predictions"]) == 3
    assert list(report["latency_ms"]) == ["onnx"]


def test_bench_sets_the_model_beside_dense_onnx_and_eager_torch(served: Any, tmp_path: Path) -> None:
    report = json.loads(invoke(infer, "--state-dir", tmp_path / "state", "--bench", "--json"))
    assert list(report["latency_ms"]) == ["onnx", "onnx dense", "torch", "torch dense"]
    for latency in report["latency_ms"].values():
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]


@pytest.mark.parametrize("arguments", [[], ["--bench"]], ids=["predictions", "bench"])
def test_inferring_imports_no_torch(served: Any, tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-c", INFER, "--state-dir", str(tmp_path / "state"), str(tmp_path / "raw.npy"), "--json"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["predictions"]) == 3
    imported = done.stderr.split()
    assert "onnxruntime" in imported
    assert not {"torch", "torchvision", "onnxscript"}.intersection(imported)


def test_what_makes_no_sense_is_answered(served: Any, tmp_path: Path) -> None:
    state = ["--state-dir", str(tmp_path / "state")]
    for arguments, error, match in [
        (state, ConfigError, "nothing to do"),
        (["--state-dir", str(tmp_path / "nowhere"), str(tmp_path / "raw.npy")], ExportError, "no model is in service"),
        ([*state, "--listen", "--bench", "--set", "device=d"], ConfigError, "--listen"),
        (["--listen"], ConfigError, "device"),
        (["--model", str(tmp_path / "raw.npy"), "--bench"], ExportError, "ONNX"),
        ([*state, str(served.template)], DataError, "cannot read examples"),
    ]:
        with pytest.raises(error, match=match):
            CliRunner().invoke(infer, arguments, catch_exceptions=False)


# --- export ---------------------------------------------------------------------------------------------------------


def test_export_writes_the_file_in_service_or_the_same_through_torch(served: Any, tmp_path: Path) -> None:
    state = ["--state-dir", tmp_path / "state"]
    invoke(export, *state, "-o", tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (slots.in_service(served.models) / slots.MODEL).read_bytes()
    invoke(export, *state, "-o", tmp_path / "b.onnx", "--method", "torch")
    for path in ("a.onnx", "b.onnx"):
        report = json.loads(invoke(infer, "--model", tmp_path / path, tmp_path / "raw.npy", "--json"))
        np.testing.assert_allclose([row["logits"] for row in report["predictions"]], expected(served), atol=1e-5)


def test_rollback_by_command(served: Any, tmp_path: Path) -> None:
    before = slots.in_service(served.models)
    state = ["--state-dir", tmp_path / "state"]
    with pytest.raises(ExportError, match="nothing to go back to"):
        invoke(export, *state, "--rollback")
    served.export(4)
    assert slots.in_service(served.models) != before
    assert str(before) in invoke(export, *state, "--rollback")
    assert slots.in_service(served.models) == before
    for arguments in ([], ["--rollback", "-o", tmp_path / "x"]):
        with pytest.raises(ConfigError, match="either"):
            invoke(export, *state, *arguments)


# --- over a link ----------------------------------------------------------------------------------------------------

TOPICS = Topics("fleet")
decode_reply = Decoder[InferReply](InferReply)


def request(number: int, shape: tuple[int, ...] = RAW.shape, data: bytes = RAW.tobytes()) -> bytes:
    return encode_message(InferRequest(id=str(number), shape=shape, data=data))


async def reply(link: Link) -> InferReply:
    while True:
        event = await link.receive()
        if isinstance(event, Received):
            return decode_reply(event.payload)


async def test_requests_are_answered_by_the_model_in_service(served: Any, tmp_path: Path) -> None:
    broker = MemoryBroker()
    device, client = broker.link("device"), broker.link("client")
    for link in (device, client):
        await link.open()
    assert isinstance(await client.receive(), Connected)
    await client.subscribe(TOPICS.inferred("d1"))
    models = InService(served.models, served.profile)
    await device.subscribe(TOPICS.infer("d1"))
    server = asyncio.create_task(serve(device, TOPICS, "d1", models))
    async with asyncio.timeout(30):
        await client.publish(TOPICS.infer("d1"), request(1))
        first = await reply(client)
        logits = expected(served)
        assert first.id == "1"
        assert [each.number for each in first.predictions] == logits.argmax(1).tolist()
        assert first.predictions[0].label == f"digit {logits[0].argmax()}"
        best = torch.softmax(torch.from_numpy(logits), 1).max(1).values
        np.testing.assert_allclose([each.probability for each in first.predictions], best.numpy(), atol=1e-5)

        # What is wrong is answered with a reason, or dropped, and the next request is served.
        await client.publish(TOPICS.infer("d1"), b"\xff not a message")
        for shape, data in [
            ((2, 1, 8, 8), RAW.tobytes()),
            ((3, 1, 64), RAW.tobytes()),
            (RAW.shape, np.full_like(RAW, np.nan).tobytes()),
            ((2**24 - 1,) * 8, RAW.tobytes()),
        ]:
            await client.publish(TOPICS.infer("d1"), request(2, shape, data))
            refused = await reply(client)
            assert refused.predictions == ()
            assert refused.reason

        # The next version is served without a restart.
        old = models.network()
        await asyncio.to_thread(served.export, 9)
        await client.publish(TOPICS.infer("d1"), request(3))
        assert len((await reply(client)).predictions) == 3
        assert models.network() is not old
        assert models.network().card.round == 9

        (served.models / "current").unlink()
        await client.publish(TOPICS.infer("d1"), request(4))
        assert "no model is in service" in (await reply(client)).reason
        await device.close()
        with pytest.raises(LinkClosed):
            await server


async def test_listen_answers_over_a_real_broker(served: Any, tmp_path: Path) -> None:
    async with asyncio.timeout(150), EmbeddedBroker(tmp_path / "broker") as broker:
        settings = [f"--set={each}" for each in ("device=d1", "fleet=fleet", f"broker.url={broker.url}")]
        command = [sys.executable, "-u", "-c", INFER, "--listen", "--state-dir", str(tmp_path / "state"), *settings]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            assert (await process.stdout.readline()).startswith(b"listening on fleet/infer/d1")
            client = MqttLink(BrokerSettings(url=broker.url), "client")
            await client.open()
            await client.subscribe(TOPICS.inferred("d1"))
            await client.publish(TOPICS.infer("d1"), request(1))
            found = await reply(client)
            assert [each.number for each in found.predictions] == expected(served).argmax(1).tolist()
            await client.close()
            process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()
            assert process.returncode == 0
            assert errors.decode().startswith("stopped")
            assert "torch" not in errors.decode().split()
        finally:
            if process.returncode is None:
                process.kill()


def test_the_environment_has_no_say_in_telemetry() -> None:
    """Importing the agent switches it off even where somebody switched it on."""
    code = "import edge_agent, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip() == "1"
