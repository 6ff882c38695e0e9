"""A command line whose commands are imported when they are used, so that help is quick. Each is a function of the
command's name in a module of its own."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

LOG_FORMAT = click.option("--log-format", type=click.Choice(["text", "json"]), help="Log lines for people, or as JSON.")
LOG_FILE = click.option(
    "--log-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Log into this file, of at most 60 MB with those put aside, where nothing else collects what is printed.",
)


@dataclass(frozen=True)
class Entry:
    """Where a command is, and what the overview says about it."""

    module: str
    help: str


class LazyGroup(click.Group):
    """Commands by name, in the order of the table."""

    def __init__(self, *arguments: Any, entries: Mapping[str, Entry], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._entries:
            return None
        command = getattr(importlib.import_module(self._entries[cmd_name].module), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._entries.items()])


def lazy_group(entries: Mapping[str, Entry]) -> Callable[[Callable[[], None]], click.Command]:
    """Decorator: a program of these commands, whose own help is the function's docstring."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    return click.command(cls=LazyGroup, entries=entries, context_settings=settings)
