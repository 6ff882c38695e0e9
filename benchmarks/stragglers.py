"""A tenth of a fleet is twenty times slower: how long each kind of round takes to the same accuracy.

The production coordinator and 20 agents over a broker in memory, on scikit-learn's digits, label-skewed (Dirichlet,
alpha 0.3), with FedAvg. Training is real, time is emulated, so that the machine that trains for all devices does not
show in it: a device's local work takes about a second (0.8 to 1.2, drawn anew each time), that of slow ones 20 times as
long, and everything else nothing. After each closed round the global model is evaluated on the test splits of all
devices together, slow ones included; a run ends when it has reached the target twice in a row.

Three kinds of rounds, the same devices, data and hyperparameters: synchronous, which wait for all; synchronous with
`enough` for a tenth to be left out; buffered, with half the fleet as the buffer. The bar: both are at least 4 times
faster than the first.

    python -m benchmarks.stragglers
"""

import argparse
import asyncio
import random
import selectors
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.common import report
from coordinator.server import Coordinator
from edge_agent.agent import Agent
from edge_agent.data import Examples, load
from edge_agent.job import Job, Outcome
from lab.fleet import emulated_devices
from lab.pool import TrainerPool
from lab.simulate import WithoutTemplate
from shared.codec import open_payload
from shared.config import RunConfig
from shared.files import not_waiting_for_the_disk
from shared.memory_link import MemoryBroker
from shared.model_state import load_tensors
from shared.models import build_model
from shared.training import Split, evaluate

DEVICES, SLOWER = 20, 20
KINDS: Mapping[str, Mapping[str, object]] = {
    "synchronous": {"count": 60},
    "synchronous, enough = 18": {"count": 400, "enough": 18},
    "buffered, K = 10": {"count": 800, "mode": "buffered", "enough": 10, "max_staleness": 100},
}


class EmulatedTime(asyncio.SelectorEventLoop):
    """A loop whose clock stands still while anything is done, and jumps to the next timer when nothing is.

    working  counts what is done in threads and other processes
    """

    def __init__(self) -> None:
        super().__init__(_Selector(self))
        self.now = 0.0
        self.working = 0

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self.working += 1
        future.add_done_callback(self._done)
        return future

    def _done(self, _: object) -> None:
        self.working -= 1


class _Selector(selectors.EpollSelector):
    def __init__(self, loop: EmulatedTime) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self._loop.working:
            return super().select(None)
        self._loop.now += timeout
        return []


class Race:
    """One run, up to the target."""

    def __init__(self, kind: str, seed: int, target: float, folder: Path) -> None:
        self.config = RunConfig.model_validate(
            {
                "run": {"seed": seed},
                "model": {"name": "digitscnn"},
                "algorithm": {"name": "fedavg", "epochs": 1, "lr": 0.05, "batch_size": 16},
                "rounds": {"quorum": 10, "min_devices": DEVICES, "evaluate_every": 1_000_000} | dict(KINDS[kind]),
                "data": {"partition": {"kind": "dirichlet", "alpha": 0.3, "seed": seed, "min_examples": 20}},
                "fleet": {"devices": DEVICES},
            }
        )
        self.folder, self.target, self.draw = folder, target, random.Random(seed)
        self.devices = emulated_devices(self.config, folder)
        self.slow = set(sorted(self.devices)[:: DEVICES // 2])
        self.test = _together([load(device.data).test for device in self.devices.values()])
        self.model = build_model("digitscnn", {}, seed=seed)
        self.reached = asyncio.Event()
        self.accuracies: list[float] = []
        self.took = 0.0
        self.slow_updates = 0
        self._opened: float | None = None

    async def run(self) -> None:
        broker, loop = MemoryBroker(), asyncio.get_running_loop()
        assert isinstance(loop, EmulatedTime)
        async with TrainerPool({name: device.data for name, device in self.devices.items()}) as pool:

            async def work(job: Job) -> Outcome:
                """The trainer's answer, when this device's own machine would have it."""
                pace = self.draw.uniform(0.8, 1.2) * (SLOWER if job.device in self.slow else 1)
                loop.working += 1
                try:
                    outcome = await pool(job)
                finally:
                    loop.working -= 1
                await asyncio.sleep(pace)
                return outcome

            agents = [
                Agent(device.model_copy(update={"threads": 1}), broker.link, work) for device in self.devices.values()
            ]
            coordinator = Coordinator(
                self.config, broker.link, run_dir=self.folder, on_event=self._on_event, prepare=WithoutTemplate
            )
            tasks = [asyncio.create_task(runner.run()) for runner in [*agents, coordinator]]
            waiting = asyncio.create_task(self.reached.wait())
            await asyncio.wait([waiting, tasks[-1]], return_when=asyncio.FIRST_COMPLETED)
            for task in [*tasks, waiting]:
                task.cancel()
            await asyncio.gather(*tasks, waiting, return_exceptions=True)
        if not self.reached.is_set():
            raise SystemExit(f"{self.config.rounds.count} rounds were too few: {self.accuracies[-1]:.1%}")

    def _on_event(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "opened" and self._opened is None:
            self._opened = asyncio.get_running_loop().time()
        if event["event"] == "closed" and not self.reached.is_set():
            assert self._opened is not None
            self.slow_updates += sum(entry["device"] in self.slow for entry in event["accepted"])
            path = self.folder / "globals" / f"{event['round'] + 1:05}.payload"
            with open_payload(path, limit=2**24) as payload:
                load_tensors(self.model, payload.subnet.tensors)
            self.accuracies.append(evaluate(self.model, self.test).accuracy)
            if min(self.accuracies[-2:]) >= self.target and len(self.accuracies) > 1:
                self.took = asyncio.get_running_loop().time() - self._opened
                self.reached.set()


def _together(parts: Sequence[Examples]) -> Split:
    inputs, labels = ([torch.from_numpy(getattr(part, name)) for part in parts] for name in ("inputs", "labels"))
    return Split(torch.cat(inputs), torch.cat(labels))


def measure(kind: str, seeds: Sequence[int], target: float) -> list[Race]:
    races = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder, not_waiting_for_the_disk():
            race = Race(kind, seed, target, Path(folder))
            with asyncio.Runner(loop_factory=EmulatedTime) as runner:
                loop = runner.get_loop()
                with patch("time.monotonic", loop.time):  # the clock of coordinator and agents
                    runner.run(race.run())
            races.append(race)
            print(f"{kind}, seed {seed}: {race.took:.1f} s, {len(race.accuracies)} rounds", flush=True)
    return races


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--target", type=float, default=0.95, help="accuracy of the global model")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results = {kind: measure(kind, chosen.seeds, chosen.target) for kind in KINDS}
    base = statistics.median(race.took for race in results["synchronous"])
    rows = [
        {
            "rounds": kind,
            "seconds": (middle := statistics.median(race.took for race in races)),
            "all": " ".join(f"{race.took:.1f}" for race in races),
            "times faster": base / middle,
            "closed": statistics.median(len(race.accuracies) for race in races),
            "from slow devices": statistics.median(race.slow_updates for race in races),
        }
        for kind, races in results.items()
    ]
    report(
        "stragglers",
        rows,
        devices=DEVICES,
        slow=DEVICES // 10,
        slower=SLOWER,
        target=chosen.target,
        seeds=chosen.seeds,
    )


if __name__ == "__main__":
    main()
