"""The agent of a device that sleeps, that counts its bytes, and that tells how it fares: over a broker in memory."""

import asyncio
from pathlib import Path

import pytest
from echo import DATA, FINE, Echo, retained_presence, running, train
from scripted import ScriptedCoordinator, make_task

from edge_agent import budget as budgets
from edge_agent import health, rest
from edge_agent.agent import Agent
from edge_agent.budget import Moment
from edge_agent.health import Reading
from edge_agent.session import Phase
from shared.codec import decode_vitals
from shared.config import AgentConfig
from shared.link import Received
from shared.messages import Failure, Offer, Presence, Vitals

EVERY_S = 3600.0


def sleeper(config: AgentConfig, **changes: object) -> AgentConfig:
    return config.model_copy(update={"wakes_every_s": EVERY_S, **changes})


async def awake(config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, **options: object) -> Agent:
    """One waking of the device, to its end by itself."""
    agent = Agent(config, coordinator.broker.link, echo, look=lambda: FINE, **options)  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        await agent.run()
    return agent


# --- sleep -----------------------------------------------------------------------------------------------------------


async def test_with_nothing_to_do_it_lies_down_and_says_until_when(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    agent = await awake(sleeper(config), coordinator, echo)
    presence = retained_presence(coordinator)
    assert not presence.online
    assert presence.asleep_s == agent.asleep_s
    assert EVERY_S - 20 < (agent.asleep_s or 0) < EVERY_S
    assert await coordinator.hears(Presence, 2) == presence
    birth = coordinator.all(Presence)[0]
    assert (birth.online, birth.epoch) == (True, presence.epoch)


async def test_without_a_known_hour_it_ends_without_a_promise(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    agent = await awake(config, coordinator, echo, until_idle=True)
    assert agent.asleep_s is None
    assert retained_presence(coordinator).asleep_s is None


async def test_a_task_that_came_while_it_slept_is_done_and_delivered_before_it_lies_down_again(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, tmp_path: Path
) -> None:
    config = sleeper(config)
    await awake(config, coordinator, echo)
    await train(coordinator)
    waking = asyncio.create_task(awake(config, coordinator, echo))
    offer = await coordinator.hears(Offer)
    assert await coordinator.pull(offer, tmp_path / "update") == DATA
    await coordinator.receipt(offer)
    await waking
    assert [job.task.round for job in echo.jobs] == [1]
    assert retained_presence(coordinator).asleep_s is not None
    await awake(config, coordinator, echo)
    assert len(echo.jobs) == 1, "what has its receipt is not done again"
    assert len(coordinator.all(Offer)) == 1


async def test_it_does_not_lie_down_in_its_work(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    echo.gate.clear()
    await train(coordinator)
    waking = asyncio.create_task(awake(sleeper(config), coordinator, echo))
    await echo.begins()
    await asyncio.sleep(3 * rest.PATIENCE * config.stall_s)  # time is what is tested
    assert not waking.done()
    echo.gate.set()
    offer = await coordinator.hears(Offer)
    await asyncio.sleep(config.stall_s)
    assert not waking.done(), "a receipt is waited for from the end of the work on, however long that took"
    await coordinator.receipt(offer)
    await waking


async def test_an_answer_that_nobody_takes_is_kept_and_said_at_the_next_waking(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    config = sleeper(config)
    await train(coordinator)
    await awake(config, coordinator, echo)  # the coordinator hears the offer, and does nothing
    offers = len(coordinator.all(Offer))
    assert offers >= 1
    assert retained_presence(coordinator).asleep_s is not None
    waking = asyncio.create_task(awake(config, coordinator, echo))
    again = await coordinator.hears(Offer, offers + 1)
    await coordinator.receipt(again)
    await waking
    assert len(echo.jobs) == 1, "it was not trained again"


async def test_a_receipt_that_came_while_it_slept_waits_in_its_session(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    config = sleeper(config)
    await train(coordinator)
    await awake(config, coordinator, echo)
    await coordinator.receipt(coordinator.all(Offer)[0])
    await coordinator.withdraw()
    agent = await awake(config, coordinator, echo)
    assert agent.asleep_s is not None
    async with running(config, coordinator, echo) as agent:
        assert agent._store.answer is None


async def test_without_a_broker_it_lies_down_as_well(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    config = sleeper(config)
    waking = asyncio.create_task(awake(config, coordinator, echo))
    await coordinator.hears(Presence)
    coordinator.broker.cut("talaria-device")
    await waking
    assert retained_presence(coordinator).asleep_s is None, "nobody could be told"


def test_how_long_it_stays_up() -> None:
    assert rest.patience_s(Phase.IDLE, linked=True, stall_s=10) == 10
    assert rest.patience_s(Phase.IDLE, linked=False, stall_s=10) == 60
    assert rest.patience_s(Phase.FETCHING, linked=True, stall_s=10) == 60
    assert rest.patience_s(Phase.ANSWERING, linked=True, stall_s=10) == 60
    assert rest.patience_s(Phase.WORKING, linked=False, stall_s=10) is None


@pytest.mark.parametrize(("awake_s", "expected"), [(0, 3600), (100, 3500), (3599, 1), (3600, 3600), (4000, 3200)])
def test_awakenings_keep_their_rhythm(awake_s: float, expected: float) -> None:
    assert rest.sleep_s(3600, awake_s) == expected


# --- the budget of the day -------------------------------------------------------------------------------------------


@pytest.fixture
def metered(config: AgentConfig, tmp_path: Path) -> AgentConfig:
    """A device whose link carries 16 KiB per day: one of our tasks, and no second one."""
    profile = tmp_path / "metered.toml"
    text = Path(config.profile).read_text() + f'kind = "lte"\ndaily_mib = {16 / 1024}\n'
    profile.write_text(text)
    return config.model_copy(update={"profile": str(profile), "stall_s": 3600.0})


async def _done(coordinator: ScriptedCoordinator, round_: int, path: Path) -> None:
    await train(coordinator, round_)
    offer = await coordinator.hears(Offer, round_)
    assert await coordinator.pull(offer, path) == DATA
    await coordinator.receipt(offer)


async def test_a_task_beyond_the_days_budget_is_refused_unfetched_and_not_asked_again(
    metered: AgentConfig,
    coordinator: ScriptedCoordinator,
    echo: Echo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "POLL_S", 0.01)
    start = budgets.now()
    moments = [start]
    monkeypatch.setattr(budgets.Budget.__init__, "__defaults__", (lambda: moments[-1],))
    async with running(metered, coordinator, echo):
        await _done(coordinator, 1, tmp_path / "update")
        presence = await coordinator.hears(Presence, 2)  # 8 KiB down and 8 KiB up with their packets: it is used up
        assert presence.capabilities is not None
        assert not presence.capabilities.train
        assert "of the day's 0.015625 MiB" in presence.capabilities.reason
        await train(coordinator, 2, data=DATA[::-1])
        failure = await coordinator.hears(Failure)
        assert failure.code == "over_budget"
        await coordinator.receipt(failure)
        assert list((metered.state_dir / "downloads").iterdir()) == []
    moments.append(Moment(start.day, 1.0, "after a reboot"))
    async with running(metered, coordinator, echo):
        presence = await coordinator.hears(Presence, 4)
        assert presence.capabilities is not None
        assert not presence.capabilities.train, "a reboot renews nothing"
        await coordinator.receipt(await coordinator.hears(Failure, 2))  # of the task that is still there
        moments.append(Moment(start.day + 1, 2.0, "after a reboot"))
        presence = await coordinator.hears(Presence, 5)
        assert presence.capabilities is not None
        assert presence.capabilities.train
        await train(coordinator, 2, data=DATA[::-1], time_left_s=50.0)
        assert (await coordinator.hears(Offer, 2)).round == 2


async def test_what_does_not_fit_the_rest_is_refused_with_the_numbers(
    metered: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    async with running(metered, coordinator, echo):
        await train(coordinator, data=DATA * 3)
        failure = await coordinator.hears(Failure)
    assert failure.code == "over_budget"
    assert "link.daily_mib" in failure.reason
    order = [type(message) for _, message in coordinator.heard]
    assert order[:3] == [Presence, Presence, Failure], "that it cannot be asked is said before it fails"
    assert echo.jobs == []


async def test_a_finished_update_is_sent_whatever_is_left(
    metered: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, tmp_path: Path
) -> None:
    async with running(metered, coordinator, echo):
        await train(coordinator, data=DATA + DATA[:5000])  # fits the day, but not twice
        offer = await coordinator.hears(Offer)
        assert await coordinator.pull(offer, tmp_path / "update") == DATA + DATA[:5000]


async def test_what_is_here_already_is_not_counted_again(
    metered: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    """A transfer of 12 KiB that was cut off in the middle: all of it anew would not fit."""
    data = (DATA * 2)[: 12 * 1024]
    blob = await coordinator.publish(data)
    late = {}
    for index in range(8, blob.chunks):
        topic = coordinator.topics.chunk(blob.digest, 0, index)
        late[topic] = coordinator.broker.retained.pop(topic)
    async with running(metered, coordinator, echo) as agent:
        await coordinator.ask(make_task(payload=blob))
        async with asyncio.timeout(10):
            while agent._link.down < 8 * 1024:  # noqa: ASYNC110 - nobody tells of a chunk
                await asyncio.sleep(0.01)
    coordinator.broker.retained.update(late)
    async with running(metered, coordinator, echo):
        await coordinator.hears(Offer)
    assert not coordinator.all(Failure)


async def test_an_emulated_device_counts_and_refuses_nothing(
    metered: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    async with running(metered.model_copy(update={"health": False}), coordinator, echo):
        await train(coordinator, data=DATA * 3)
        await coordinator.hears(Offer)


# --- vital signs -----------------------------------------------------------------------------------------------------


class Nurse:
    """Reads the vital signs of the device, one publication at a time."""

    def __init__(self, coordinator: ScriptedCoordinator) -> None:
        self._link = coordinator.broker.link("nurse")
        self._filter = coordinator.topics.all_vitals

    async def open(self) -> "Nurse":
        await self._link.open()
        await self._link.subscribe(self._filter)
        return self

    async def reads(self) -> Vitals:
        async with asyncio.timeout(10):
            while not isinstance(event := await self._link.receive(), Received):
                pass
        return decode_vitals(event.payload)


async def test_vital_signs(config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo, tmp_path: Path) -> None:
    nurse = await Nurse(coordinator).open()
    reading = Reading(temperature_c=41.5, battery_pct=80, on_mains=True, load_per_core=0.5, available_mib=900)
    config = config.model_copy(update={"vitals_s": 0.05})
    async with running(config, coordinator, echo, look=lambda: reading) as agent:
        first = await nurse.reads()
        assert (first.phase, first.epoch) == ("idle", agent._store.epoch)
        assert (
            first.metrics.items()
            >= {
                "temperature_c": 41.5,
                "battery_pct": 80.0,
                "load_per_core": 0.5,
                "available_mib": 900.0,
                "rounds_done": 0.0,
                "failures": 0.0,
            }.items()
        )
        assert "budget_left_mib" not in first.metrics
        echo.gate.clear()
        await train(coordinator)
        while (await nurse.reads()).phase != "working":
            pass
        echo.gate.set()
        offer = await coordinator.hears(Offer)
        await coordinator.pull(offer, tmp_path / "update")
        await coordinator.receipt(offer)
        while not (last := await nurse.reads()).metrics["rounds_done"]:
            pass
        assert last.uptime_s > first.uptime_s
        assert last.metrics["bytes_up"] > len(DATA)
        assert last.metrics["bytes_down"] > len(DATA)


async def test_vital_signs_of_a_device_that_fails_on_a_metered_link(
    metered: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    nurse = await Nurse(coordinator).open()
    async with running(metered.model_copy(update={"vitals_s": 0.05}), coordinator, echo):
        assert 0 < (await nurse.reads()).metrics["budget_left_mib"] <= 16 / 1024
        await train(coordinator, data=DATA * 3)
        while not (last := await nurse.reads()).metrics["failures"]:
            pass
    assert last.metrics["failures"] == 1


async def test_vital_signs_do_not_pile_up_while_the_broker_is_away(
    config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo
) -> None:
    nurse = await Nurse(coordinator).open()
    async with running(config.model_copy(update={"vitals_s": 0.01}), coordinator, echo):
        last = await nurse.reads()
        coordinator.broker.cut("talaria-device")
        await coordinator.hears(Presence, 2)
        await asyncio.sleep(0.3)  # thirty of them would have been due
        coordinator.broker.restore("talaria-device")
        stale = 0
        while (found := await nurse.reads()).uptime_s < last.uptime_s + 0.3:
            stale += 1
        assert stale <= 2, "one that was on its way, one that waited for the link"
        assert found.epoch == last.epoch


async def test_no_vital_sign_names_data(config: AgentConfig, coordinator: ScriptedCoordinator, echo: Echo) -> None:
    nurse = await Nurse(coordinator).open()
    async with running(config, coordinator, echo):
        metrics = (await nurse.reads()).metrics
    assert set(metrics) <= {
        "temperature_c",
        "battery_pct",
        "load_per_core",
        "available_mib",
        "budget_left_mib",
        "bytes_up",
        "bytes_down",
        "rounds_done",
        "failures",
    }
