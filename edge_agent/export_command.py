"""`talaria-agent export`: take the model in service out of the agent's state, go back to the one before it, or see what
shrinking and int8 are worth on this device."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import click

from edge_agent import slots
from edge_agent.child import ask
from shared.config import AgentConfig
from shared.errors import ConfigError
from shared.profiles import load_profile

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--state-dir", type=PATH, required=True, help="Where the agent keeps its state.")
@click.option("--out", "-o", type=PATH, help="The ONNX file to write.")
@click.option(
    "--method",
    type=click.Choice(["template", "torch"]),
    default="template",
    show_default=True,
    help="`template`: the very file in service. `torch`: the same network through torch.onnx.export; needs torch.",
)
@click.option("--trust", multiple=True, metavar="MODULE:NAME", help="Models that --method torch may import.")
@click.option("--rollback", is_flag=True, help="Put the previous model in service again. Doing it twice undoes it.")
@click.option("--compare", "compared", is_flag=True, help="The dense network, the shrunk one and int8, side by side.")
@click.option(
    "--profile",
    "profile_name",
    default=AgentConfig.model_fields["profile"].default,
    show_default=True,
    help="Firmware profile, by which --compare runs them.",
)
@click.option("--json", "as_json", is_flag=True, help="--compare as one JSON document instead of a table.")
def export(
    state_dir: Path,
    out: Path | None,
    method: str,
    trust: tuple[str, ...],
    rollback: bool,
    compared: bool,
    profile_name: str,
    as_json: bool,
) -> None:
    """Write this device's own model as an ONNX file, roll back to the previous one, or compare it with the dense one.

    \b
    talaria-agent export --state-dir state -o model.onnx
    talaria-agent export --state-dir state --rollback
    talaria-agent export --state-dir state --compare --profile rpi-5
    """
    models = state_dir / "models"
    if (out is not None) + rollback + compared != 1:
        raise ConfigError("use either --out FILE, to write the model in service, or --rollback, or --compare")
    if rollback:
        click.echo(f"in service again: {slots.rollback(models)}")
        return
    version = slots.in_service(models)
    if compared:
        from edge_agent.compare import compare, table  # the runtime, which the other ways of asking do not need

        found = compare(version, load_profile(profile_name))
        click.echo(json.dumps(asdict(found), indent=2) if as_json else table(found))
        return
    assert out is not None
    if method == "torch":
        ask("edge_agent.torch_export", "export", str(version), str(out), *trust)
    else:
        shutil.copyfile(version / slots.MODEL, out)
    click.echo(f"{out}: {out.stat().st_size} bytes")
