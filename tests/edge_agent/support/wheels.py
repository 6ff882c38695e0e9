"""Talaria as a wheel of any version, made from what lies here: no builder, no network."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCE = Path(__file__).parents[3]
AGENT = ("shared", "edge_agent", "firmware_profiles")
"""What an agent needs: the fewer files pip has to move, the better."""


def wheel(folder: Path, version: str, changes: Mapping[str, str] = {}, packages: Sequence[str] = AGENT) -> Path:
    """The project as a wheel of that version; `changes` replaces files, or adds some."""
    folder.mkdir(exist_ok=True)
    path = folder / f"talaria-{version}-py3-none-any.whl"
    files = {
        file.relative_to(SOURCE).as_posix(): file.read_text(encoding="utf-8")
        for package in packages
        for file in (SOURCE / package).rglob("*")
        if file.suffix in (".py", ".toml", ".service")
    }
    info = f"talaria-{version}.dist-info"
    files |= {
        **changes,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: talaria\nVersion: {version}\nRequires-Dist: click>=8.1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\n"
        "talaria-agent = edge_agent.cli:main\ntalaria-coordinator = coordinator.cli:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path
