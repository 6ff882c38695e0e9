"""Chaos: a real fleet under a seeded schedule of faults, and what must hold after it.

Runs follow one another until the time is up. Then the faults stop, the run that is open must come to its end, and every
run is looked at: lab.chaos_checks says what for.
"""

import asyncio
import contextlib
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import chaos_checks as checks
from lab.chaos_disk import Disk
from lab.chaos_fleet import Broker, Party, agent_party, coordinator_party, weather
from lab.chaos_keys import OBSERVER, Keys
from lab.chaos_observer import Observer, resident_mib
from lab.chaos_plan import BROKER, COORDINATOR, Fault, Kind, plan
from lab.emulate import trainers
from lab.fleet import emulated_devices
from lab.proxy import FAIR, Proxy
from shared.config import AgentConfig, RunConfig

SAMPLE_S = 1.0
PATIENCE_S = 600.0
"""When the faults are over, a run has come to its end by then."""
DAY_S = 86_400.0


@dataclass
class Report:
    """What happened, and what does not hold; empty `violations`: everything does.

    seconds    of faults, from the first update that was seen on the wire
    faults     struck, by kind: how often
    struck     each fault with the second at which it struck, and how it was done where there is a choice
    runs       rounds, updates and reported devices of each run that came to its end
    starts     of each party
    peak_mib   of each party's memory
    """

    seed: int
    seconds: float
    folder: str
    disk: str = ""
    faults: dict[str, int] = field(default_factory=dict)
    struck: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)
    receipts: int = 0
    violations: list[str] = field(default_factory=list)


class Chaos:
    """One chaos run in `folder`. `say` is told in words what strikes, and what comes of it."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        seed: int,
        seconds: float,
        kinds: tuple[Kind, ...] = tuple(Kind),
        mounts: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._folder = folder
        self._seconds = seconds
        self._mounts = mounts
        self._say = say
        self._seed = seed
        self._kinds = kinds
        self._report = Report(seed, seconds, str(folder))
        self._samples: dict[tuple[str, int], list[float]] = defaultdict(list)
        self._parties: dict[str, Party] = {}
        self._over = asyncio.Event()
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self) -> Report:
        """The report. BrokerError where there is no Mosquitto."""
        disks: dict[str, Disk] = {}
        devices = emulated_devices(self._config, self._folder)
        fleet = self._config.run.fleet
        self._keys = Keys(self._folder / "keys", fleet, devices, self._config.broker.keepalive_s)
        self._broker = Broker(self._keys.broker, self._keys.port)
        await self._broker.start()
        self._observer = Observer(fleet, self._keys.way(OBSERVER))
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._serve(stack, devices, disks)
        finally:
            await self._broker.kill()
        for name, disk in disks.items():
            self._report.disk = disk.how
            if self._report.violations:
                disk.rescue(self._folder / "rescued" / name)
        self._report.receipts = len(self._observer.receipts)
        return self._report

    async def _serve(
        self, stack: contextlib.AsyncExitStack, devices: dict[str, AgentConfig], disks: dict[str, Disk]
    ) -> None:
        lender = await stack.enter_async_context(trainers(self._folder))
        disks[COORDINATOR] = Disk(self._folder / "runs", mounted=self._mounts)
        signed = {"signing_key": self._keys.signing_key(disks[COORDINATOR].folder)}
        config = self._config.model_copy(update={"run": self._config.run.model_copy(update=signed)})
        link = await stack.enter_async_context(self._keys.proxy(COORDINATOR))
        tasks = await stack.enter_async_context(_background())
        tasks(self._observer.watch())
        tasks(self._sample())
        agents = {}
        for name, agent in devices.items():
            disks[name] = Disk(agent.state_dir, mounted=self._mounts)
            proxy = await stack.enter_async_context(self._keys.proxy(name))
            agent = agent.model_copy(update={"coordinator_key": self._keys.coordinator_key(name)})
            agents[name] = agent_party(agent, self._folder / "devices" / name, disks[name], proxy, lender)
        self._parties.update(agents)
        for party in agents.values():
            tasks(party.serve())
        striking = asyncio.create_task(self._strike(plan(self._seed, self._seconds, list(devices), self._kinds)))
        try:
            number = 0
            while number == 0 or not self._over.is_set():
                number += 1
                await self._one_run(config, number, disks[COORDINATOR], link)
                if self._report.violations:
                    break
            if striking.done():
                striking.result()  # whatever went wrong with the faults themselves
        finally:
            striking.cancel()
            await asyncio.gather(striking, return_exceptions=True)
            for party in self._parties.values():
                if not party.ended.is_set():
                    await party.rest()
        reported = {name for run in self._report.runs for name in run["reported"]}
        self._judge(agents, {name: agent.state_dir for name, agent in devices.items()}, reported)

    async def _one_run(self, config: RunConfig, number: int, disk: Disk, link: Proxy) -> None:
        run_dir = disk.folder / f"run-{number}"
        party = coordinator_party(config, run_dir, self._folder / "coordinator", disk, link)
        self._parties[COORDINATOR] = party
        serving = asyncio.create_task(party.serve())
        try:
            while not serving.done():
                done, _ = await asyncio.wait({serving}, timeout=SAMPLE_S)
                if not done and self._over.is_set() and time.monotonic() - self._ended > PATIENCE_S:
                    self._violated(f"{run_dir.name} did not come to its end {PATIENCE_S:.0f} s after the last fault")
                    await party.rest()
                    return
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            self._report.starts[COORDINATOR] = self._report.starts.get(COORDINATOR, 0) + party.starts
            self._violated(*party.odd)
        evidence = checks.evidence_of(party.lines)
        run = next((line["run"] for line in party.lines if line.get("event") == "started"), None)
        evidence.receipts = {(n, device) for of, n, device in self._observer.receipts if of == run}
        self._violated(*checks.lost_or_twice(run_dir, evidence))
        audit, faults = await asyncio.to_thread(checks.audited, run_dir)
        self._violated(*faults)
        self._report.runs.append(
            {
                "run": run,
                "rounds": audit.rounds,
                "updates": audit.updates,
                "receipts_seen": len(evidence.receipts),
                "reported": evidence.reported,
            }
        )
        self._say(
            f"{run_dir.name}: {audit.rounds} rounds recomputed, {audit.updates} updates, {len(faults)} violations"
        )

    def _judge(self, agents: dict[str, Party], states: dict[str, Path], reported: set[str]) -> None:
        for name, party in agents.items():
            self._report.starts[name] = party.starts
            self._violated(*party.odd)
            self._violated(*checks.torn(name, states[name], personalized=name in reported))
        self._violated(*checks.unbounded(self._samples))
        for (name, _), values in self._samples.items():
            peak = round(max(values), 1)
            self._report.peak_mib[name] = max(peak, self._report.peak_mib.get(name, 0.0))
        logs = sorted(self._folder.rglob("*.log"))
        self._violated(*checks.tracebacks(logs), *checks.disbelieved(logs))

    def _violated(self, *faults: str) -> None:
        for fault in faults:
            self._report.violations.append(fault)
            self._say(f"VIOLATED: {fault}")

    async def _sample(self) -> None:
        while True:
            for name, party in self._parties.items():
                if party.pid is not None and (resident := resident_mib(party.pid)):
                    self._samples[name, party.starts].append(resident)
            await asyncio.sleep(SAMPLE_S)

    # --- faults -----------------------------------------------------------------------------------------------------

    async def _strike(self, faults: tuple[Fault, ...]) -> None:
        """Every fault at its time, once the fleet is at work; then the end of all faults."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._observer.uploading.wait()
            self._began = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                for fault in faults:
                    await asyncio.sleep(max(0.0, self._began + fault.at - time.monotonic()))
                    tasks.create_task(self._one(fault))
                await asyncio.sleep(max(0.0, self._began + self._seconds - time.monotonic()))
        finally:
            self._ended = time.monotonic()
            self._over.set()
        self._say("no more faults: the run must come to its end")

    async def _one(self, fault: Fault) -> None:
        async with self._turns[fault.party]:  # on a busy machine an earlier one may still be at it
            if fault.party == BROKER or fault.party in self._parties:
                await self._happen(fault)

    async def _happen(self, fault: Fault) -> None:
        at = round(time.monotonic() - self._began, 1)
        self._say(f"{at:7.1f} s  {fault.kind} {fault.party} for {fault.seconds:.1f} s")
        self._report.struck.append({**asdict(fault), "at": at})
        self._report.faults = dict(sorted(Counter(each["kind"] for each in self._report.struck).items()))
        match fault.kind:
            case Kind.BROKER_KILLED | Kind.BROKER_WIPED:
                await self._broker.kill(wipe=fault.kind is Kind.BROKER_WIPED)
                await asyncio.sleep(fault.seconds)
                await self._broker.start()
            case Kind.SMALL_PACKETS | Kind.SHORT_QUEUE:
                small = fault.kind is Kind.SMALL_PACKETS
                await self._broker.kill()
                await self._broker.start("max_packet_size 102400" if small else "max_queued_messages 10")
                await asyncio.sleep(fault.seconds)
                await self._broker.kill()
                await self._broker.start()
            case _:
                await self._party_fault(fault, self._parties[fault.party])

    async def _party_fault(self, fault: Fault, party: Party) -> None:
        proxy = party.proxy
        assert proxy is not None
        match fault.kind:
            case Kind.COORDINATOR_KILLED_MID_UPLOAD:
                self._observer.uploading.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(1.0, self._began + self._seconds - time.monotonic())):
                        await self._observer.uploading.wait()
                await self._parties[COORDINATOR].kill(fault.seconds)
            case Kind.COORDINATOR_KILLED | Kind.AGENT_KILLED:
                await party.kill(fault.seconds)
            case Kind.AGENT_STOPPED:
                party.signal(signal.SIGSTOP)
                await asyncio.sleep(fault.seconds)
                party.signal(signal.SIGCONT)
            case Kind.LINK_CUT:
                await proxy.cut()
            case Kind.DISK_FULL:
                party.disk.fill(party.pid)
                await asyncio.sleep(fault.seconds)
                party.excuse()
                party.disk.empty(party.pid)
            case Kind.CLOCK_JUMPED:
                party.set_clock(DAY_S if fault.strength < 0.5 else -DAY_S)
                await asyncio.sleep(fault.seconds)
                party.set_clock(0.0)
            case _:
                await proxy.set(weather(fault))
                await asyncio.sleep(fault.seconds)
                if fault.kind is Kind.ACKS_LOST or (fault.kind is Kind.LINK_DEAD and fault.strength < 0.5):
                    await proxy.cut()
                await proxy.set(FAIR)


@contextlib.asynccontextmanager
async def _background() -> AsyncIterator[Callable[[Any], None]]:
    """Tasks that end with the context."""
    running: list[asyncio.Task[None]] = []
    try:
        yield lambda job: running.append(asyncio.create_task(job))
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
