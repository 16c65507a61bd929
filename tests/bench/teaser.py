"""Make the README's teaser: eight prompts, seeds 0-7, default settings, each caption under its clip.

videogen bench teaser [--model FOLDER]  ->  assets/teaser.webp
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont

from tests.bench.flags import ROOT, make_parser, parse_flags
from videogen.config.sample import MINI
from videogen.data.files import atomic_file
from videogen.sampling.pipeline import VideoPipeline

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
ROWS, SCALE, GAP = 2, 3, 8  # the scale enlarges pixels, the gap is in pixels
FONT_SIZE, NUM_LINES = 14, 3
INK, PAPER = (34, 38, 43), (255, 255, 255)
MAX_BYTES = 3_000_000


def render_label(prompt: str, width: int) -> np.ndarray:
    """Render a caption in lines of at most a width in pixels, (h, width, 3) uint8."""
    font = ImageFont.load_default(FONT_SIZE)
    line_length = max(n for n in range(1, len(prompt) + 1) if font.getlength("n" * n) <= width or n == 1)
    image = Image.new("RGB", (width, round(1.35 * FONT_SIZE * NUM_LINES)), PAPER)
    text = "\n".join(textwrap.wrap(prompt, line_length))
    ImageDraw.Draw(image).multiline_text((0, 2), text, fill=INK, font=font)
    return np.asarray(image)


def lay_out(clips: Sequence[np.ndarray], prompts: Sequence[str]) -> np.ndarray:
    """Lay out clips (t, h, w, 3) of one size, enlarged, a caption under each: (t, height, width, 3) uint8."""
    cells = []
    for clip, prompt in zip(clips, prompts, strict=True):
        large = repeat(clip, "t h w c -> t (h tall) (w wide) c", tall=SCALE, wide=SCALE)
        captions = repeat(render_label(prompt, large.shape[2]), "h w c -> t h w c", t=len(large))
        cell = np.concatenate([large, captions], axis=1)
        cells.append(np.pad(cell, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=PAPER[0]))
    return rearrange(np.stack(cells), "(rows columns) t h w c -> t (rows h) (columns w) c", rows=ROWS)


def encode_webp(frames: np.ndarray, fps: float) -> bytes:
    """Encode an animation that repeats for ever."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    milliseconds = round(1000 / fps)
    first.save(file, "webp", save_all=True, append_images=rest, duration=milliseconds, loop=0, quality=90)
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    """Make the clips and write them side by side."""
    parser = make_parser("teaser", __doc__, out=ROOT / "assets" / "teaser.webp")
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint folder")
    args = parse_flags(parser, argv)
    pipeline = VideoPipeline.load(args.model)
    prompts = PROMPTS[:ROWS] if args.small else PROMPTS
    clips: list[torch.Tensor] = pipeline(prompts, pipeline.defaults, seeds=range(len(prompts)))
    picture = encode_webp(lay_out([clip.numpy() for clip in clips], prompts), pipeline.defaults.fps)
    if len(picture) > MAX_BYTES:
        raise ValueError(f"the teaser may have {MAX_BYTES:,} bytes, got {len(picture):,}; lower SCALE in {__file__}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(args.out) as part:
            part.write_bytes(picture)
    print(f"{args.out or 'not written'}  ({len(picture):,} bytes)")


if __name__ == "__main__":
    main()
