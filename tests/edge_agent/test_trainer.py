"""The trainer with real processes: whatever ends them is an outcome, and nothing is left running."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edge_agent.job import Job
from edge_agent.shared_server import LENDER
from edge_agent.trainer import Trainer

ENTRIES = Path(__file__).parent / "support"
UNRULY = "unruly:behave"

MakeJob = Callable[..., Job]


@pytest.fixture(autouse=True)
def _entries_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ENTRIES))


LEND = "import socket; from edge_agent.shared_server import lend; lend({!r}, socket.socket(fileno={}))"


@pytest.fixture
def lender(_entries_on_path: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trainers of this test are forks of a server that they share."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/lender")
            listener.listen()
            command = [sys.executable, "-c", LEND.format(UNRULY, listener.fileno())]
            process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        monkeypatch.setenv(LENDER, f"{folder}/lender")
        yield
        assert psutil.Process(process.pid).children(recursive=True) == []
        process.terminate()
        process.wait()


@pytest.fixture(params=["own", "shared"])
async def trainer(request: pytest.FixtureRequest) -> AsyncIterator[Trainer]:
    """With a fork server of its own, and with a shared one."""
    if request.param == "shared":
        request.getfixturevalue("lender")
    trainer = Trainer(entry=UNRULY, grace_s=0.5)
    before = psutil.Process().children(recursive=True)
    yield trainer
    await trainer.close()
    assert psutil.Process().children(recursive=True) == before


async def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Another process makes it true, and has no way to tell us."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def facts(job: Job) -> dict[str, float]:
    found: dict[str, float] = json.loads((job.out / "facts.json").read_text())
    return found


async def test_outcome_comes_back(trainer: Trainer, make_job: MakeJob) -> None:
    job = make_job("succeed")
    outcome = await trainer(job)
    assert outcome.succeeded
    assert (outcome.examples, outcome.metrics) == (7, {"accuracy": 0.5})
    assert facts(job)["nice"] == 10
    assert 0 < facts(job)["deadline"] < 60, "the time that loading took is gone"


async def test_library_is_loaded_once_for_all_jobs(trainer: Trainer, make_job: MakeJob) -> None:
    await trainer.warm()
    jobs = [make_job("succeed") for _ in range(3)]
    for job in jobs:
        await trainer(job)
    assert len({facts(job)["imported"] for job in jobs}) == 1
    assert len({facts(job)["server"] for job in jobs}) == 1
    assert len({facts(job)["pid"] for job in jobs}) == 3


async def test_cold_trainer_gives_everything_back_after_each_job(make_job: MakeJob) -> None:
    trainer = Trainer(keep_warm=False, entry=UNRULY)
    await trainer.warm()
    assert psutil.Process().children(recursive=True) == []
    first, second = make_job("succeed"), make_job("succeed")
    await trainer(first)
    assert psutil.Process().children(recursive=True) == []
    await trainer(second)
    assert facts(first)["server"] != facts(second)["server"]


async def test_memory_budget(trainer: Trainer, make_job: MakeJob) -> None:
    assert (await trainer(make_job("allocate", mib=200, memory_mib=256))).succeeded
    assert (await trainer(make_job("allocate", mib=300, memory_mib=256))).code == "out_of_memory"
    assert (await trainer(make_job("allocate", mib=300, memory_mib=400))).succeeded, "each job has its own budget"


@pytest.mark.parametrize(
    ("do", "options", "code", "names"),
    [
        ("signal", {"number": int(signal.SIGKILL)}, "out_of_memory", "SIGKILL"),
        ("signal", {"number": int(signal.SIGILL)}, "illegal_instruction", "SIGILL"),
        ("segfault", {}, "crashed", "SIGSEGV"),
        ("raise", {}, "crashed", "status 1"),
        ("garbage", {}, "crashed", "no outcome"),
    ],
)
async def test_bad_ends_are_outcomes_and_the_next_job_runs(
    trainer: Trainer, make_job: MakeJob, do: str, options: dict[str, int], code: str, names: str
) -> None:
    outcome = await trainer(make_job(do, **options))
    assert outcome.code == code
    assert names in outcome.reason
    assert (await trainer(make_job("succeed"))).succeeded


async def test_a_job_that_ignores_its_deadline_is_killed(trainer: Trainer, make_job: MakeJob) -> None:
    await trainer(make_job("succeed"))  # so that the deadline is not spent on loading
    job = make_job("hang", deadline_s=0.5)
    assert (await trainer(job)).code == "out_of_time"
    assert not psutil.pid_exists(int((job.out / "pid").read_text()))
    assert (await trainer(make_job("succeed"))).succeeded


async def test_cancelling_kills_the_job_and_keeps_the_library(trainer: Trainer, make_job: MakeJob) -> None:
    job = make_job("hang")
    running = asyncio.create_task(trainer(job))
    await eventually((job.out / "pid").exists)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not psutil.pid_exists(int((job.out / "pid").read_text()))
    assert (await trainer(make_job("succeed"))).succeeded


async def test_close_while_a_job_runs_leaves_nothing(make_job: MakeJob) -> None:
    trainer = Trainer(entry=UNRULY)
    job = make_job("hang")
    running = asyncio.create_task(trainer(job))
    await eventually((job.out / "pid").exists)
    await trainer.close()
    assert not psutil.pid_exists(int((job.out / "pid").read_text()))
    assert not (await running).succeeded


async def test_a_killed_fork_server_takes_its_job_along_and_is_replaced(trainer: Trainer, make_job: MakeJob) -> None:
    job = make_job("hang")
    running = asyncio.create_task(trainer(job))
    await eventually((job.out / "pid").exists)
    child = psutil.Process(int((job.out / "pid").read_text()))
    child.parent().kill()
    assert (await running).code == "out_of_memory"
    await eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert (await trainer(make_job("succeed"))).succeeded


async def test_library_for_another_processor(make_job: MakeJob) -> None:
    trainer = Trainer(entry="illegal:main")
    assert (await trainer(make_job("succeed"))).code == "illegal_instruction"


async def test_missing_library_names_the_remedy(make_job: MakeJob) -> None:
    outcome = await Trainer(entry="no_such_module:main")(make_job("succeed"))
    assert outcome.code == "crashed"
    assert "doctor" in outcome.reason


async def start_agent(folder: Path, job: Job) -> asyncio.subprocess.Process:
    """A process that has begun to load its trainer, and then gives it the job."""
    (folder / "job.json").write_text(job.model_dump_json())
    script = f"""
        import asyncio, pathlib
        from edge_agent.job import Job
        from edge_agent.trainer import Trainer

        async def main():
            trainer = Trainer(entry={UNRULY!r})
            await trainer.warm()
            print("warm", flush=True)
            await trainer(Job.model_validate_json(pathlib.Path({str(folder / "job.json")!r}).read_text()))

        asyncio.run(main())
    """
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), stdout=asyncio.subprocess.PIPE
    )
    assert agent.stdout is not None
    await agent.stdout.readline()
    return agent


async def all_end(processes: list[psutil.Process]) -> None:
    gone, left = await asyncio.to_thread(psutil.wait_procs, processes, timeout=20)
    assert not left
    assert len(gone) == len(processes)


@pytest.mark.parametrize("while_loading", [False, True])
async def test_no_orphan_after_the_agent_is_killed(tmp_path: Path, make_job: MakeJob, while_loading: bool) -> None:
    job = make_job("hang")
    agent = await start_agent(tmp_path, job)
    if not while_loading:
        await eventually((job.out / "pid").exists)
    started = psutil.Process(agent.pid).children(recursive=True)
    assert len(started) == (1 if while_loading else 2)
    os.kill(agent.pid, signal.SIGKILL)
    await agent.wait()
    await all_end(started)


@pytest.mark.usefixtures("lender")
async def test_no_orphan_of_a_shared_server_after_the_agent_is_killed(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job("hang")
    agent = await start_agent(tmp_path, job)
    await eventually((job.out / "pid").exists)
    trainer = psutil.Process(int((job.out / "pid").read_text()))
    started = [*psutil.Process(agent.pid).children(), trainer, trainer.parent()]
    os.kill(agent.pid, signal.SIGKILL)
    await agent.wait()
    await all_end(started)


async def test_a_dead_lender_is_an_outcome(monkeypatch: pytest.MonkeyPatch, make_job: MakeJob, tmp_path: Path) -> None:
    monkeypatch.setenv(LENDER, str(tmp_path / "nobody"))
    trainer = Trainer(entry=UNRULY)
    assert (await trainer(make_job("succeed"))).code == "crashed"
    await trainer.close()


def test_the_agent_imports_no_torch() -> None:
    script = "import sys, edge_agent.agent, edge_agent.cli, edge_agent.trainer; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


async def test_a_warm_fork_is_quick(trainer: Trainer, make_job: MakeJob) -> None:
    await trainer(make_job("succeed"))
    times = []
    for _ in range(3):
        started = time.monotonic()
        await trainer(make_job("succeed"))
        times.append(time.monotonic() - started)
    assert min(times) < 0.5
