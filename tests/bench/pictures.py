"""Draw the pictures of the README: python tests/bench/pictures.py [NAME ...], after `videogen bench packing` and `wan`.

assets/bench/packing.json  ->  assets/guide/folder.png;  wan.json  ->  wan.png;  a small sweep  ->  sweep.png
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from videogen.cli.main import sample

ASSETS = Path(__file__).parents[2] / "assets"
GUIDE = ASSETS / "guide"
PROMPT = "a large red circle moves right on a black background"
SWEEP = ["--sweep", "steps=4,8,16", "guidance=1,3,5", "--seeds", "0,1"]
WIDTH = 7.2  # inches, at 110 dots an inch
BLUE, GREY = "#3b6fb6", "#b9bec6"


def draw_bars(
    labels: list[str], values: list[float], texts: list[str], title: str, colours: list[str], *, room: float
) -> Figure:
    """Draw horizontal bars, each with its text behind it; the x axis is `room` times as long as the longest bar."""
    figure = Figure(figsize=(WIDTH, 0.55 + 0.36 * len(labels)), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.barh(labels, values, color=colours, height=0.62)
    for i, (value, text) in enumerate(zip(values, texts, strict=True)):
        axes.text(value + 0.01 * max(values), i, text, va="center", fontsize=9)
    axes.set_xlim(0, room * max(values))
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False, labelsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)  # at the left edge, so that a long title fits
    return figure


def draw_folder() -> Figure:
    """Draw what share of a training step's tokens are clips, on a folder of mixed sizes and lengths."""
    loaders = json.loads((ASSETS / "bench" / "packing.json").read_text(encoding="utf-8"))["race"]["loaders"]
    names = {"packed": "packed (here)", "buckets": "buckets", "padded": "padded to the longest"}
    fills = [loaders[name]["fill"] for name in names]
    texts = [
        f"{loaders[name]['fill']:.0%} of the tokens; {loaders[name]['dropped']:.0%} of the clips left out"
        for name in names
    ]
    title = "A training step on 1,140 clips of 149 sizes and lengths: tokens that are clips"
    return draw_bars(list(names.values()), fills, texts, title, [BLUE, GREY, GREY], room=2.05)


def draw_wan() -> Figure:
    """Draw how many times as fast guided steps are as in diffusers."""
    result = json.loads((ASSETS / "bench" / "wan.json").read_text(encoding="utf-8"))
    steps = result["guided_step"]
    texts = [
        f"{row['times_faster']:g} times ({row['videogen_ms']:,.0f} ms against {row['diffusers_ms']:,.0f})"
        for row in steps.values()
    ]
    title = f"A guided step of Wan's transformer against diffusers on the same CPU, {result['date']}"
    values = [row["times_faster"] for row in steps.values()]
    return draw_bars(list(steps), values, texts, title, [BLUE] * len(steps), room=1.7)


def draw_sweep(path: Path) -> None:
    """Draw the contact sheet of a small sweep of the default checkpoint."""
    with tempfile.TemporaryDirectory() as root:
        assert sample([PROMPT, *SWEEP, "--out", f"{root}/sweep"]) == 0
        with Image.open(f"{root}/sweep/contact.png") as sheet:
            sheet.convert("RGB").quantize(128).save(path, optimize=True)


PICTURES: dict[str, Callable[[Path], None]] = {
    "folder": lambda path: draw_folder().savefig(path),
    "wan": lambda path: draw_wan().savefig(path),
    "sweep": draw_sweep,
}


def main() -> None:
    """Draw and write the pictures that are named, or all."""
    mpl.rcParams["font.family"] = "DejaVu Sans"
    GUIDE.mkdir(exist_ok=True)
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name](GUIDE / f"{name}.png")


if __name__ == "__main__":
    main()
