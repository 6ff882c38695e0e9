"""Both services under a live systemd, installed, disturbed and upgraded. The tests are steps, in this order."""

from collections.abc import Iterator

import pytest
from machines import AGENT_INSTALLED, BROKER, COORDINATOR, DEVICE, SERVER, Machines

AGENT, COORDINATING = "talaria-agent", "talaria-coordinator"


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    machines = Machines(tmp_path_factory.mktemp("machines"))
    try:
        machines.up()
        yield machines
    finally:
        machines.down()


def test_a_coordinator_and_a_device_are_installed_as_the_documentation_says(machines: Machines) -> None:
    machines.sh(SERVER, BROKER)
    machines.sh(SERVER, COORDINATOR)
    machines.sh(DEVICE, AGENT_INSTALLED)
    machines.until("the broker", lambda: "connected" in machines.status())
    for machine, unit in (SERVER, COORDINATING), (DEVICE, AGENT):
        assert machines.show(machine, unit, "ActiveState") == "active"


@pytest.mark.parametrize(("machine", "unit"), [(SERVER, COORDINATING), (DEVICE, AGENT)])
def test_a_service_is_nobody_in_particular_and_cannot_write_its_system(
    machines: Machines, machine: str, unit: str
) -> None:
    process = machines.show(machine, unit, "MainPID")
    lines = machines.sh(machine, f"cat /proc/{process}/status").splitlines()
    facts = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert "0" not in facts["Uid"].split()
    assert (int(facts["CapEff"], 16), int(facts["CapBnd"], 16)) == (0, 0)
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    mounts = [line.split() for line in machines.sh(machine, f"cat /proc/{process}/mounts").splitlines()]
    (root,) = [options for _, place, _, options, *_ in mounts if place == "/"]
    assert root.startswith("ro,")


def test_an_agent_that_hangs_is_started_anew_and_the_round_goes_on(machines: Machines) -> None:
    folder = f"/run/systemd/system/{AGENT}.service.d"
    machines.sh(DEVICE, f"mkdir -p {folder}; printf '[Service]\\nWatchdogSec=3\\n' >{folder}/quick.conf")
    machines.sh(
        DEVICE, f"systemctl daemon-reload; systemctl restart {AGENT}; systemctl kill -s STOP --kill-who=main {AGENT}"
    )
    machines.until("another process", lambda: machines.show(DEVICE, AGENT, "NRestarts") == "1")
    assert "Watchdog timeout" in machines.sh(DEVICE, f"journalctl -u {AGENT}")
    machines.sh(DEVICE, f"rm -r {folder}; systemctl daemon-reload")
    machines.until("the broker", lambda: "connected" in machines.status())


def test_a_coordinator_that_is_killed_goes_on_and_stays_stopped_after_the_end(machines: Machines) -> None:
    machines.sh(SERVER, f"systemctl kill -s KILL --kill-who=main {COORDINATING}")
    machines.until("the end", lambda: machines.show(SERVER, COORDINATING, "ActiveState") == "inactive", 300)
    assert machines.show(SERVER, COORDINATING, "NRestarts") == "1"
    assert machines.show(SERVER, COORDINATING, "ExecMainStatus") == "0"
    closed = machines.sh(SERVER, "wc -l </var/lib/talaria/run/journal.jsonl")
    assert closed == "21"  # twenty rounds and the personalization


def test_a_version_that_does_not_start_is_left_by_itself_and_a_better_one_can_be_left(machines: Machines) -> None:
    upgrade = "PIP_NO_INDEX=1 /opt/talaria/current/bin/talaria-agent upgrade"
    said = machines.sh(DEVICE, f"{upgrade} wheels/talaria-0.3.0-py3-none-any.whl 2>&1 && exit 9 || echo $?")
    assert "0.1.0 is in service again" in said, said
    assert said.endswith("\n1"), said
    assert "version 0.1.0" in machines.status()
    machines.sh(DEVICE, f"{upgrade} wheels/talaria-0.2.0-py3-none-any.whl")
    assert "version 0.2.0" in machines.status()
    machines.sh(DEVICE, f"{upgrade} --rollback")
    assert "version 0.1.0" in machines.status()


def test_a_device_that_sleeps_is_woken_by_its_timer_again_and_again(machines: Machines) -> None:
    machines.sh(DEVICE, "sed -i '1i wakes_every_s = 2' /etc/talaria/agent.toml")
    machines.sh(DEVICE, "/opt/talaria/current/bin/talaria-agent install -c /etc/talaria/agent.toml")
    runs = f"journalctl -o cat -u {AGENT} | grep -c '{AGENT}.service: Deactivated successfully' || true"
    before = int(machines.sh(DEVICE, runs))
    machines.until("two times of work", lambda: int(machines.sh(DEVICE, runs)) >= before + 2)
    assert machines.show(DEVICE, AGENT, "Result") == "success"
    machines.sh(DEVICE, "/opt/talaria/current/bin/talaria-agent uninstall")
    assert machines.show(DEVICE, AGENT, "LoadState") == "not-found"
