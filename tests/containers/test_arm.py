"""A round and a personalization with a device that is ARM: its image, on an emulated Cortex-A53, beside a native one.

Emulation says what works, not how fast it is. `scripts/test --arm` builds the images. The tests are steps.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from containers import Fleet, podman

from edge_agent.data.sources import installed_digits

ARM, NATIVE = "rpi-zero-2w-00", "x86-mini-pc-01"
CPU = "cortex-a53"
CPUINFO = """\
processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd03
CPU revision\t: 3

"""
"""ONNX Runtime asks the kernel which processor it is, and dies of what this machine's answers."""


def _arm(compose: str) -> str:
    """The first device has the other image. An emulator needs cores, and memory for what it has translated."""
    head, service, rest = compose.partition(f"\n  {ARM}:")
    for old, new in [
        ("image: talaria-agent", "image: talaria-agent:arm64"),
        ("mem_limit: 512m", "mem_limit: 1024m"),
        ("memswap_limit: 512m", "memswap_limit: 1024m"),
        ("environment: {", f"environment: {{QEMU_CPU: {CPU}, "),
        ("volumes: [", 'volumes: ["./cpuinfo:/proc/cpuinfo:ro", '),
    ]:
        assert old in rest, old
        rest = rest.replace(old, new, 1)
    return head + service + rest


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings = ["rounds.count=1", "rounds.deadline_s=600", "rounds.personalize_deadline_s=600"]
    fleet = Fleet(tmp_path_factory.mktemp("arm"), "armtest", ["rpi-zero-2w", "x86-mini-pc"], settings, _arm)
    (fleet.directory / "cpuinfo").write_text(CPUINFO)
    try:
        fleet.up()
        yield fleet
    finally:
        fleet.down()


def test_the_device_is_arm_and_says_how_it_is(fleet: Fleet) -> None:
    assert fleet.exec(ARM, "uname", "-m") == "aarch64"
    # As the health check asks, but without its limit of 30 s: the program alone takes 10 s to start under emulation.
    fleet.until("the device at the broker", lambda: '"connected": true' in fleet.status(ARM))


def test_it_trains_and_personalizes_beside_a_native_device(fleet: Fleet) -> None:
    fleet.until("the end", lambda: fleet.state("coordinator")["Status"] == "exited", limit_s=800)
    trained, personalized = fleet.journal()
    assert {entry["device"] for entry in trained["accepted"]} == {ARM, NATIVE}
    assert {entry["device"] for entry in personalized["devices"]} == {ARM, NATIVE}
    fleet.until("the end of the device", lambda: fleet.state(ARM)["Status"] == "exited", limit_s=60)
    assert fleet.state(ARM)["ExitCode"] == 0


def test_the_image_without_torch_serves_its_model_as_it_does_elsewhere(fleet: Fleet) -> None:
    cpuinfo = fleet.directory / "cpuinfo"
    arm = _infer(fleet, "--env", f"QEMU_CPU={CPU}", "--volume", f"{cpuinfo}:/proc/cpuinfo:ro", "talaria-infer:arm64")
    native = _infer(fleet, "talaria-infer")
    same = sum(mine["class"] == other["class"] for mine, other in zip(arm, native, strict=True))
    assert same >= 0.95 * len(arm), "int8 rounds a little differently, and no more than that"


def _infer(fleet: Fleet, *image: str) -> list[dict[str, Any]]:
    """What the image, with podman's options before it, says of real digits with the ARM device's model."""
    inputs = fleet.directory / "digits.npy"
    np.save(inputs, np.loadtxt(installed_digits(), delimiter=",")[:200, :-1].reshape(-1, 1, 8, 8).astype(np.float32))
    said = podman(
        "run", "--rm", "--network", "none", "--read-only", "--cap-drop=ALL",
        "--volume", f"{fleet.volume_name(ARM)}:/var/lib/talaria:ro", "--volume", f"{inputs}:/digits.npy:ro",
        "--tmpfs", "/tmp", *image, "infer", "--state-dir", "/var/lib/talaria/agent", "--json", "/digits.npy",
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(said)["predictions"]
    return found
