"""TOML files: reading them, finding those that come with the package, and writing values."""

import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.plugins import nearest


def read_toml(path: Path) -> dict[str, Any]:
    """The table in that file. ConfigError when it is not there or is no TOML, with the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file (looked for in {Path.cwd()})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f'{path}: is not TOML: {error}; text needs quotes, as in name = "hermes"') from error


def bundled_names(package: str) -> list[str]:
    """Names, without `.toml`, of the files that come with `firmware_profiles` or `configs`, sorted."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in resources.files(package).iterdir() if entry.name.endswith(".toml")
    )


def bundled(package: str, name: str) -> Path:
    """Path of one of them, in a checkout and in an installed wheel alike. ConfigError when there is none."""
    known = bundled_names(package)
    if name not in known:
        raise ConfigError(f"{package} has no {name!r}{nearest(name, known)}; there is {', '.join(known)}")
    return Path(str(resources.files(package) / f"{name}.toml"))


def toml_value(value: Any) -> str:
    """A value as it is written in TOML, on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return "[" + ", ".join(map(toml_value, value)) + "]"
        case dict():
            inner = ", ".join(f"{_key(key)} = {toml_value(item)}" for key, item in value.items())
            return f"{{ {inner} }}" if inner else "{}"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)
