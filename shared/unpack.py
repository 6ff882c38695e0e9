"""msgpack from outside: small, plain, of our version, or a ValueError with a short reason."""

from typing import Any

import msgpack
from pydantic import ValidationError

from shared.messages import PROTOCOL


def unpack_map(data: bytes | memoryview, *, max_items: int) -> dict[str, Any]:
    """The msgpack map that `data` is: arrays as tuples, keys are strings and none comes twice; no extension types.

    ValueError with a short reason for anything else. No length in `data` is believed beyond the length of `data`.
    """
    try:
        fields = msgpack.unpackb(
            data,
            use_list=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_refuse_extension,
            max_array_len=min(max_items, len(data)),
            max_map_len=min(max_items, len(data)),
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"not msgpack: {str(error)[:100] or type(error).__name__}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"not a map but {type(fields).__name__}")
    return fields


def check_version(version: object) -> None:
    """ValueError unless `version` is the one of this program."""
    if type(version) is not int or version != PROTOCOL:
        shown = version if type(version) is int else f"({type(version).__name__})"
        raise ValueError(f"protocol version {shown} is not {PROTOCOL}, ours: update the older of the two programs")


def reason(error: ValidationError) -> str:
    """The first thing that is wrong, and where, without repeating what was sent."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"])
    return f"{where}: {first['msg']}"[:300] if where else first["msg"][:300]


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs) or not all(type(key) is str for key in fields):
        raise ValueError("a map's keys must be strings, each of them once")
    return fields


def _refuse_extension(code: int, data: bytes) -> None:
    raise ValueError(f"extension type {code} is not part of the protocol")
