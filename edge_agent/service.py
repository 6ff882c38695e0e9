"""The agent as a service of systemd: what its units say, from the device's settings and its profile. Pure text."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.config import AgentConfig
from shared.profiles import Profile

UNIT = "talaria-agent.service"
TIMER = "talaria-agent.timer"
STATE = Path("/var/lib/talaria/agent")
"""systemd makes it, and gives it to the user that it invents for the agent."""
SUPERVISOR_MIB = 96
"""The agent itself, its model in service included: 56 MiB were measured."""
LIBRARY_MIB = 224
"""The loaded training library: 217 MiB were measured."""
SYSTEM_SHARE = 0.1
"""Of the device's memory, what is left to everything else."""
SECRETS = ("ca_file", "cert_file", "key_file", "password_file")
"""Settings of the broker that name files, which systemd hands to the agent, whoever it runs as."""

SERVICE = """\
# Made by `talaria-agent install` for profile {profile}; it is written anew by the next one. Changes of yours go into
# `systemctl edit talaria-agent`.
[Unit]
Description=Talaria edge agent {device}
Wants=network-online.target time-sync.target
After=network-online.target time-sync.target
StartLimitIntervalSec=600
StartLimitBurst={starts}

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
{credentials}# Fed by the loop that does the work: one that hangs is started anew, and has missed a round.
WatchdogSec=120
Restart=on-failure
RestartSec=10
TimeoutStartSec=120
TimeoutStopSec=45
# A trainer that runs out of memory is a failed round; the agent lives on.
OOMPolicy=continue
MemoryMax={memory_mib}M
CPUWeight=20
IOWeight=20
Nice=5
IOSchedulingClass=idle
TasksMax=128
Environment=ORT_DISABLE_TELEMETRY=1 MALLOC_ARENA_MAX=2 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# A user that exists while the agent runs, a root that cannot be written, and one folder for all that it remembers.
DynamicUser=yes
StateDirectory=talaria
StateDirectoryMode=0700
ProtectSystem=strict
ProtectHome={home}
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
PrivateMounts=yes
NoNewPrivileges=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
# Refused calls are errors, not the end: libraries try what they can do without.
SystemCallErrorNumber=EPERM
CapabilityBoundingSet=
UMask=0077
"""
WANTED = """
[Install]
WantedBy=multi-user.target
"""
WAKING = """\
# Made by `talaria-agent install`: the device sleeps, and wakes every {every_s:g} s to see whether there is work.
[Unit]
Description=Wakes the Talaria edge agent {device}

[Timer]
OnBootSec=30
OnUnitActiveSec={every_s:g}
AccuracySec=1
{wake}
[Install]
WantedBy=timers.target
"""


@dataclass(frozen=True)
class Layout:
    """Where an installation lies, below the root of its system.

    root  `/`, or the folder of a system that is not running: an image in the making
    """

    root: Path = Path("/")

    @property
    def home(self) -> Path:
        """versions/X for each version, `current` and `previous`, symbolic links to two of them."""
        return self.root / "opt/talaria"

    @property
    def config(self) -> Path:
        return self.root / "etc/talaria/agent.toml"

    @property
    def units(self) -> Path:
        return self.root / "etc/systemd/system"

    @property
    def state(self) -> Path:
        return self.root / STATE.relative_to("/")

    @property
    def alarm(self) -> bool:
        """Whether the machine has a clock that can wake it. systemd starts no timer with WakeSystem= where it has none:
        on a Raspberry Pi 4, for example."""
        return any(self.root.glob("sys/class/rtc/*/wakealarm"))

    def inside(self, path: Path) -> Path:
        """The path as the installed system itself calls it."""
        return Path("/") / path.relative_to(self.root)


def units(config: AgentConfig, profile: Profile, layout: Layout) -> dict[str, str]:
    """Name -> text of what systemd is told. A device that sleeps has a timer; the service is then started by it."""
    command = [str(layout.inside(layout.home / "current/bin/talaria-agent")), "run", "-c", f"%d/{layout.config.name}"]
    command += ["--set", f"state_dir={STATE}"]
    credentials = (
        f"LoadCredential={layout.config.name}:{layout.inside(layout.config)}\n"  # `enrol` made it root's alone
    )
    for setting, path in secrets(config):
        command += ["--set", f"{setting}=%d/{setting}"]
        credentials += f"LoadCredential={setting}:{str(path).replace('%', '%%')}\n"  # % is systemd's own mark
    if config.wakes_every_s is not None:
        command.append("--until-idle")
    service = SERVICE.format(
        device=config.device,
        profile=profile.id,
        command=shlex.join(command),
        credentials=credentials,
        memory_mib=memory_max_mib(profile),
        starts=5
        + int(600 / config.wakes_every_s if config.wakes_every_s else 0),  # what the timer starts counts as well
        home="read-only" if config.data.path and config.data.path.is_relative_to("/home") else "yes",
    )
    if config.wakes_every_s is None:
        return {UNIT: service + WANTED}
    wake = "WakeSystem=yes\n" if layout.alarm else ""
    return {UNIT: service, TIMER: WAKING.format(device=config.device, every_s=config.wakes_every_s, wake=wake)}


def memory_max_mib(profile: Profile) -> int:
    """What the agent and its trainer may take together; the trainer's own budget is below it, and is met first."""
    training = LIBRARY_MIB + profile.training.memory_mib if profile.training.enabled else 0
    return min(SUPERVISOR_MIB + training, int((1 - SYSTEM_SHARE) * profile.memory_mib))


def secrets(config: AgentConfig) -> Iterator[tuple[str, Path]]:
    """Setting and absolute path of every file that proves who somebody is."""
    for name in SECRETS:
        path = getattr(config.broker, name)
        if path is not None:
            yield f"broker.{name}", path.absolute()
    if config.coordinator_key is not None:
        yield "coordinator_key", config.coordinator_key.absolute()
