"""Print the lowest versions that pyproject.toml allows, as constraints for pip, so that they can be tested.

python tests/lowest.py > lowest.txt && pip install -e '.[test]' -c lowest.txt && pytest
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest_versions(pyproject: Path = PYPROJECT) -> dict[str, str]:
    """Read the floor of every requirement, of the extras too; a ValueError names two floors of one package."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    floors: dict[str, str] = {}
    for requirement in (
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ):
        if (match := re.match(r"([\w.-]+)\s*>=\s*([\w.]+)", requirement)) is None:
            continue  # xformers is tied to a build of torch, and has no floor
        name, version = match.groups()
        if floors.setdefault(name, version) != version:
            raise ValueError(f"{name} has two floors, {floors[name]} and {version}; write one of them in both places")
    return floors


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in lowest_versions().items()))
