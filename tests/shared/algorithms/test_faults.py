"""Faults that were seen in implementations of these algorithms, looked for in all of ours. Those of a single algorithm
are in its own tests."""

import ast
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_agent.data import DeviceData, load
from edge_agent.job import MEMORY, UPDATE, Job
from edge_agent.worker import run_job
from shared.algorithms import ALGORITHMS, Algorithm, DeviceRound
from shared.algorithms.apfl import APFL
from shared.algorithms.ditto import DITTO
from shared.algorithms.per_fedavg import PER_FEDAVG
from shared.channel_trace import channel_layout
from shared.codec import encode_payload, open_payload
from shared.config_data import DataSettings
from shared.messages import Blob, Plan, Task
from shared.model_state import load_tensors, state_tensors
from shared.models import build_model, example_input
from shared.profiles import Profile
from shared.tensors import Subnet, Tensors
from shared.training import Split, sgd

ALL = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
OPTIONS = {"width": 8, "classes": 4}


def eager(algorithm: Algorithm, **given: Any) -> dict[str, Any]:
    """Settings under which the algorithm takes all decisions that it can."""
    wanted = {"accuracy_threshold": 0.5, "pruning_amount": 0.3, "proximal": (0.1, 2.0), "head_epochs": 1, **given}
    return {name: value for name, value in wanted.items() if name in algorithm.hyperparameters.model_fields}


def test_a_round_holds_no_test_split() -> None:
    """No algorithm can decide on it (Plato's Hermes prunes by it), or adapt to it (as the authors of FedBABU do in
    their Per-FedAvg): it has only what is trained and what is decided on."""
    assert {field.name for field in fields(DeviceRound) if field.type is Split} == {"train", "validation"}


def two_rounds(root: Path, algorithm: Algorithm, received: Tensors, data: DeviceData) -> Tensors:
    """What a device uploads in the second of two rounds, and remembers, by the worker's own code."""
    setup = eager(algorithm)
    model = build_model("digitscnn", {"width": 8}, seed=0)
    load_tensors(model, received)
    shared = algorithm.share(model, algorithm.hyperparameters.model_validate(setup))
    root.mkdir()
    path = root / "download"
    path.write_bytes(encode_payload(Subnet(state_tensors(model, sorted(shared))), run="run", round=1))
    blob = Blob(digest=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size, chunk=1024)
    layout = channel_layout(model, example_input("digitscnn", {"width": 8})).digest if algorithm.prunes else None
    plan = Plan(
        model="digitscnn",
        model_options={"width": 8},
        algorithm=algorithm.name,
        hyperparameters={**setup, "epochs": 1},
        layout=layout,
    )
    memory, found = None, Tensors()
    for number in (1, 2):
        out = root / str(number)
        out.mkdir()
        job = Job(
            task=Task(run="run", action="train", round=number, plan=plan, payload=blob, time_left_s=60),
            device="device",
            payload=path,
            memory=memory,
            out=out,
            data=DataSettings(),
            profile=Profile.model_validate({"id": "test", "title": "", "cores": 1, "memory_mib": 1024}),
            threads=1,
            deadline_s=60,
        )
        run_job(job, lambda settings: data)
        memory = out / MEMORY
        for kind in (UPDATE, MEMORY):
            with open_payload(out / kind, limit=2**24) as payload:
                found |= {f"{kind}/{name}": array.copy() for name, array in payload.subnet.tensors.items()}
    return found


@pytest.fixture(scope="module")
def trained() -> tuple[Tensors, DeviceData]:
    """A model that knows what it was trained on, and that data, cut to 100 examples for further training."""
    data, model = load(DataSettings()), build_model("digitscnn", {"width": 8}, seed=0)
    known = Split(torch.from_numpy(data.train.inputs), torch.from_numpy(data.train.labels))
    generator = torch.Generator().manual_seed(0)
    sgd(model, known, epochs=3, lr=0.05, batch_size=16, generator=generator, check_time=lambda: None)
    few = replace(data.train, inputs=data.train.inputs[:100], labels=data.train.labels[:100])
    return state_tensors(model), replace(data, train=few)


@ALL
def test_the_test_split_decides_nothing(
    algorithm: Algorithm, trained: tuple[Tensors, DeviceData], tmp_path: Path
) -> None:
    """All of its labels true, all of them wrong: what is uploaded and remembered is the same."""
    received, data = trained
    wrong = replace(data, test=replace(data.test, labels=(data.test.labels + 1) % 10))
    found, other = (two_rounds(tmp_path / str(index), algorithm, received, d) for index, d in enumerate((data, wrong)))
    assert found.keys() == other.keys()
    assert all(np.array_equal(other[name], array) for name, array in found.items())
    if algorithm.prunes:
        assert not all(found[path].all() for path in found if path.startswith(f"{MEMORY}/held/")), "nothing was decided"


@pytest.mark.parametrize(
    "algorithm", [entry for entry in ALGORITHMS if entry not in (APFL, PER_FEDAVG)], ids=lambda entry: entry.name
)
def test_momentum_does_not_outlive_a_round(make_fleet: Callable[..., Any], algorithm: Algorithm) -> None:
    """In rounds of one step momentum is nothing, unless something of the last round is left of it."""
    found = []
    for momentum in (0.0, 0.9):
        given = eager(algorithm, momentum=momentum, epochs=1, batch_size=64)
        fleet = make_fleet(algorithm, build_model("digitscnn", OPTIONS, seed=0), **given)
        for _ in range(3):
            fleet.round()
        found.append(fleet)
    for device, remembered in found[0].remembered.items():
        assert all(np.array_equal(found[1].remembered[device][path], array) for path, array in remembered.items())
    tensors = found[0].aggregate.tensors
    assert all(np.array_equal(found[1].aggregate.tensors[name], array) for name, array in tensors.items())


@ALL
def test_what_a_device_has_less_than_a_batch_of_is_trained_on(
    make_fleet: Callable[..., Any], algorithm: Algorithm
) -> None:
    """PFLlib drops the last batch, and with it devices that have no other: every example counts."""
    data = Split(torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2]))
    found = []
    for splits in ([data], [Split(data.inputs.neg(), data.labels)]):
        fleet = make_fleet(
            algorithm, build_model("digitscnn", OPTIONS, seed=0), splits, **eager(algorithm, batch_size=64)
        )
        fleet.round()
        found.append({**fleet.remembered[0], **fleet.aggregate.tensors})
    assert not all(np.array_equal(found[1][name], array) for name, array in found[0].items())


def test_defaults_are_the_methods() -> None:
    """PFLlib's Ditto has a lambda of 0, which is local training; Plato's Per-FedAvg is of first order only."""
    assert DITTO.hyperparameters().model_dump()["proximal"] > 0
    assert PER_FEDAVG.hyperparameters().model_dump()["variant"] == "hf"


def imported(node: ast.AST) -> set[str]:
    """What a node of a program brings in, or asks for."""
    match node:
        case ast.Import(names=names):
            return {alias.name.partition(".")[0] for alias in names}
        case ast.ImportFrom(module=str(module)):
            return {module.partition(".")[0]}
        case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save" as attribute):
            return {f"torch.{attribute}"}
        case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
            return {"allow_pickle"}
    return set()


@pytest.mark.parametrize("package", ["shared", "coordinator", "edge_agent", "lab"])
def test_nothing_is_pickled(package: str) -> None:
    """Plato sends its masks as pickles: who receives one runs what is in it."""
    pickles = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    pickles |= {"torch.load", "torch.save", "allow_pickle"}
    paths = list((Path(inspect.getfile(Algorithm)).parents[2] / package).rglob("*.py"))
    assert len(paths) > 5
    for path in paths:
        found = set[str]().union(*map(imported, ast.walk(ast.parse(path.read_text()))))
        assert not found & pickles, path
