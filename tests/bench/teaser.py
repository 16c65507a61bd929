"""The README's teaser: eight prompts, seeds 0-7, default settings, in one GIF. python tests/bench/teaser.py."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange, repeat

from videogen.pipeline import VideoPipeline
from videogen.video_io import write_video

ROOT = Path(__file__).parents[2]
PROMPTS = (
    "a large red circle moves right on a black background",
    "a small blue star sits still on a white background",
    "a big yellow heart spins in front of a starry night sky",
    "a green square moves down on a grey background",
    "a large purple ring grows on a dark blue background",
    "an orange triangle bounces up and down on a checkered background",
    "a big white cross moves up on a black background",
    "a large pink diamond moves left on a dark blue background",
)


def main() -> None:
    """Make the clips and lay them out four by two, at twice their size."""
    pipeline = VideoPipeline.load(ROOT / "assets" / "mini")
    clips = torch.stack(pipeline(PROMPTS, pipeline.defaults, seeds=range(8)))
    grid = rearrange(clips, "(rows columns) t h w c -> t (rows h) (columns w) c", rows=2)
    large = repeat(grid, "t h w c -> t (h two) (w also) c", two=2, also=2)
    write_video(ROOT / "assets" / "teaser.gif", large.contiguous(), fps=pipeline.defaults.fps, overwrite=True)


if __name__ == "__main__":
    main()
