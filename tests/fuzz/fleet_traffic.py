"""The targets that are the coordinator: inbox, desk and engine under any traffic, in either kind of rounds."""

from typing import Literal

from fleet_words import DEVICES, chunk, content, failure, offer, presence, report, want
from fleet_world import TOPICS, World
from script import Script, clean_folder, events, reached

from coordinator.buffered import BufferedEngine
from coordinator.engine import RoundEngine
from coordinator.events import DeviceFailed, Quarantined, Released
from coordinator.rounds import Rounds
from shared.config_rounds import RoundSettings
from shared.files import not_waiting_for_the_disk
from shared.link import Received

Mode = Literal["synchronous", "buffered"]
MOST = 50
"""Events of an input."""


def _settings(script: Script, mode: Mode) -> RoundSettings:
    quorum = 1 + script.below(2)
    return RoundSettings(
        mode=mode,
        count=1 + script.below(3),
        quorum=quorum,
        min_devices=2,
        cohort=script.of((None, 2)),
        enough=script.of((None, 2)),
        max_staleness=script.below(3),
        deadline_s=50,
        personalize_deadline_s=50,
    )


def _happen(world: World, script: Script) -> None:
    """One event; the round that it is about is most often the right one."""
    kind, device, pick, argument = script.below(20), script.of(DEVICES), script.below(16), script.below(256)
    wanted = world.engine.start(device)
    number = wanted if pick < 11 else max(0, world.engine.round + (0, -1, 1, -2, 2)[pick - 11])
    run = "s" if argument == 255 else "r"
    match kind:
        case 0:
            world.pass_time((1, 6, 60)[argument % 3])
        case 1:
            world.handle((Quarantined if argument % 3 else Released)(device))
        case 2:
            world.handle(DeviceFailed(device, number, "refused"))
        case 3:
            world.restart()
        case 4:
            world.verify(pick)
        case 5:
            world.work()
        case 6 | 7 | 8 | 9:
            world.obey(device)
        case 10 | 11:
            world.hear(device, offer(device, number, run))
            if argument < 64:
                world.upload(device, number)
        case 12 if argument < 64:
            world.grants[device].clear()  # lost on the way
        case 12:
            world.upload(device, number)
        case 13 | 14:
            wrong = kind == 14
            world.spoilt |= wrong
            world.hear(device, chunk(device, number, argument % 3, wrong=wrong))
        case 15 | 16:
            epoch = argument % 4
            asleep = (1.0, 30.0, 90.0)[pick % 3] if pick > 11 else None
            world.meet(device, presence(epoch, pick < 8, asleep if pick > 7 else None, argument < 200))
        case 17:
            world.hear(device, failure(number, run))
        case 18:
            world.hear(device, report(number, run))
        case _:
            payload = want(device, number, pick) if argument < 64 else content(device, number)[:argument]
            topic = (TOPICS.up(device), TOPICS.presence(device), "f/up/0/a", "f/x")[pick % 4]
            world.inbox.receive(Received(topic, payload))
    if script.below(4):
        world.settle()


def _run(data: bytes, engine: type[Rounds], mode: Mode) -> None:
    scripts = events(data, MOST)
    first = next(scripts, Script(b""))
    with not_waiting_for_the_disk():
        world = World(clean_folder(), engine, _settings(first, mode))
        for device in DEVICES:
            world.meet(device, presence(0, True))
        world.settle()
        for script in scripts:
            _happen(world, script)
            world.check()
            facts = world.engine
            reached(facts.phase, facts.round, facts.attempt > 1, *map(facts.wanted, DEVICES), len(world.spawned) > 0,
                    world.jobs.qsize() > 0, len(world.accepted[facts.round]), len(world.reported))  # fmt: skip
        if first.below(2) == 0:
            world.end()
        for coroutine in world.spawned:
            coroutine.close()


def coordinator(data: bytes) -> None:
    """Any traffic of three devices, and of others, through restarts and quarantines: no update is counted twice, or
    unasked, or after the close, or with other bytes than were offered; a receipt is only given for what counts; credit
    stays bounded; rounds close once, in order, with their quorum; the run ends once all devices do what they should."""
    _run(data, RoundEngine, "synchronous")


def buffered(data: bytes) -> None:
    """The same of rounds that nobody is waited for in: a device's update counts once for what it started from, no more
    than `max_staleness` rounds later."""
    _run(data, BufferedEngine, "buffered")
