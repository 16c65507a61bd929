"""Read what a command gives of its clips beforehand, and put it together with the frames that are made.

SampleArgs, Layout  ->  Material: Known, frames written before and behind;  frames made  ->  frames to write
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from videogen.cli.known_flags import Layout, lay_out, num_frames_of, parse_image
from videogen.config.sample import SampleConfig, resolve_frames
from videogen.data.pictures import IMAGE_SUFFIXES, read_image_file
from videogen.data.saved_latents import is_same_setting, latent_settings, read_latent
from videogen.data.video_decode import inspect_header
from videogen.data.video_io import probe, read_video
from videogen.models.checkpoint_config import CheckpointInfo
from videogen.models.hub import checkpoint_id

if TYPE_CHECKING:
    from torch import Tensor

    from videogen.cli.sample_arguments import SampleArgs
    from videogen.sampling.known import Known


class Material(NamedTuple):
    """What is known of the clips of a command, and the frames that are written before and behind them."""

    known: tuple[Known, ...] = ()
    before: Tensor | None = None  # (t, h, w, 3) uint8
    behind: Tensor | None = None
    num_written: int | None = None  # frames of the clip itself; all of them by default

    def frame_with(self, chunks: Iterable[Tensor], config: SampleConfig, stride: int) -> Iterator[Tensor]:
        """Complete decoded chunks (t, h, w, 3): given clips keep their pixels, and all of their frames are there."""
        if not self.known:
            yield from chunks
            return
        from videogen.sampling.known import overlay

        chunks = overlay(chunks, self.known, config, stride)
        if self.before is not None and len(self.before):
            yield self.before
        left = math.inf if self.num_written is None else self.num_written
        for chunk in chunks:
            if left > 0:
                yield chunk[: int(min(left, len(chunk)))]
            left -= len(chunk)
        if self.behind is not None and len(self.behind):
            yield self.behind


def load_material(args: SampleArgs, info: CheckpointInfo) -> Material:
    """Read the given pictures and clips, at the clip's frame rate."""
    if args.video is None and not args.image:
        return Material()
    from videogen.sampling.known import Known, check_mask

    fit = "pad" if args.fit == "pad" else "crop"
    images = [parse_image(text) for text in args.image]
    known = [Known.at(read_image_file(image.path, args.background), image.seconds, fit=fit) for image in images]
    if args.video is None:
        return Material(tuple(known))
    layout, fps = lay_out(args, info), args.sample.fps
    frames = read_clip(args.video, fps)
    if len(frames) != (num := num_frames_of(args.video, fps)):
        raise ValueError(f"{args.video} says that it has {num} frames and has {len(frames)}; ffmpeg can rewrite it")
    if args.extend is None:
        frames = frames[: resolve_frames(args.sample, info.time_stride)]
        free = None if args.mask is None else check_mask(read_clip(args.mask, fps), frames, str(args.mask))
        weight = 0.0 if args.mask is None else 1.0
        return Material((Known(frames, free=free, weight=weight, fit=fit), *known))
    return place_clips(args, info, layout, frames)


def place_clips(args: SampleArgs, info: CheckpointInfo, layout: Layout, frames: Tensor) -> Material:
    """Place --video, and what follows it, in the clip to be made."""
    from videogen.sampling.known import Known, fit_frames

    assert args.video is not None
    fps, size, fit = args.sample.fps, (args.sample.width, args.sample.height), "pad" if args.fit == "pad" else "crop"
    paths, clips = [args.video], [frames]
    if len(layout.starts) > 1:
        paths.append(args.join or args.video)
        clips.append(read_clip(args.join, fps) if args.join else frames[: layout.num_frames - layout.starts[1]])
    known = []
    for number, (path, clip, start) in enumerate(zip(paths, clips, layout.starts, strict=True)):
        low = layout.skipped if number == 0 else 0
        high = len(clip) - (layout.left_over if number == len(clips) - 1 else 0)
        latent = find_latent(path, args, info) if (low, high) == (0, len(clip)) else None
        if latent is not None:
            latent = latent[:, : 1 + (len(clip) - 1) // info.time_stride]
        known.append(Known(clip[low:high], start / fps, fit=fit, latent=latent))
    before, behind = clips[0][: layout.skipped], clips[-1][len(clips[-1]) - layout.left_over :]
    return Material(
        tuple(known), fit_frames(before, *size, fit), fit_frames(behind, *size, fit), num_written=layout.num_written
    )


def read_clip(path: Path, fps: float) -> Tensor:
    """Read the frames of a clip, in SDR: its own, where it has the frame rate, or those on screen at each time."""
    if transfer := inspect_header(path).transfer:
        print(f"note: {path} is HDR ({transfer}); its brightness is mapped to that of SDR", file=sys.stderr)
    own = path.suffix.lower() in IMAGE_SUFFIXES or math.isclose(probe(path).fps, fps)
    return read_video(path, fps=None if own else fps, tone_mapped=True)


def find_latent(path: Path, args: SampleArgs, info: CheckpointInfo) -> Tensor | None:
    """Read the latent that --save-latents kept beside a clip, where it is of this clip and of this checkpoint's VAE.

    A clip that goes through the VAE again loses a little each time; its latent loses nothing.
    """
    saved = path.with_suffix(".safetensors")
    if not saved.is_file():
        return None
    settings, video = latent_settings(saved), probe(path)
    latent = read_latent(saved)
    side, frames = info.space_stride, 1 + (latent.shape[1] - 1) * info.time_stride
    is_same_clip = (video.num_frames, video.height, video.width) == (frames, *(side * n for n in latent.shape[2:]))
    is_as_it_is = f"{video.width}x{video.height}" == args.sample.size and math.isclose(video.fps, args.sample.fps)
    if is_same_clip and is_as_it_is and is_same_setting(settings.get("checkpoint"), checkpoint_id(args.model)):
        return latent
    print(f"note: {saved} is the latent of another clip or checkpoint; {path} is encoded anew", file=sys.stderr)
    return None
