"""Numbers for people: the same in the live view, the table and the report."""

MISSING = "\N{EN DASH}"
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))


def size(count: float) -> str:
    """Bytes for people, in decimal units: 512 B, 4.1 kB, 44.7 MB."""
    unit, scale = next((entry for entry in UNITS if count >= entry[1]), UNITS[-1])
    return f"{count / scale:.1f} {unit}" if scale > 1 else f"{count:.0f} B"


def beside(count: float | None, other: float | None) -> str:
    """Two numbers of bytes in the unit of the larger one: 0.87/1.23 MB."""
    if count is None or other is None:
        return MISSING
    unit, scale = next((entry for entry in UNITS if max(count, other) >= entry[1]), UNITS[-1])
    return f"{count / scale:.3g}/{other / scale:.3g} {unit}"


def percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}%"
