"""Two rounds and a personalization in containers that are disturbed on the way. The tests are steps, in this order."""

import json
import re
import urllib.request
from collections.abc import Iterator

import pytest
from containers import Fleet, podman

from lab.compose import cpus
from shared.profiles import load_profile

TINY, TINY_MIB = "container-02", 200
"""Has too little memory even for importing torch, so that the kernel ends its trainer."""
DEVICES = ["rpi-zero-2w-00", "rpi-5-01", TINY, "x86-mini-pc-03"]
WHOLE = [name for name in DEVICES if name != TINY]
LIMITS = """
import json, pathlib
def first(*names):
    return next(p.read_text().split() for n in names if (p := pathlib.Path("/sys/fs/cgroup", n)).exists())
(memory,) = first("memory.max", "memory/memory.limit_in_bytes")
quota = first("cpu.max", "cpu/cpu.cfs_quota_us")
period = quota[1] if len(quota) > 1 else first("cpu/cpu.cfs_period_us")[0]
print(json.dumps([int(memory), int(quota[0]) / int(period)]))
"""


def _less_memory(compose: str) -> str:
    head, service, rest = compose.partition(f"\n  {TINY}:")
    limited, changes = re.subn(r"limit: \d+m", f"limit: {TINY_MIB}m", rest, count=2)
    assert changes == 2
    return head + service + limited


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Broker, coordinator and four devices, started; gone afterwards, whatever happened."""
    profiles = [device[:-3] for device in DEVICES]
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), "containertest", profiles, ["rounds.count=2"], _less_memory)
    try:
        fleet.up()
        yield fleet
    finally:
        fleet.down()


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_has_the_memory_and_cores_of_its_profile(fleet: Fleet, device: str) -> None:
    profile = load_profile(device[:-3])
    memory, cores = json.loads(fleet.exec(device, "python3", "-c", LIMITS))
    assert memory == (TINY_MIB if device == TINY else profile.memory_mib) * 2**20
    assert cores == pytest.approx(cpus(profile))


@pytest.mark.parametrize("service", ["broker", "coordinator", DEVICES[0]])
def test_nobody_is_root_and_nothing_but_the_state_can_be_written(fleet: Fleet, service: str) -> None:
    lines = fleet.exec(service, "cat", "/proc/1/status").splitlines()
    facts = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert set(facts["Uid"].split()) == {"10001"}
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    state = "/etc/talaria/data" if service == "broker" else "/var/lib/talaria"
    mounts = [line.split() for line in fleet.exec(service, "cat", "/proc/mounts").splitlines()]
    system = ("/proc", "/sys", "/dev", "/etc/h", "/etc/r")
    writable = {
        place
        for _, place, kind, options, *_ in mounts
        if options.startswith("rw") and kind != "tmpfs" and not place.startswith(system)
    }
    assert writable == {state} | ({"/etc/talaria"} if service == "coordinator" else set())
    assert not fleet.exec(service, "touch", "/opt/talaria/new", "/etc/new", check=False)
    assert fleet.exec(service, "sh", "-c", "ls /opt/talaria/new /etc/new 2>/dev/null | wc -l") == "0"


def test_every_image_says_how_it_is(fleet: Fleet) -> None:
    for device in WHOLE:
        fleet.until(f"{device} at the broker", lambda d=device: '"connected": true' in fleet.status(d), limit_s=120)
        assert fleet.healthy(device)
    fleet.until("a healthy coordinator", lambda: _health() == 200, limit_s=60)
    assert fleet.healthy("coordinator")


def test_the_broker_is_killed_in_the_first_round(fleet: Fleet) -> None:
    fleet.until("work on the first round", lambda: "phase" in fleet.status(WHOLE[0]))
    podman("kill", fleet.container("broker"))
    podman("start", fleet.container("broker"))
    fleet.until("the first round", fleet.journal)


def test_an_agent_is_killed_and_goes_on(fleet: Fleet) -> None:
    before = fleet.state("rpi-5-01")["Pid"]
    podman("kill", fleet.container("rpi-5-01"))
    podman("start", fleet.container("rpi-5-01"))
    assert fleet.state("rpi-5-01")["Pid"] not in (0, before)


def test_the_run_ends_with_a_model_in_service_on_every_device_that_can_train(fleet: Fleet) -> None:
    fleet.until("the end", lambda: fleet.state("coordinator")["Status"] == "exited", limit_s=600)
    assert fleet.state("coordinator")["ExitCode"] == 0
    *rounds, personalized = fleet.journal()
    assert len(rounds) == 2
    for line in rounds:
        assert set(WHOLE) - {"rpi-5-01"} <= {entry["device"] for entry in line["accepted"]} <= set(WHOLE)
    assert {entry["device"] for entry in personalized["devices"]} == set(WHOLE)
    for device in WHOLE:
        fleet.until(f"the end of {device}", lambda d=device: fleet.state(d)["Status"] == "exited", limit_s=60)
        assert fleet.state(device)["ExitCode"] == 0


def test_running_out_of_memory_is_a_failure_of_one_device_and_ends_nobody(fleet: Fleet) -> None:
    failures = [entry for line in fleet.journal() for entry in line["failed"] if entry["device"] == TINY]
    assert failures, "the tiny device was never told to be out of memory"
    assert {entry["code"] for entry in failures} == {"out_of_memory"}
    assert {entry["device"] for line in fleet.journal() for entry in line["failed"]} == {TINY}
    assert json.loads(fleet.status(TINY))["device"] == TINY, "the agent itself must live on"


def test_the_image_without_torch_serves_what_a_device_has_trained(fleet: Fleet) -> None:
    said = podman(
        "run", "--rm", "--network", "none", "--read-only", "--cap-drop=ALL", "--memory", "128m",
        "--volume", f"{fleet.volume_name('rpi-zero-2w-00')}:/var/lib/talaria:ro", "--tmpfs", "/tmp",
        "talaria-infer", "infer", "--state-dir", "/var/lib/talaria/agent", "--bench",
    )  # fmt: skip
    assert "p99" in said
    found = podman("run", "--rm", "--network", "none", "--entrypoint", "python3", "talaria-infer", "-c",
                   "import importlib.util as u; print(u.find_spec('torch'))")  # fmt: skip
    assert found == "None"


def _health() -> int:
    try:
        with urllib.request.urlopen("http://127.0.0.1:9464/health", timeout=5) as answer:
            return int(answer.status)
    except OSError:
        return 0
