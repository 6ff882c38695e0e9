"""A run that starts from given tensors: what `define` takes, what devices are told, what a restart still knows."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fleet import World, adding, running, tensors_of

from coordinator.checkpoints import RunDirectory, RunRecord
from coordinator.cli import cli
from coordinator.definition import Definition, define
from coordinator.preparation import make_definition
from shared.chunks import describe
from shared.codec import encode_payload
from shared.config import RunConfig
from shared.errors import ConfigError
from shared.messages import Capabilities
from shared.model_state import state_tensors
from shared.models import build_model
from shared.tensors import Subnet, Tensors

HEAD = ("14.weight", "14.bias")
Begin = Callable[..., RunDirectory]
pytestmark = pytest.mark.timeout(60)


def trained() -> Tensors:
    """A state that no seed of these tests draws."""
    return state_tensors(build_model("digitscnn", {}, seed=99))


def config(initial: Path | None, algorithm: str = "fedper", **rounds: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"name": "digitscnn", "initial": initial},
            "algorithm": {"name": algorithm},
            "rounds": {"count": 2, "quorum": 2, "min_devices": 2, **rounds},
            "transfer": {"stall_s": 0.2},
        }
    )


def same(one: Tensors, two: Tensors) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trained.payload"
    path.write_bytes(encode_payload(Subnet(trained()), run="earlier", round=7))
    return path


@pytest.fixture
def world(file: Path, tmp_path: Path) -> World:
    """A run that begins with the file's tensors, which are gone from where they were."""
    directory = RunDirectory(tmp_path / "run")
    directory.create(RunRecord("run", config(file)))
    make_definition(directory)
    directory.template.write_bytes(b"template")
    file.unlink()
    return World(directory, tmp_path)


# --- definition ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["fedavg", "fedper", "hermes"])
def test_the_first_round_starts_from_the_file(file: Path, algorithm: str) -> None:
    definition, initial, shared = define(config(file, algorithm))
    assert same(initial, trained())
    assert same(shared, {name: trained()[name] for name in shared})
    assert (shared.keys() == trained().keys()) == (algorithm != "fedper")
    unaffected = define(config(None, algorithm))[0]
    assert definition.dump() == unaffected.dump(), "the plan and the channels are the model's, not the file's"


def test_the_run_keeps_a_copy_of_its_own(world: World) -> None:
    assert same(tensors_of(world.directory.initial), trained())
    assert world.initial.keys() == trained().keys() - set(HEAD)


def test_without_one_nothing_is_kept(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create(RunRecord("run", config(None)))
    make_definition(directory)
    assert not directory.initial.exists()
    assert Definition.load(directory.definition.read_bytes()).plan.seed == 0


def corrupt(tensors: Tensors) -> bytes:
    return encode_payload(Subnet({**tensors, "14.bias": np.full(10, np.nan, np.float32)}), run="r", round=0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda t: None, "No such file"),
        (lambda t: b"", "0 bytes"),
        (lambda t: b"PK\x03\x04 a pickle of torch", "does not begin with TLR1"),
        (lambda t: encode_payload(Subnet(t), run="r", round=0)[:-4], "the header describes"),
        (corrupt, "'14.bias' has values that are not finite"),
        (lambda t: encode_payload(Subnet({n: t[n] for n in t if n not in HEAD}), run="r", round=0), "14.bias, 14.wei"),
        (lambda t: encode_payload(Subnet({**t, HEAD[1]: t[HEAD[1]][:9]}), run="r", round=0), "14.bias is float32"),
    ],
    ids=["absent", "empty", "no payload", "cut", "not finite", "of FedPer", "other classes"],
)
def test_a_file_that_is_not_the_models_whole_state(
    tmp_path: Path, content: Callable[[Tensors], bytes | None], said: str
) -> None:
    path = tmp_path / "wrong.payload"
    data = content(trained())
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        define(config(path))
    assert f'model.initial = "{path}"' in str(caught.value)
    assert said in str(caught.value)
    assert "export RUN_DIR --format payload" in str(caught.value), "the remedy"


# --- the run ---------------------------------------------------------------------------------------------------------


async def test_every_task_names_it_and_it_is_there_before_the_first(world: World) -> None:
    original, seen = world.broker.publish, []

    def publish(topic: str, payload: bytes, *, retain: bool) -> None:
        if topic.startswith("talaria/task/") and payload:
            seen.append(published(world))
        original(topic, payload, retain=retain)

    world.broker.publish = publish  # type: ignore[method-assign]
    a, b = world.device("a", adding(1)), world.device("b", adding(3))
    async with running(a, b):
        await world.coordinator().run()
    blob = describe(world.directory.initial, a.tasks[0].payload.chunk)
    assert [(task.round, task.action) for task in a.tasks] == [(1, "train"), (2, "train"), (3, "personalize")]
    assert {task.initial for task in [*a.tasks, *b.tasks]} == {blob}
    assert seen == [blob.chunks] * len(seen)
    assert published(world) == 0, "nothing stays at the broker when the run is over"


async def test_who_has_no_need_of_it_is_told_of_none(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    a = world.device("a")
    async with running(a, world.device("b")):
        await world.coordinator().run()
    assert [task.initial for task in a.tasks] == [None, None]


@pytest.mark.parametrize("phase", ["opened", "personalizing"])
async def test_a_coordinator_that_goes_on_still_has_it(world: World, phase: str) -> None:
    """Also for a broker that forgot everything meanwhile."""
    let_go = asyncio.Event()

    def held(tensors: Tensors, task: Any) -> Any:
        before = task.action == "train" and phase == "personalizing"
        return adding(1)(tensors, task) if before or let_go.is_set() else None

    a, b = world.device("a", held), world.device("b", held)
    async with running(a, b):
        run = asyncio.create_task(world.coordinator().run())
        await world.until(phase)
        while not a.tasks or (phase == "personalizing") != (a.tasks[-1].action == "personalize"):
            a.fetched.clear()
            await a.fetched.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        blob = a.tasks[-1].initial
        assert published(world) == blob.chunks  # type: ignore[union-attr]
        world.broker.restart(persistent=False)
        assert published(world) == 0
        let_go.set()
        await world.coordinator().run()
    assert {task.initial for task in [*a.tasks, *b.tasks]} == {blob}
    assert published(world) == 0


async def test_it_is_cut_anew_for_a_device_that_takes_less(world: World) -> None:
    let_go = asyncio.Event()
    narrow = world.device("narrow", capabilities=Capabilities(profile="lte-m", train=True, max_packet=8192))
    a = world.device("a", lambda tensors, task: adding(1)(tensors, task) if let_go.is_set() else None)
    async with running(a, world.device("b")):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("accepted")
        await a.fetched.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        let_go.set()
        async with running(narrow):
            await world.coordinator().run()
    wide = a.tasks[0].initial
    cut = narrow.tasks[0].initial
    assert wide is not None
    assert cut is not None
    assert (cut.digest, cut.chunk < 8192 < wide.chunk) == (wide.digest, True)
    assert published(world) == 0


def published(world: World) -> int:
    """Chunks of the initial model that the broker keeps."""
    digest = describe(world.directory.initial, 1024).digest
    return sum(topic.startswith(f"talaria/blob/{digest}/") for topic in world.broker.retained)


# --- export ----------------------------------------------------------------------------------------------------------


async def test_a_finished_run_is_where_the_next_one_starts(world: World, tmp_path: Path) -> None:
    """What was shared from its last round, the rest from what it began with itself."""
    async with running(world.device("a", adding(1)), world.device("b", adding(1))):
        await world.coordinator().run()
    path = tmp_path / "next.payload"
    done = CliRunner().invoke(cli, ["export", str(world.directory.path), "--format", "payload", "-o", str(path)])
    assert done.exit_code == 0, done.output
    assert done.output == f"{path}: the global model after round 2, {path.stat().st_size} bytes\n"
    _, initial, _ = define(config(path, "fedavg"))
    assert all(np.array_equal(initial[name], trained()[name]) for name in HEAD)
    body = {name: array for name, array in initial.items() if name not in HEAD}
    assert same(body, tensors_of(world.directory.global_payload(3)))
    assert not np.array_equal(body["0.weight"], trained()["0.weight"])


async def test_the_global_payload_of_fedavg_is_such_a_file_itself(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    async with running(world.device("a", adding(1)), world.device("b", adding(3))):
        await world.coordinator().run()
    path = world.directory.global_payload(2)
    assert same(define(config(path))[1], tensors_of(path))
    exported = tmp_path / "model.payload"
    done = CliRunner().invoke(cli, ["export", str(world.directory.path), "--format", "payload", "-o", str(exported)])
    assert done.exit_code == 0, done.output
    assert same(tensors_of(exported), tensors_of(path))
