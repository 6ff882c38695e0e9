"""Settings from TOML files and `--set key=value`, with the origin of every value.

Defaults stand in shared.config; a file overrides them, `--set` overrides the file. Relative paths, in a file or not,
start at the working directory.
"""

import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shared.config import AgentConfig, AlgorithmSettings, RunConfig
from shared.errors import ConfigError
from shared.toml import bundled, read_toml, toml_value
from shared.validation import allowed, section, validate

Config = TypeVar("Config", RunConfig, AgentConfig)
SET = "--set"
DEFAULT = "default"


@dataclass(frozen=True)
class Loaded(Generic[Config]):
    """A configuration, and where its values came from: `origins` maps the dotted keys that were given to a file's name
    or `--set`; everything else is a default."""

    config: Config
    origins: Mapping[str, str]


@dataclass(frozen=True)
class Row:
    """One effective setting, as `config show` prints it. `value` is None where it is not set."""

    key: str
    value: Any
    origin: str
    description: str


def load_run_config(path: Path | None, sets: Sequence[str] = ()) -> Loaded[RunConfig]:
    """The run that a file and `--set` arguments describe. ConfigError lists everything that is wrong.

    Hyperparameters are taken as they are: shared.algorithms checks them against the algorithm.
    """
    return _load(RunConfig, path, sets)


def load_agent_config(path: Path | None, sets: Sequence[str] = ()) -> Loaded[AgentConfig]:
    """The same for one device."""
    return _load(AgentConfig, path, sets)


def override(config: RunConfig, sets: Sequence[str]) -> RunConfig:
    """The same run with `--set` arguments over it; what they do not name stays. ConfigError as above."""
    table = config.model_dump(exclude_none=True)
    for assignment in sets:
        key, value = _assignment(assignment)
        _put(table, key, value, assignment)
    return validate(RunConfig, table, source=SET)


def bundled_config(name: str) -> Path:
    """Path of a configuration that comes with the package, for example `demo`."""
    return bundled("configs", name)


def explain(loaded: Loaded[Config], hyperparameters: BaseModel | None = None) -> list[Row]:
    """Every effective setting in the order of the file.

    hyperparameters: the algorithm's own, checked; their defaults are then listed as well as what was given.
    """
    return [
        Row(key, value, _origin(loaded.origins, key) or DEFAULT, field.description or "" if field else "hyperparameter")
        for key, value, field in _settings(loaded.config, "", hyperparameters)
    ]


def example_toml(config: BaseModel, hyperparameters: BaseModel | None = None) -> str:
    """The configuration as a TOML file in which a comment explains every key; what is not set is commented out.

    Loaded again it is the same configuration. hyperparameters: as for `explain`.
    """
    return "\n".join([*_comment(config.__doc__ or ""), *_section_lines(config, "", hyperparameters)]) + "\n"


# --- reading --------------------------------------------------------------------------------------------------------


def _load(model: type[Config], path: Path | None, sets: Sequence[str]) -> Loaded[Config]:
    table = read_toml(path) if path else {}
    if isinstance(table.get("broker"), str):  # broker = "embedded" stands for its url
        table["broker"] = {"url": table["broker"]}
    origins = {key: str(path) for key in _leaves(table)}
    for assignment in sets:
        key, value = _assignment(assignment)
        _put(table, key, value, assignment)
        origins = {known: origin for known, origin in origins.items() if not _below(known, key)}
        origins |= {f"{key}.{leaf}" if leaf else key: SET for leaf in _leaves(value)}
    config = validate(model, table, source=str(path or "settings"), origin=lambda key: _origin(origins, key))
    return Loaded(config, origins)


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not value or not all(key.split(".")):
        raise ConfigError(f"{SET} {text!r} is not key=value: write for example {SET} rounds.count=5")
    return ("broker.url" if key == "broker" else key), _value(value)


def _value(text: str) -> Any:
    """A TOML value; `.5` as people type it; anything else is text, which then needs no quotes."""
    for candidate in (text, re.sub(r"^([+-]?)\.(?=\d)", r"\g<1>0.", text)):
        try:
            table = tomllib.loads(f"value = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
        if table.keys() == {"value"}:
            return table["value"]
    return text


def _put(table: dict[str, Any], key: str, value: Any, assignment: str) -> None:
    *sections, name = key.split(".")
    for step in sections:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{SET} {assignment!r}: {step!r} is a value, not a section with keys of its own")
    table[name] = value


def _leaves(value: Any) -> list[str]:
    """Dotted keys of all values in a table; the empty key for a value that is no table."""
    if not isinstance(value, dict):
        return [""]
    return [f"{key}.{leaf}" if leaf else key for key, inner in value.items() for leaf in _leaves(inner)]


def _below(key: str, parent: str) -> bool:
    return key == parent or key.startswith(parent + ".")


# --- showing --------------------------------------------------------------------------------------------------------


def _settings(
    config: BaseModel, prefix: str, hyperparameters: BaseModel | None = None
) -> Iterator[tuple[str, Any, FieldInfo | None]]:
    """(dotted key, value, field) of every setting; the field is None where only the algorithm knows it."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if section(field):
            yield from _settings(value, f"{prefix}{name}.", hyperparameters)
        else:
            yield prefix + name, value, field
    if isinstance(config, AlgorithmSettings):
        if hyperparameters is not None:
            yield from _settings(hyperparameters, prefix)
        else:
            for name, value in config.hyperparameters.items():
                yield prefix + name, value, None


def _origin(origins: Mapping[str, str], key: str) -> str:
    """The origin of a key; of the tables below it, where the value is a table."""
    found = dict.fromkeys(origin for known, origin in origins.items() if _below(known, key))
    return ", ".join(found)


def _section_lines(config: BaseModel, prefix: str, hyperparameters: BaseModel | None = None) -> list[str]:
    lines: list[str] = []
    inner: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if section(field):
            head = f"{prefix}{name}"
            inner += [
                "",
                *_comment(value.__doc__ or ""),
                f"[{head}]",
                *_section_lines(value, f"{head}.", hyperparameters),
            ]
        else:
            lines += [
                *_comment("; ".join(filter(None, (field.description, allowed(field))))),
                _setting(name, value, field),
            ]
    if isinstance(config, AlgorithmSettings):
        if hyperparameters is None:
            lines += [f"{name} = {toml_value(value)}" for name, value in config.hyperparameters.items()]
        else:
            lines += _section_lines(hyperparameters, prefix)
    return lines + inner


def _setting(name: str, value: Any, field: FieldInfo) -> str:
    if value is None:
        return f"# {name} = {toml_value(field.examples[0]) if field.examples else '...'}"
    return f"{name} = {toml_value(value)}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 118, initial_indent="# ", subsequent_indent="# ")
