"""Plan the clip that training makes of a file: frames, size and tokens, without reading it.

VideoInfo, DataConfig, patch  ->  ClipShape
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

from videogen.config.sizes import SPACE_STRIDE, TIME_STRIDE, parse_size
from videogen.config.train import DataConfig
from videogen.data.files import error_reason
from videogen.data.findings import Finding
from videogen.data.judgement import Judgement, judge_header
from videogen.data.listing import caption_of
from videogen.data.video_io import VideoInfo
from videogen.packing.patch_schedule import Patch

LEAST_SCENE_SECONDS = 1.0


class ClipShape(NamedTuple):
    """The frames, size and token count of the clip that is read from a file."""

    frames: int
    width: int
    height: int
    num_tokens: int


def fit_size(width: int, height: int, *, cell: int, max_cells: int) -> tuple[int, int]:
    """Return the largest (width, height) in multiples of cell pixels to which a frame shrinks without distortion.

    The frame is scaled until it covers that size, and the overhang of less than half a cell is cropped: b cells on the
    shorter side ask for a = round(b·long/short) on the longer, and the largest b that fits max_cells is taken.
    Raises a ValueError where not even b = 1 fits.
    """
    long, short = max(width, height), min(width, height)
    for b in range(max(1, short // cell), 0, -1):
        a = max(1, round(b * long / short))
        fits = a * cell <= long or b == 1  # A frame is enlarged only where one cell must cover its shorter side.
        if fits and a * b <= max_cells:
            return (a * cell, b * cell) if width >= height else (b * cell, a * cell)
    least = max(1, round(long / short))
    raise ValueError(f"{width}x{height} needs at least {least} tokens a frame, got room for {max_cells}")


def plan_clip(info: VideoInfo, config: DataConfig, patch: Patch) -> ClipShape:
    """Plan the longest and then the largest clip of a file that data.max_tokens allows.

    Raises a ValueError where not even one frame of its shape fits.
    """
    max_tokens = config.max_tokens
    frames = max(1, math.floor(min(info.seconds, config.max_seconds) * config.fps + 1e-3))
    pt, ph, pw = patch
    # Cells are square, patches need not be.
    cell, tokens_per_cell = SPACE_STRIDE * max(ph, pw), max(ph, pw) ** 2 // (ph * pw)
    min_cells = max(1, round(max(info.width, info.height) / min(info.width, info.height)))
    max_latent_frames = (max_tokens // (min_cells * tokens_per_cell)) * pt  # at the smallest size
    if max_latent_frames < pt:
        raise ValueError(f"one frame of {info.width}x{info.height} needs more than data.max_tokens = {max_tokens}")
    latent_frames = min(1 + (frames - 1) // TIME_STRIDE, max_latent_frames)
    latent_frames -= latent_frames % pt if latent_frames >= pt else 0
    max_cells = max_tokens // (max(1, latent_frames // pt) * tokens_per_cell)
    if config.max_size is not None:
        max_cells = min(max_cells, max(min_cells, math.prod(parse_size(config.max_size)) // cell**2))
    width, height = fit_size(info.width, info.height, cell=cell, max_cells=max_cells)
    num_tokens = (latent_frames // pt) * (height // (SPACE_STRIDE * ph)) * (width // (SPACE_STRIDE * pw))
    return ClipShape(1 + (latent_frames - 1) * TIME_STRIDE, width, height, num_tokens)


def find_scenes(judgement: Judgement) -> list[tuple[float, float]]:
    """List the scenes of a file whose frames were all looked at: when each begins and how long it lasts, in seconds.

    Those shorter than a second are left out, and a frame at each cut is, too: times are rounded in many files.
    """
    assert judgement.info is not None, "a file that cannot be read has no scenes"
    info, cuts = judgement.info, cast("list[float]", judgement.facts.get("cuts", []))
    starts = [0.0, *(cut + 0.5 / info.fps for cut in cuts)]
    ends = [*(cut - 0.5 / info.fps for cut in cuts), info.seconds]
    scenes = [(start, end - start) for start, end in zip(starts, ends, strict=True)]
    return [(start, seconds) for start, seconds in scenes if seconds >= LEAST_SCENE_SECONDS]


def judge_clip(
    path: Path,
    captions: Mapping[Path, tuple[str, ...]],
    config: DataConfig,
    patch: Patch,
    judge: Callable[[Path], Judgement] = judge_header,
) -> tuple[Judgement, tuple[str, ...], ClipShape | None]:
    """Judge a file of a folder with its captions; the clip that training makes of it is None where it is unusable."""
    texts, about_captions = caption_of(path, captions)
    if config.captions == "optional" and about_captions is not None and about_captions.kind == "no_caption":
        texts, about_captions = ("",), None
    try:
        judgement = judge(path)
    except Exception as error:  # Whatever a library raises at a broken file is about that file, and ends no run.
        judgement = Judgement(findings=(Finding("damaged", f"{type(error).__name__}: {error_reason(error)}"),))
    if about_captions is not None:
        judgement = judgement._replace(findings=(about_captions,)).with_findings(*judgement.findings)
    if judgement.info is None or judgement.fault is not None:
        return judgement, texts, None
    try:
        return judgement, texts, plan_clip(judgement.info, config, patch)
    except ValueError as error:
        return judgement.with_findings(Finding("too_oblong", str(error))), texts, None
