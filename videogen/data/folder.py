"""Read a folder of captioned videos as training clips: every file at its own size and length, none dropped in silence.

    folder  ->  VideoFolder: entries (path, caption, size, frames, token count)  ->  Clip (3, t, h, w) in [-1, 1]

The layout is Hugging Face's `videofolder` (videos in any sub-folders; metadata.csv, .jsonl or .parquet with file_name
and text), or a clip.txt beside clip.mp4. Which window of a long file is read depends on (seed, epoch, index) alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from videogen.config.sizes import SPACE_STRIDE, TIME_STRIDE
from videogen.config.train import DataConfig
from videogen.data.captions import read_captions, read_utf8
from videogen.data.files import walk_files
from videogen.data.video_decode import IMAGE_SUFFIXES
from videogen.data.video_io import VideoInfo, probe, read_video
from videogen.packing.noise import step_generator
from videogen.packing.patch_schedule import Patch

SUFFIXES = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".ogv", ".vob", ".mxf", ".f4v", ".asf", ".mpe", ".m2v", ".qt", ".y4m", ".gif", *IMAGE_SUFFIXES,
)  # fmt: skip


class Clip(NamedTuple):
    """A video and its caption."""

    video: Tensor  # (3, t, h, w) in [-1, 1]
    caption: str


@dataclass(frozen=True)
class ClipEntry:
    """A usable file of a folder, with the frames, size and token count of the clip that is read from it."""

    path: Path
    caption: str
    info: VideoInfo
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


def scale_and_crop(frames: Tensor, width: int, height: int) -> Tensor:
    """Scale frames (t, h, w, 3) uint8 to cover width x height and crop them evenly, as (t, 3, h, w) in [-1, 1]."""
    old_height, old_width = frames.shape[1:3]
    video = rearrange(frames, "t h w c -> t c h w").float() / 127.5 - 1
    if (old_width, old_height) != (width, height):
        scale = max(width / old_width, height / old_height)
        size = (max(height, round(old_height * scale)), max(width, round(old_width * scale)))
        video = torch.nn.functional.interpolate(video, size, mode="bicubic", antialias=True, align_corners=False)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        video = video[..., top : top + height, left : left + width].clamp(-1, 1)
    return video


def find_clip_files(folder: Path) -> set[Path]:
    """Return the files with a video's suffix, and those whose .txt caption belongs to no file with such a suffix."""
    files = set(walk_files(folder))
    clips = {path for path in files if path.suffix.lower() in SUFFIXES}
    captioned = {path.with_suffix("") for path in files if path.suffix == ".txt"}
    captioned -= {path.with_suffix("") for path in clips}
    return clips | {path for path in files if path.suffix not in ("", ".txt") and path.with_suffix("") in captioned}


def log_to_stderr(message: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(f"{message}\n")


class VideoFolder:
    """The clips of a folder: entries from the files' headers and one frame of each, pixels on request."""

    def __init__(
        self, config: DataConfig, patch: Patch, *, seed: int = 0, log: Callable[[str], object] = log_to_stderr
    ) -> None:
        self.config, self.patch, self.seed, self.log = config, patch, seed, log
        self.entries: list[ClipEntry] = []
        self.problems: list[tuple[Path, str]] = []
        if not config.folder.is_dir():
            raise ValueError(f"no folder {config.folder}; give one with videos in it and captions beside them")
        captions = read_captions(config.folder)
        listed = {config.folder / name for name in captions if (config.folder / name).is_file()}
        paths = sorted(listed | find_clip_files(config.folder))
        if not paths:
            raise ValueError(f"no videos in {config.folder}; it may hold {', '.join(SUFFIXES)} in any sub-folders")
        with ThreadPoolExecutor() as pool:
            results = pool.map(lambda path: self._entry_or_reason(path, captions), paths)
            for path, entry_or_reason in zip(paths, results, strict=True):
                if isinstance(entry_or_reason, ClipEntry):
                    self.entries.append(entry_or_reason)
                else:
                    self.problems.append((path, entry_or_reason))
        names = {path.relative_to(config.folder).as_posix() for path in paths}
        missing = [config.folder / name for name in captions if name not in names]
        self.problems += [(path, "it has a caption in the metadata, but the file does not exist") for path in missing]
        for path, reason in self.problems[:20]:
            log(f"not used: {path}: {reason}")
        if self.problems:
            log(f"{len(self.problems)} of {len(paths) + len(missing)} files of {config.folder} cannot be used")
        if not self.entries:
            raise ValueError(f"none of the {len(paths)} videos in {config.folder} can be used: {self.problems[0][1]}")

    def _entry_or_reason(self, path: Path, captions: dict[str, str]) -> ClipEntry | str:
        try:
            return self._entry(path, captions)
        except (ValueError, OSError) as error:
            return str(error)

    def _entry(self, path: Path, captions: dict[str, str]) -> ClipEntry:
        name = path.relative_to(self.config.folder).as_posix()
        caption_path = path.with_suffix(".txt")
        caption = captions.get(name) or (read_utf8(caption_path).strip() if caption_path.is_file() else "")
        if not caption:
            raise ValueError(f"no caption; add a row to metadata.csv or write {caption_path.name} beside it")
        info, max_tokens = probe(path), self.config.max_tokens
        frames = max(1, math.floor(min(info.seconds, self.config.max_seconds) * self.config.fps + 1e-3))
        pt, ph, pw = self.patch
        # Cells are square, patches need not be.
        cell, tokens_per_cell = SPACE_STRIDE * max(ph, pw), max(ph, pw) ** 2 // (ph * pw)
        min_cells = max(1, round(max(info.width, info.height) / min(info.width, info.height)))
        max_latent_frames = (max_tokens // (min_cells * tokens_per_cell)) * pt  # at the smallest size
        if max_latent_frames < pt:
            raise ValueError(f"one frame of {info.width}x{info.height} needs more than data.max_tokens = {max_tokens}")
        latent_frames = min(1 + (frames - 1) // TIME_STRIDE, max_latent_frames)
        latent_frames -= latent_frames % pt if latent_frames >= pt else 0
        max_cells = max_tokens // (max(1, latent_frames // pt) * tokens_per_cell)
        width, height = fit_size(info.width, info.height, cell=cell, max_cells=max_cells)
        num_tokens = (latent_frames // pt) * (height // (SPACE_STRIDE * ph)) * (width // (SPACE_STRIDE * pw))
        return ClipEntry(path, caption, info, 1 + (latent_frames - 1) * TIME_STRIDE, width, height, num_tokens)

    def names(self) -> list[str]:
        """Return the clips' names, relative to the folder."""
        return [entry.path.relative_to(self.config.folder).as_posix() for entry in self.entries]

    def caption(self, index: int, epoch: int) -> str:
        """Return the caption of a clip, the same in every epoch."""
        return self.entries[index].caption

    def key(self, index: int, epoch: int) -> tuple[object, ...]:
        """Return all that decides an epoch's pixels: the file's path, size and time, the window, rate and size."""
        entry, stat = self.entries[index], self.entries[index].path.stat()
        file = (entry.path.resolve(), stat.st_size, stat.st_mtime_ns)
        start = f"{self.start_seconds(index, epoch):.4f}"
        return *file, start, self.config.fps, entry.frames, entry.width, entry.height

    def report(self, index: int, reason: str) -> None:
        """Log a file that failed while it was read, once."""
        path = self.entries[index].path
        if path not in dict(self.problems):
            self.problems.append((path, reason))
            self.log(f"not used: {path}: {reason}")

    def start_seconds(self, index: int, epoch: int) -> float:
        """Return where in the file this epoch's window begins, one of config.windows random places."""
        entry = self.entries[index]
        slack = entry.info.seconds - entry.frames / self.config.fps
        if slack <= 1 / self.config.fps:
            return 0.0
        window = epoch % self.config.windows
        return slack * torch.rand((), generator=step_generator(self.seed, window, index)).item()

    def read(self, index: int, epoch: int = 0) -> Clip:
        """Decode the clip of an epoch at the config's frame rate, scaled and cropped to its entry's size."""
        entry = self.entries[index]
        frames = read_video(
            entry.path,
            fps=self.config.fps,
            start_seconds=self.start_seconds(index, epoch),
            num_frames=entry.frames,
            transform=lambda chunk: scale_and_crop(chunk, entry.width, entry.height),
        )
        num_frames = 1 + (len(frames) - 1) // TIME_STRIDE * TIME_STRIDE  # A file may end before its header says.
        return Clip(rearrange(frames[:num_frames], "t c h w -> c t h w"), entry.caption)


def epoch_order(indices: Sequence[int], seed: int, epoch: int) -> list[int]:
    """Shuffle the indices for one epoch: a function of its arguments alone."""
    order = torch.randperm(len(indices), generator=step_generator(seed, epoch))
    return [indices[i] for i in order.tolist()]
