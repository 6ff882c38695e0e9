"""What to install for one extra, without the project itself: `requirements.py EXTRA [PIN ...] <constraints.txt`.

Prints the requirements of [project] and of the extra, those that it names itself included, and then the constraints,
with every PIN (name==version) in place of the constraint of that name. Dependencies can so be installed before our own
code is copied, and stay cached when only our code changes.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(extra: str) -> list[str]:
    """Requirements of the extra, `talaria[a,b]` resolved."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = list(project["dependencies"])
    for requirement in project["optional-dependencies"][extra]:
        ours = re.fullmatch(r"talaria\[(.+)\]", requirement)
        found += [r for name in ours[1].split(",") for r in requirements(name)] if ours else [requirement]
    return sorted(set(found))


def main() -> None:
    extra, *pins = sys.argv[1:]
    pinned = {pin.partition("==")[0] for pin in pins}
    kept = [line for line in sys.stdin.read().splitlines() if line.partition("==")[0] not in pinned]
    Path(f"{extra}.requirements").write_text("\n".join(requirements(extra)) + "\n", encoding="utf-8")
    Path("constraints").write_text("\n".join([*kept, *pins]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
