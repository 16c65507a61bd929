"""Find the files that come with the program: the default checkpoint, and what the toybox renders and judges with.

a wheel  ->  videogen/assets;  a checkout  ->  assets beside videogen
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "assets"  # pyproject.toml puts them into the wheel alone
ASSETS = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "assets"
