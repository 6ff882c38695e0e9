"""A fleet in one process: the production coordinator and agents over an in-memory broker, for many devices.

What depends on time in a real fleet does not here, so that the same settings give the same bytes: nobody is late, for
all devices share this machine; a round opens once every device that can train is there; and what is sent arrives.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from coordinator.checkpoints import RunDirectory, RunRecord
from coordinator.cohort import Needs, unfit
from coordinator.facts import SECOND_CHANCES
from coordinator.preparation import InProcess, make_definition
from coordinator.server import Coordinator
from edge_agent.agent import Agent
from edge_agent.job import Job, Outcome
from edge_agent.trainer import Work
from lab.fleet import emulated_devices
from shared.config import AgentConfig, RunConfig
from shared.encoding import LIKED
from shared.errors import ConfigError, TalariaError, TrainingError
from shared.files import not_waiting_for_the_disk
from shared.link import DEFAULT_MAX_PACKET
from shared.memory_link import MemoryBroker
from shared.messages import Capabilities
from shared.profiles import load_profile
from shared.settings import example_toml

OnEvent = Callable[[Mapping[str, Any]], None]
NEVER_S = 1e6
"""Longer than any simulation: nothing is lost in memory, so nothing is sent again."""


class WithoutTemplate(InProcess):
    """No ONNX template, so that no device exports its model: that takes each of them a second."""

    async def template(self) -> None:
        return None


async def simulate(config: RunConfig, directory: Path, work: Work, on_event: OnEvent, *, export: bool = False) -> None:
    """Run the whole fleet below `directory` to its end; what was begun there goes on.

    work      does the jobs of all devices (lab.pool). A device has the round's deadline for its own work, from when
              that begins; time that it waits for a trainer does not count
    on_event  see coordinator.server
    export    every device exports its model in the end, as real ones do
    TrainingError where a round does not get its quorum, nor when it is asked again. ConfigError, ModelError
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.toml").write_text(example_toml(config))
    devices = emulated_devices(config, directory)
    limits = {"train": config.rounds.deadline_s, "personalize": config.rounds.personalize_deadline_s}

    async def work_in_time(job: Job) -> Outcome:
        # and no reserve, which was taken of a fleet's deadline: what is sent arrives at once
        return await work(job.model_copy(update={"deadline_s": limits[job.task.action], "reserve_s": 0.0}))

    broker, prepare = MemoryBroker(), InProcess if export else WithoutTemplate
    with not_waiting_for_the_disk():
        settled = await asyncio.to_thread(_begin, config, RunDirectory(directory), devices)
        agents = [
            Agent(agent.model_copy(update={"threads": 1, "stall_s": NEVER_S}), broker.link, work_in_time)
            for agent in devices.values()
        ]
        watch = _Watch(on_event)
        try:
            async with asyncio.TaskGroup() as tasks:
                for agent in agents:
                    tasks.create_task(agent.run())
                await Coordinator(settled, broker.link, run_dir=directory, on_event=watch, prepare=prepare).run()
                for agent in agents:
                    agent.stop()
        except* TalariaError as group:
            raise _first(group) from None


class _Watch:
    """Passes the coordinator's events on, and ends a run that cannot go on."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._reason = "no device can be asked"

    def __call__(self, event: Mapping[str, Any]) -> None:
        self._on_event(event)
        if event["event"] in ("failed", "rejected"):
            self._reason = f"{event['device']}: {event['reason']}"
        elif event["event"] == "abandoned" and event["attempt"] > SECOND_CHANCES:
            raise TrainingError(f"round {event['round']} was given up, {event['reason']}; {self._reason}")


def _begin(config: RunConfig, run: RunDirectory, devices: Mapping[str, AgentConfig]) -> RunConfig:
    """The run's folder, up to its first tensors, under an id that is the same every time; and the settings in which
    nothing depends on time."""
    if run.exists:
        return _timeless(config, run.record().config.rounds.min_devices)
    name = re.sub(r"[^A-Za-z0-9]+", "-", config.algorithm.name)[-30:]
    record = RunRecord(f"simulated-{name}-{config.run.seed}", config)
    run.create(record)
    try:
        from coordinator.ledger import Ledger  # with torch, which takes a second to load

        make_definition(run)
        ledger = Ledger(run, 1)
        needs = Needs.of(ledger.limit, prunes=ledger.prunes)
        able = sum(not unfit(_capabilities(agent), needs) for agent in devices.values())
        if able < config.rounds.quorum:
            raise ConfigError(
                f"{able} of the {len(devices)} devices can train this model, and rounds.quorum is "
                f"{config.rounds.quorum}: raise fleet.devices, choose other fleet.profiles, or lower the quorum"
            )
    except TalariaError:
        run.discard()
        raise
    settled = _timeless(config, able)
    run.create(RunRecord(record.run, settled))
    return settled


def _timeless(config: RunConfig, able: int) -> RunConfig:
    """A round waits for every device that can train, and for as long as all of them one after the other may take."""
    rounds, count = config.rounds, config.fleet.devices
    return config.model_copy(
        update={
            "rounds": rounds.model_copy(
                update={
                    "min_devices": able,
                    "deadline_s": count * rounds.deadline_s,
                    "personalize_deadline_s": count * rounds.personalize_deadline_s,
                }
            ),
            "transfer": config.transfer.model_copy(update={"stall_s": NEVER_S}),
        }
    )


def _capabilities(agent: AgentConfig) -> Capabilities:
    """What a device will say of itself when it comes."""
    profile = load_profile(agent.profile)
    return Capabilities(
        profile=profile.id,
        train=profile.training.enabled,
        memory_mib=profile.training.memory_mib,
        max_packet=min(DEFAULT_MAX_PACKET, profile.link.max_packet),
        encodings=tuple(LIKED[profile.link.kind]),
        version=metadata.version("talaria"),
    )


def _first(group: BaseExceptionGroup[TalariaError]) -> TalariaError:
    """Any of the errors in the group tells enough."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
