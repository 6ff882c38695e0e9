"""`talaria-agent doctor`: is everything here that this device needs? Asked before it matters, answered with remedies.

Whatever may take a process down (a library built for another processor, a data plug-in) is tried in another process.
"""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from edge_agent import health
from edge_agent.proofs import look_at_proofs, running
from edge_agent.proposal import Machine, look, misfits, missing_providers, propose
from shared.config import AgentConfig
from shared.errors import ConfigError, LinkError
from shared.link import Connected
from shared.mqtt import MqttLink
from shared.profiles import Profile, load_profile, profile_names
from shared.settings import load_agent_config
from shared.transfer import chunk_size

PROBE_S = 120.0
"""Importing torch from an SD card takes a minute."""
STATE_MIB = 256
"""Free space below which models and downloads of usual size do not fit."""


@dataclass(frozen=True)
class Finding:
    """One check. `problem` fails the doctor, `warning` does not."""

    check: str
    status: Literal["ok", "warning", "problem"]
    detail: str
    profile: str | None = None
    """The profile that is proposed, with the check `profile`."""


@click.command()
@click.option("--config", "-c", "config_path", type=click.Path(path_type=Path), help="TOML file of this device.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a setting: --set device=kitchen")
@click.option("--timeout", "timeout_s", type=float, default=10.0, show_default=True, help="Seconds for the broker.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def doctor(config_path: Path | None, sets: tuple[str, ...], timeout_s: float, as_json: bool) -> None:
    """Check broker, machine, packages and data, and propose a firmware profile.

    Exit status: 0 if there is no problem, 1 if there is; warnings do not count.
    """
    config = load_agent_config(config_path, sets).config
    findings = []
    for finding in examine(config, timeout_s):
        findings.append(finding)
        if not as_json:
            color = {"ok": "green", "warning": "yellow", "problem": "red"}[finding.status]
            click.echo(f"{click.style(f'{finding.status:8}', fg=color)}  {finding.check:12}  {finding.detail}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    if any(finding.status == "problem" for finding in findings):
        raise click.exceptions.Exit(1)


def examine(config: AgentConfig, timeout_s: float, root: Path = Path("/")) -> Iterator[Finding]:
    """All findings, the quick ones first. root: where /proc and /sys of the machine are."""
    profile = load_profile(config.profile)
    found = look(root)
    yield from machine(profile, found)
    yield proposed(profile, found)
    yield state(config.state_dir)
    verdict = health.judge(found.reading, profile)
    yield Finding("health", "ok" if verdict.ok else "warning", verdict.reason or "may train now")
    for status, detail in look_at_proofs(config):
        yield Finding("proofs", status, detail)
    yield asyncio.run(broker(config, profile, timeout_s))
    runtime = package("onnxruntime", needed=False)
    yield runtime
    if runtime.status == "ok":
        yield providers(profile)
    yield package("onnx", needed=False)
    if profile.training.enabled:
        torch = package("torch", needed=True)
        yield torch
        if torch.status == "ok":
            yield data(config)


def machine(profile: Profile, found: Machine) -> Iterator[Finding]:
    """What of the profile does not fit what is here."""
    here = f"{found.cores} cores, {found.memory_mib or 'unknown'} MiB, {found.isa or 'unknown instruction set'}"
    problems = list(misfits(found, profile))
    yield Finding("machine", "ok" if not problems else "warning", f"{found.board or 'no known board'}: {here}")
    for status, text in problems:
        yield Finding("machine", status, text)


def proposed(profile: Profile, found: Machine) -> Finding:
    """The profile that the machine should have, beside the one that it has."""
    better = propose(found, [load_profile(name) for name in profile_names()])
    if better is None:
        return Finding("profile", "warning", "none that comes with Talaria fits: copy the nearest, and lower it")
    if better.id == profile.id:
        return Finding("profile", "ok", f"{better.id}: {better.title}", better.id)
    detail = f"{profile.id} is set; {better.id} would fit: {better.title}"
    # A profile of one's own is a decision, and so is another that fits.
    known = profile.id in profile_names() and any(status == "problem" for status, _ in misfits(found, profile))
    return Finding("profile", "warning" if known else "ok", detail, better.id)


def providers(profile: Profile) -> Finding:
    """Whether the installed onnxruntime has what the profile would like to run on."""
    status, output = _probe("import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))")
    if status != 0:
        return Finding("providers", "warning", output)
    available = json.loads(output)
    lacking = missing_providers(profile, available)
    first = next(each for each in profile.inference.providers if each not in lacking)
    more = f"; {', '.join(lacking)} are not in the installed onnxruntime" if lacking else ""
    return Finding("providers", "ok", f"{first} will serve{more}")


def state(directory: Path) -> Finding:
    """Whether the state folder can be written, and what is left on its disk."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".doctor"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return Finding("state_dir", "problem", f"{directory} cannot be written: {error.strerror}; set state_dir")
    free = shutil.disk_usage(directory).free // 2**20
    enough = free >= STATE_MIB
    return Finding("state_dir", "ok" if enough else "warning", f"{directory.resolve()}: {free} MiB are free")


async def broker(config: AgentConfig, profile: Profile, timeout_s: float) -> Finding:
    """Whether the broker takes us, and packets that can carry a payload."""
    url = config.broker.url
    if config.broker.cert_file is not None and running(config.state_dir):
        return Finding("broker", "ok", f"{url} is not tried: the running agent has our place there")
    link = MqttLink(config.broker, f"{config.fleet}-{config.device}-doctor")
    try:
        async with asyncio.timeout(timeout_s):
            await link.open()
            while not isinstance(event := await link.receive(), Connected):
                pass
        chunk = chunk_size(min(event.max_packet, profile.link.max_packet))
        return Finding("broker", "ok", f"{url}: packets of {event.max_packet} bytes, payloads in chunks of {chunk}")
    except TimeoutError:
        return Finding(
            "broker", "problem", f"{url} does not answer within {timeout_s:.0f} s: is it running, is it reachable?"
        )
    except (LinkError, ConfigError) as error:
        return Finding("broker", "problem", f"{url}: {error}")
    finally:
        await link.close()


def package(name: str, *, needed: bool) -> Finding:
    """Whether the package can be imported, which on the wrong processor ends in an illegal instruction."""
    status, output = _probe(f"import {name}; print({name}.__version__)")
    if status == 0:
        return Finding(name, "ok", output)
    if status == -signal.SIGILL:
        detail = "was built for another processor (illegal instruction)"
        return Finding(name, "problem", f"{detail}; on ARMv8.0 install torch 2.9 or onnxruntime 1.20")
    extra = "train" if name == "torch" else "infer"
    return Finding(name, "problem" if needed else "warning", f"{output}; pip install talaria[{extra}]")


def data(config: AgentConfig) -> Finding:
    """Whether this device's data can be read."""
    code = (
        "import sys; from edge_agent.data import load; from shared.config_data import DataSettings\n"
        "from shared.errors import TalariaError\n"
        "try: d = load(DataSettings.model_validate_json(sys.argv[1]))\n"
        "except TalariaError as error: sys.exit(str(error))\n"
        "print(f'{len(d.train)} examples to train on, {len(d.validation)} to validate, {len(d.test)} to test, '\n"
        "      f'{len(d.classes)} classes')"
    )
    status, output = _probe(code, config.data.model_dump_json())
    return Finding("data", "ok" if status == 0 else "problem", f"{config.data.source}: {output}")


def _probe(code: str, *arguments: str) -> tuple[int, str]:
    """Exit status (negative: signal) and last line of some Python in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {PROBE_S:.0f} s"
    if done.returncode < 0:
        return done.returncode, f"ended by {signal.Signals(-done.returncode).name}"
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return done.returncode, lines[-1] if lines else f"exit status {done.returncode}"
