"""Devices of an emulated fleet that lie: they train like all others, and then send something else.

Such a device speaks the protocol, and what it sends has the right names, shapes and examples: only robust rules
(shared.robust) and bounds (coordinator.admission) can do something about it.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from edge_agent.job import UPDATE, Job, Outcome
from edge_agent.trainer import Work
from shared.algorithms import ALGORITHMS, Algorithm, DeviceRound
from shared.codec import open_payload, write_payload
from shared.tensors import Array, Subnet
from shared.training import Split

FLIP = 3.0
"""How many times as far a flipped update goes: enough to undo what three honest devices do."""
NOISE = 10.0
"""Norm of the noise of a tensor, in norms of what training changed of it."""

Lie: TypeAlias = Callable[[Array, Array, np.random.Generator], Array]
"""(what was received, what training made of it, randomness) -> what is sent."""


def flipped_sign(start: Array, trained: Array, draw: np.random.Generator) -> Array:
    """Away from where training went, FLIP times as far."""
    return np.asarray(start - FLIP * (trained - start), trained.dtype)


def noisy(start: Array, trained: Array, draw: np.random.Generator) -> Array:
    """Gaussian noise around what was received, NOISE times as far from it as training went."""
    noise = draw.normal(size=trained.shape)
    length = NOISE * np.linalg.norm(trained - start) / max(float(np.linalg.norm(noise)), 1e-30)
    return np.asarray(start + length * noise, trained.dtype)


@dataclass(frozen=True)
class Attack:
    """lie: of an update; None: what was trained is sent. labels: whether it trains on class C - 1 - c in place of c."""

    lie: Lie | None = None
    labels: bool = False


ATTACKS: Mapping[str, Attack] = {
    "sign flip": Attack(flipped_sign),
    "noise": Attack(noisy),
    "label flip": Attack(labels=True),
}


def with_liars(work: Work, liars: Collection[str], attack: Attack) -> Work:
    """`work`, in which these devices lie. Only for algorithms that do not prune, and updates in float32: there an
    update and what was received have the same shapes."""

    async def done(job: Job) -> Outcome:
        if job.device not in liars or job.task.action != "train":
            return await work(job)
        if attack.labels:
            job = _with_other_labels(job)
        outcome = await work(job)
        if outcome.succeeded and attack.lie is not None:
            _rewrite(job, attack.lie)
        return outcome

    return done


def _rewrite(job: Job, lie: Lie) -> None:
    path, seed = job.out / UPDATE, hashlib.sha256(f"{job.device}/{job.task.round}".encode()).digest()
    draw = np.random.default_rng(int.from_bytes(seed[:8], "little"))
    with _opened(job.payload) as received, _opened(path) as update:
        before, header = received.subnet.tensors, update.header
        tensors = {
            name: lie(before[name], array, draw) if array.dtype.kind == "f" else array.copy()
            for name, array in update.subnet.tensors.items()
        }
    with path.open("wb") as file:
        write_payload(
            file,
            Subnet(tensors),
            run=header.run,
            round=header.round,
            examples=header.examples,
            weight=header.weight,
            metrics=header.metrics,
        )


def _opened(path: Path) -> Any:
    return open_payload(path, limit=path.stat().st_size)


def _with_other_labels(job: Job) -> Job:
    """The same job, with an algorithm that this module names."""
    plan = job.task.plan
    name = f"{__name__}:{plan.algorithm.replace('-', '_').upper()}"
    task = job.task.model_copy(update={"plan": plan.model_copy(update={"algorithm": name})})
    return job.model_copy(update={"task": task, "trust": (*job.trust, name)})


def on_other_labels(algorithm: Algorithm) -> Algorithm:
    """The algorithm, trained on class C - 1 - c in place of every class c of C."""

    def train(round_: DeviceRound, hp: Any) -> None:
        with torch.no_grad():
            classes = round_.model(round_.train.inputs[:2]).shape[1]
        round_.train = Split(round_.train.inputs, classes - 1 - round_.train.labels)
        algorithm.train(round_, hp)

    return replace(algorithm, train=train)


globals().update({each.name.replace("-", "_").upper(): on_other_labels(each) for each in ALGORITHMS})
