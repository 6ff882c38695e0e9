"""Names that point at code, and answers to names that point at nothing."""

import difflib
import importlib
from collections.abc import Iterable

from shared.errors import ConfigError


def load_object(path: str) -> object:
    """What `package.module:name` points at. Only ever called with a name from this machine's own settings or one
    that they trust: importing a module runs it."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{path}: cannot import {module_name!r} ({error}); is it on PYTHONPATH?") from error
    except Exception as error:  # whatever its code raises
        raise ConfigError(f"{path}: importing {module_name!r} raised {type(error).__name__}: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise ConfigError(f"{path}: module {module_name!r} has no {name!r}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?`, or nothing where no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
