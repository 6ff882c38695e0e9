"""`talaria-agent export`: take the model in service out of the agent's state, or go back to the one before it."""

import shutil
from pathlib import Path

import click

from edge_agent import slots
from edge_agent.child import ask
from shared.errors import ConfigError

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
def export(state_dir: Path, out: Path | None, method: str, trust: tuple[str, ...], rollback: bool) -> None:
    """Write this device's own model as an ONNX file, or roll back to the previous one.

    \b
    talaria-agent export --state-dir state -o model.onnx
    talaria-agent export --state-dir state --rollback
    """
    models = state_dir / "models"
    if rollback == (out is not None):
        raise ConfigError("use either --out FILE, to write the model in service, or --rollback")
    if out is None:
        click.echo(f"in service again: {slots.rollback(models)}")
        return
    version = slots.in_service(models)
    if method == "torch":
        ask("edge_agent.torch_export", "export", str(version), str(out), *trust)
    else:
        shutil.copyfile(version / slots.MODEL, out)
    click.echo(f"{out}: {out.stat().st_size} bytes")
