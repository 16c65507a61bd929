"""Write a clip, with `--stream` so that its frames are seen while the rest of it is denoised.

frames (t, h, w, 3) uint8 in chunks, SampleJob  ->  its file, or standard output;  MadeClip: seconds
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from videogen.cli.clip_files import STDOUT, name_clip
from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.sample_jobs import SampleJob
from videogen.data.video_io import stream_video, write_video

if TYPE_CHECKING:
    from torch import Tensor


class MadeClip(NamedTuple):
    """A clip that is written, and how long it took."""

    job: SampleJob
    seconds: float
    first_seconds: float | None = None  # until its first frames could be seen, where it was streamed


class StandardOutput:
    """Standard output as FFmpeg writes to a pipe: every byte passes on at once, and none is taken back."""

    def write(self, data: bytes, /) -> int:
        """Write bytes, and return their number."""
        left = memoryview(data)
        while left:
            left = left[os.write(sys.stdout.fileno(), left) :]
        return len(data)


def write_clip(
    job: SampleJob, frames: Iterable[Tensor], args: SampleArgs, settings: Mapping[str, object], started: float
) -> MadeClip:
    """Write a clip that was begun at `started`; where its default name was taken meanwhile, under the next free one."""
    fps, seen_seconds = job.config.fps, list[float]()
    tried = [job.path]

    def watched() -> Iterator[Tensor]:
        for chunk in frames:
            yield chunk
            seen_seconds.append(time.monotonic() - started)  # the writer has passed a chunk on when it asks for another

    def next_name() -> Path:
        tried.append(name_clip(job.path.parent, job.prompt, job.seed, {*tried}, may_exist=False))
        return tried[-1]

    def announce(part: object) -> None:
        if not args.quiet:
            print(f"{job.path} grows as {part}, which a player can open", file=sys.stderr)

    if job.path == STDOUT:
        try:
            stream_video(StandardOutput(), watched(), fps=fps, settings=settings)
        except BrokenPipeError:
            raise OSError("what read the clip from standard output has closed it") from None
    else:
        write_video(
            job.path,
            watched(),
            fps=fps,
            settings=settings,
            overwrite=args.overwrite,
            codec=args.codec,
            on_part=announce if args.stream else None,
            next_name=next_name if args.names_count_on else None,
        )
    first_seconds = seen_seconds[0] if args.stream else None
    return MadeClip(job._replace(path=tried[-1]), time.monotonic() - started, first_seconds)
