"""A run from its start to its end, as it is deployed: broker, coordinator and agents, each a process of its own."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from processes import System
from scripted_fleet import constant, device, running

from shared.config_base import BrokerSettings


@pytest.mark.parametrize(
    ("algorithm", "hyperparameters"),
    [
        ("fedavg", {}),
        ("fedper", {}),
        ("hermes", {"accuracy_threshold": 0.0, "pruning_amount": 0.3, "target": {"parameters": 0.5}}),
    ],
)
async def test_a_run_ends_with_a_checked_model_in_service_on_every_device(
    system: System, algorithm: str, hyperparameters: dict[str, Any]
) -> None:
    coordinator = await system.coordinator(
        algorithm, devices=2, rounds=2, broker=BrokerSettings(), exports=None, **hyperparameters
    )  # with a broker of its own
    broker = BrokerSettings(url=(await coordinator.event("broker"))["url"])
    agents = [await system.agent(name, broker) for name in ("phone", "pi")]
    names = ["phone", "pi"]
    finished = await coordinator.finished()
    assert finished["reported"] == names
    assert finished["failed"] == []
    assert [await agent.ended() for agent in agents] == [0, 0]
    await system.gone()

    first, second, personalized = coordinator.journal()
    for line in (first, second):
        assert sorted(entry["device"] for entry in line["accepted"]) == names
        assert (line["rejected"], line["failed"]) == ([], [])
    reports = {entry["device"]: entry["metrics"] for entry in personalized["devices"]}
    for agent in agents:
        metrics = reports[agent.config.device]
        _check_model(agent.config.state_dir / "models/current/model.onnx", metrics)
        pruned = metrics["parameters"] < metrics["parameters_dense"]
        assert pruned == (algorithm == "hermes"), metrics

    digest = hashlib.sha256((coordinator.run_dir / "globals/00003.payload").read_bytes()).hexdigest()
    assert second["digest"] == personalized["digest"] == digest


def _check_model(path: Path, metrics: dict[str, float]) -> None:
    """In service is what was reported: valid, of any batch size, equal to the trained model."""
    assert path.stat().st_size == metrics["onnx_bytes"]
    assert metrics["parity"] <= 1e-4
    onnx.checker.check_model(onnx.load(path), full_check=True)
    serving = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (only,) = serving.get_inputs()
    for batch in (1, 5):
        (logits,) = serving.run(None, {only.name: np.zeros((batch, 1, 8, 8), np.float32)})
        assert logits.shape == (batch, 10)
        assert np.isfinite(logits).all()


async def test_a_finished_run_finishes_again_at_once(system: System) -> None:
    """And does not disturb its journal."""
    system.start_broker()
    coordinator = await system.coordinator(devices=1, exports=False)
    async with running(device(system, "phone", constant(1, 1))):
        await coordinator.finished()
    journal = coordinator.journal()
    assert system.broker is not None
    system.broker.kill()
    await coordinator.start()
    assert await coordinator.ended() == 0
    assert json.loads(coordinator.lines[-1])["phase"] == "finished"
    assert coordinator.journal() == journal
