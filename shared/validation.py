"""What is wrong with a table of settings, said so that it can be corrected: key, value, what is allowed, the remedy."""

import json
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from shared.errors import ConfigError
from shared.plugins import nearest
from shared.toml import toml_value

M = TypeVar("M", bound=BaseModel)

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def validate(
    model: type[M], table: Mapping[str, Any], *, source: str, origin: Callable[[str], str] = lambda key: ""
) -> M:
    """The table as a `model`, strictly: no text where a number belongs, no 1.0 where an integer does.

    `origin(dotted key)` says where a value came from, for the message. ConfigError lists every problem at once.
    """
    try:
        # As JSON, because only there a strict pydantic still reads arrays as tuples and text as paths.
        return model.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        found = dict.fromkeys(problem(model, entry, origin) for entry in _first_per_key(model, error))
        raise ConfigError("\n".join([f"{source}:", *(f"  {text}" for text in found)])) from error


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every setting, sections unfolded, in the order of the file."""
    for name, field in model.model_fields.items():
        inner = section(field)
        if inner is None:
            yield prefix + name, field
        else:
            yield from fields(inner, f"{prefix}{name}.")


def section(field: FieldInfo) -> type[BaseModel] | None:
    """The model behind a field that is a section of its own."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def allowed(field: FieldInfo) -> str:
    """Choices or bounds of a field in words, empty where it has none."""
    choices = _choices(field.annotation)
    if choices:
        return "one of " + ", ".join(choices)
    bounds = (
        f"{words} {toml_value(getattr(entry, name))}"
        for entry in field.metadata
        for name, words in _BOUNDS.items()
        if getattr(entry, name, None) is not None
    )
    return ", ".join(bounds)


def problem(model: type[BaseModel], entry: Mapping[str, Any], origin: Callable[[str], str]) -> str:
    """One entry of ValidationError.errors() as one line."""
    key, field, holder = _locate(model, entry["loc"])
    place = f" ({origin(key)})" if origin(key) else ""
    given = f"{key} = {_shown(entry['input'])}{place}"
    about = "; ".join(filter(None, (field.description, allowed(field)))) if field else ""
    remedy = f" ({about})" if about else ""
    match entry["type"]:
        case "missing":
            return f"{key}: has no default and must be given{remedy}"
        case "extra_forbidden":
            return f"{key}{place}: {_unknown(model, holder, key)}"
        case "value_error" if field is None:  # of a whole section: its own text names the values
            return f"{key}: {entry['ctx']['error']}" if key else str(entry["ctx"]["error"])
        case "value_error":
            return f"{given}: {entry['ctx']['error']}"
        case "literal_error" | "enum" if field is not None:
            return f"{given}: must be {allowed(field)}{nearest(str(entry['input']), _choices(field.annotation))}"
        case "string_type" if field is not None and not _is_table(field):
            return f"{given}: must be text, in quotes{remedy}"
        case _ if field is None or _is_table(field):
            return f"{given}: must be a number, text, true, false, or an array of numbers or of texts"
    return f"{given}: {entry['msg'].replace('Input should be', 'must be')}{remedy}"


def _first_per_key(model: type[BaseModel], error: ValidationError) -> list[Any]:
    """One entry per setting: a union reports each of its members."""
    entries: dict[str, Any] = {}
    for entry in error.errors(include_url=False):
        entries.setdefault(_locate(model, entry["loc"])[0], entry)
    return list(entries.values())


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, FieldInfo | None, type[BaseModel]]:
    """(dotted key, its field unless it is a section or unknown, the section that holds it)."""
    holder, keys = model, []
    for position, part in enumerate(loc):
        keys.append(str(part))
        field = holder.model_fields.get(str(part))
        inner = section(field) if field else None
        if inner is None:
            if field and _is_table(field):
                keys.extend(str(name) for name in loc[position + 1 : position + 2])
            return ".".join(keys), field, holder
        holder = inner
    return ".".join(keys), None, holder


def _unknown(model: type[BaseModel], holder: type[BaseModel], key: str) -> str:
    head, _, name = key.rpartition(".")
    hint = nearest(name, holder.model_fields)
    elsewhere = [known for known, _ in fields(model) if known.rpartition(".")[2] == name]
    if elsewhere:
        hint = f"; did you mean {' or '.join(map(repr, elsewhere))}?"
    takes = f"{f'[{head}]' if head else 'the file'} takes {', '.join(holder.model_fields)}"
    return f"unknown{hint} {takes}" if hint else f"unknown; {takes}"


def _is_table(field: FieldInfo) -> bool:
    """Whether its keys are free, as the options of a model are."""
    return get_origin(field.annotation) is dict


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(str(member.value) for member in annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for found in map(_choices, get_args(annotation)) if found), ())
    return ()


def _shown(value: Any) -> str:
    text = "null" if value is None else toml_value(value)
    return text if len(text) <= 80 else text[:77] + "..."
