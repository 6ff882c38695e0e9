"""`talaria-coordinator export`: the global model as a file."""

import json
from pathlib import Path

import click

from coordinator.checkpoints import RunDirectory
from coordinator.export import Format, export_model
from coordinator.options import JSON, PATH, RUN_DIR


@click.command()
@RUN_DIR
@click.option("-o", "--output", type=PATH, help="File to write; model.onnx or model.payload without it.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "payload"]),
    default="onnx",
    show_default=True,
    help="ONNX to run it, or a payload that another run starts from (model.initial).",
)
@JSON
def export(run_dir: Path, output: Path | None, form: Format, as_json: bool) -> None:
    """Write the global model of the run in RUN_DIR, after its last closed round."""
    output = output or Path(f"model.{form}")
    closed, size = export_model(RunDirectory(run_dir), output, form)
    if as_json:
        click.echo(json.dumps({"round": closed, "bytes": size, "path": str(output)}))
    else:
        click.echo(f"{output}: the global model after round {closed}, {size} bytes")
