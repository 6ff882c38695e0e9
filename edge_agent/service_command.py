"""`talaria-agent install` and `uninstall`: the agent as a service of systemd."""

import shutil
import subprocess
import sys
from collections.abc import Container
from pathlib import Path

import click

from edge_agent import doctor
from edge_agent.service import TIMER, UNIT, Layout, secrets, units
from shared.config import AgentConfig
from shared.errors import ConfigError, StateError
from shared.files import atomic_write
from shared.profiles import Profile, load_profile
from shared.settings import load_agent_config

PATH = click.Path(path_type=Path)
ROOT = click.option(
    "--root", type=PATH, default=Path("/"), show_default=True, help="Of another system: an image in the making."
)
DRY = click.option("--dry-run", is_flag=True, help="Only print what would be done.")


@click.command()
@click.option("--config", "-c", "config_path", type=PATH, required=True, help="TOML file of this device.")
@ROOT
@DRY
def install(config_path: Path, root: Path, dry_run: bool) -> None:
    """Install this agent as a service: started at boot, watched, bounded by its profile, with a root it cannot write.

    \b
    python3 -m venv /opt/talaria/versions/0.1.0
    /opt/talaria/versions/0.1.0/bin/pip install 'talaria[train,infer]'
    /opt/talaria/versions/0.1.0/bin/talaria-agent install -c agent.toml

    Again, it takes over what has changed in the settings. Everything stays that the device remembers.
    """
    layout = Layout(root.absolute())
    config = load_agent_config(config_path, ()).config
    profile = load_profile(config.profile)
    version = _version(layout)
    check(config, profile)
    files = {layout.units / name: text for name, text in units(config, profile, layout).items()}
    if config_path.absolute() != layout.config:
        files[layout.config] = config_path.read_text(encoding="utf-8")
    if dry_run:
        for path, text in files.items():
            click.echo(f"--- {path}\n{text}")
        return
    _remove(layout, keep=files)  # a device that sleeps from now on, or no longer, is started otherwise
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode())
        path.chmod(0o644)
        click.echo(f"written: {path}")
    point(layout.home / "current", version)
    click.echo(f"in service: {layout.home / 'current'} -> {version}")
    unit = TIMER if config.wakes_every_s is not None else UNIT
    systemctl(layout, "enable", unit)
    if running(layout):
        systemctl(layout, "daemon-reload")
        if unit == TIMER:
            systemctl(layout, "stop", UNIT)  # it may be one that never ends
        systemctl(layout, "restart", unit)
        click.echo(f"{unit} is enabled and started; follow it with: journalctl -fu talaria-agent")
    else:
        click.echo(f"{unit} is enabled: it starts when the system does")


@click.command()
@ROOT
@DRY
def uninstall(root: Path, dry_run: bool) -> None:
    """Stop the service and remove its units. Settings, versions and what the device remembers stay."""
    layout = Layout(root.absolute())
    found = [path for name in (TIMER, UNIT) if (path := layout.units / name).exists()]
    if not found:
        raise StateError(f"no talaria-agent is installed below {layout.units}")
    if not dry_run:
        _remove(layout)
        if running(layout):
            systemctl(layout, "daemon-reload")
    for path in found:
        click.echo(f"removed: {path}")
    click.echo(f"left: {layout.config.parent}, {layout.home}, {layout.state}")


def _remove(layout: Layout, keep: Container[Path] = ()) -> None:
    """Disable the units that are there; stop and remove those that are not kept."""
    for path in (layout.units / TIMER, layout.units / UNIT):
        if not path.exists():
            continue
        if "[Install]" in path.read_text(encoding="utf-8"):
            systemctl(layout, "disable", path.name)
        if path not in keep:
            if running(layout):
                systemctl(layout, "stop", path.name)
            path.unlink()


def check(config: AgentConfig, profile: Profile) -> None:
    """ConfigError for what would only show once nobody is looking: files that are missing, a library that was built
    for another processor."""
    for setting, path in secrets(config):
        if not path.is_file():
            raise ConfigError(f"{setting} = {str(path)!r}: there is no such file")
    for package in ("torch", "onnxruntime") if profile.training.enabled else ("onnxruntime",):
        finding = doctor.package(package, needed=True)
        if finding.status != "ok":
            other = "; a profile with training.enabled = false does without" if package == "torch" else ""
            raise ConfigError(f"{package}: {finding.detail}{other}")


def _version(layout: Layout) -> Path:
    """The version that runs this; ConfigError where it lies elsewhere than versions lie."""
    version = Path(sys.prefix).resolve()
    if version.parent != (layout.home / "versions").resolve():
        raise ConfigError(
            f"this agent runs from {version}: install it into {layout.home / 'versions/X'} (python3 -m venv), X being "
            "its version, and call `install` there, so that it can be upgraded and rolled back"
        )
    return version


def point(link: Path, version: Path) -> None:
    """Let `current` or `previous` name another version, in one step. The link holds for the system it lies in."""
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path("versions") / version.name)
    temporary.replace(link)


def running(layout: Layout) -> bool:
    """Whether the system is this one, and systemd runs it."""
    return layout.root == Path("/") and Path("/run/systemd/system").is_dir()


def systemctl(layout: Layout, *arguments: str) -> str:
    """What it prints; StateError with what it said, where it fails."""
    if shutil.which("systemctl") is None:
        raise StateError("there is no systemctl: run the agent under your own supervisor, with `talaria-agent run`")
    at = () if running(layout) else ("--root", str(layout.root))
    done = subprocess.run(["systemctl", *at, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StateError(f"systemctl {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()
