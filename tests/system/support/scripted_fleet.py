"""Devices in the test's own process: real protocol, real broker, no training. What they answer is known exactly."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
from fake_device import FakeDevice, Train
from processes import FLEET, System

from shared.codec import encode_payload, open_payload
from shared.link import Link, Will
from shared.messages import Capabilities, Task
from shared.mqtt import MqttLink
from shared.tensors import Subnet, Tensors


def filled(tensors: Tensors, value: float) -> Tensors:
    """The same names, shapes and dtypes; every value is this one."""
    return {name: np.full_like(array, value) for name, array in tensors.items()}


def constant(value: float, weight: int) -> Train:
    """Answers each round with `value + round` everywhere, as learnt from `weight` examples."""

    def train(tensors: Tensors, task: Task) -> bytes:
        return encode_payload(
            Subnet(filled(tensors, value + task.round)),
            run=task.run,
            round=task.round,
            examples=weight,
            weight=float(weight),
        )

    return train


def expected_digest(payload: Path, run: str, number: int, answers: Sequence[tuple[float, int]]) -> str:
    """SHA-256 of what round `number` must end with when each of the (value, weight) counts once.

    All values are small integers, so every sum is exact in whatever order it is made. `payload`: any global one.
    """
    total = sum(weight for _, weight in answers)
    mean = np.float32(sum((value + number) * weight for value, weight in answers)) / np.float32(total)
    highest = max(value for value, _ in answers) + number
    with open_payload(payload, limit=2**24) as before:
        tensors = {
            name: np.full_like(array, mean if array.dtype.kind == "f" else highest)
            for name, array in before.subnet.tensors.items()
        }
    return hashlib.sha256(encode_payload(Subnet(tensors), run=run, round=number + 1)).hexdigest()


def device(system: System, name: str, train: Train, *, examples: int = 1000) -> FakeDevice:
    """One that is not running yet."""

    def open_link(client_id: str, will: Will | None) -> Link:
        return MqttLink(system.settings, client_id, will)

    capabilities = Capabilities(profile="container", train=True, examples=examples)
    return FakeDevice(name, open_link, system.folder / name, train, fleet=FLEET, capabilities=capabilities)


@contextlib.asynccontextmanager
async def running(*devices: FakeDevice) -> AsyncIterator[None]:
    """They serve until the block ends; an error in one of them is an error of the test."""
    tasks = [asyncio.create_task(each.run()) for each in devices]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError) and isinstance(result, BaseException):
                raise result
