"""Liars of an emulated fleet: what they send is what the attack says, in a form that is taken."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_agent.job import UPDATE, Job, Outcome
from edge_agent.worker import attempt
from lab.attacks import ATTACKS, FLIP, NOISE, on_other_labels, with_liars
from shared.algorithms import ALGORITHMS
from shared.algorithms import algorithm as algorithm_of
from shared.algorithms.base import DeviceRound
from shared.algorithms.fedavg import FEDAVG
from shared.codec import open_payload, write_payload
from shared.config_data import DataSettings
from shared.messages import Blob, Plan, Task
from shared.model_state import state_tensors
from shared.models import build_model
from shared.profiles import load_profile
from shared.tensors import Subnet, Tensors
from shared.training import Split


def job(folder: Path) -> Job:
    """Round 1 of a small network on handwritten digits."""
    folder.mkdir()
    plan = Plan(model="digitscnn", algorithm="fedavg", hyperparameters={"epochs": 1})
    tensors = state_tensors(build_model("digitscnn", {}, seed=0))
    payload = folder / "download"
    with payload.open("wb") as file:
        write_payload(file, Subnet(tensors), run="run", round=1)
    blob = Blob(digest="0" * 64, size=payload.stat().st_size, chunk=512)
    out = folder / "out"
    out.mkdir()
    return Job(
        task=Task(run="run", action="train", round=1, plan=plan, payload=blob, time_left_s=60),
        device="a",
        payload=payload,
        memory=None,
        out=out,
        data=DataSettings(max_per_class=2),
        profile=load_profile("x86-mini-pc"),
        threads=1,
        deadline_s=60,
    )


async def work(job: Job) -> Outcome:
    return await asyncio.to_thread(attempt, job)


def read(path: Path) -> tuple[Tensors, Any]:
    with open_payload(path, limit=2**30) as payload:
        return {name: array.copy() for name, array in payload.subnet.tensors.items()}, payload.header


async def trained(folder: Path, liars: set[str], attack: str) -> tuple[Tensors, Tensors, Any]:
    """What was received, what is sent, and its header."""
    given = job(folder)
    outcome = await with_liars(work, liars, ATTACKS[attack])(given)
    assert outcome.succeeded, outcome.reason
    return read(given.payload)[0], *read(given.out / UPDATE)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_liar_sends_something_else_and_an_honest_device_what_it_trained(tmp_path: Path, attack: str) -> None:
    start, honest, header = await trained(tmp_path / "honest", {"b"}, attack)
    _, plain, _ = await trained(tmp_path / "plain", set(), attack)
    _, lie, claimed = await trained(tmp_path / "lie", {"a"}, attack)
    assert (claimed.examples, claimed.weight) == (header.examples, header.weight)
    for name, array in honest.items():
        assert array.tobytes() == plain[name].tobytes()
        if array.dtype.kind != "f" or not (array != start[name]).any():
            continue
        change, sent = array - start[name], lie[name] - start[name]
        if attack == "sign flip":
            np.testing.assert_allclose(sent, -FLIP * change, rtol=1e-3, atol=1e-5)
        elif attack == "noise":
            assert np.linalg.norm(sent) == pytest.approx(NOISE * np.linalg.norm(change), rel=1e-3)
        else:
            assert not np.array_equal(array, lie[name])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_every_algorithm_has_a_liar_that_its_devices_find(algorithm: Any) -> None:
    found = algorithm_of(f"lab.attacks:{algorithm.name.replace('-', '_').upper()}")
    assert (found.name, found.hyperparameters) == (algorithm.name, algorithm.hyperparameters)


def test_other_labels_are_those_at_the_other_end() -> None:
    seen = []
    spy = on_other_labels(replace(FEDAVG, train=lambda round_, hp: seen.append(round_.train.labels)))
    round_ = object.__new__(DeviceRound)
    round_.model, round_.train = torch.nn.Linear(4, 10), Split(torch.zeros(3, 4), torch.tensor([0, 7, 9]))
    spy.train(round_, None)
    assert seen[0].tolist() == [9, 2, 0]
