"""A folder of captioned videos as clips to train on: every file at its own size and length, none dropped in silence.

    folder  ->  VideoFolder: entries (path, caption, size, frames, token count)  ->  Clip (3, t, h, w) in [-1, 1]

Layout: Hugging Face `videofolder` (videos in any sub-folders; metadata.csv, .jsonl or .parquet with file_name and text)
or a clip.txt beside clip.mp4. Which stretch of a long file is read depends on (seed, epoch, index) alone.
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
from videogen.data.captions import read_captions, read_text
from videogen.data.files import files_in
from videogen.data.video_decode import PICTURES
from videogen.data.video_io import VideoInfo, probe, read_video
from videogen.packing.noise import step_generator
from videogen.packing.patch_schedule import Patch

SUFFIXES = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".ogv", ".vob", ".mxf", ".f4v", ".asf", ".mpe", ".m2v", ".qt", ".y4m", ".gif", *PICTURES,
)  # fmt: skip


class Clip(NamedTuple):
    """What is trained on."""

    video: Tensor  # (3, t, h, w) in [-1, 1]
    caption: str


@dataclass(frozen=True)
class Entry:
    """A usable file of a folder and what becomes of it."""

    path: Path
    caption: str
    info: VideoInfo
    frames: int
    width: int
    height: int
    num_tokens: int


def fit_size(width: int, height: int, *, cell: int, max_cells: int) -> tuple[int, int]:
    """The largest size (width, height) in multiples of cell pixels that a frame shrinks to without being distorted.

    The frame is scaled until it covers the size, and what sticks out is cropped, less than half a cell: b cells on the
    shorter side ask for a = round(b·long/short) on the longer, and the largest b that fits is taken.
    """
    long, short = max(width, height), min(width, height)
    for b in range(max(1, short // cell), 0, -1):
        a = max(1, round(b * long / short))
        fits = a * cell <= long or b == 1  # never enlarged, but for a frame smaller than one cell
        if fits and a * b <= max_cells:
            return (a * cell, b * cell) if width >= height else (b * cell, a * cell)
    least = max(1, round(long / short))
    raise ValueError(f"{width}x{height} needs at least {least} tokens a frame, got room for {max_cells}")


def cover(frames: Tensor, width: int, height: int) -> Tensor:
    """Frames (t, h, w, 3) uint8, scaled to cover width x height and cropped evenly, as (t, 3, h, w) in [-1, 1]."""
    old_height, old_width = frames.shape[1:3]
    video = rearrange(frames, "t h w c -> t c h w").float() / 127.5 - 1
    if (old_width, old_height) != (width, height):
        scale = max(width / old_width, height / old_height)
        size = (max(height, round(old_height * scale)), max(width, round(old_width * scale)))
        video = torch.nn.functional.interpolate(video, size, mode="bicubic", antialias=True, align_corners=False)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        video = video[..., top : top + height, left : left + width].clamp(-1, 1)
    return video


def clips_in(folder: Path) -> set[Path]:
    """The files that are meant as clips: by their suffix, or since a caption lies beside them and beside no other."""
    files = set(files_in(folder))
    clips = {path for path in files if path.suffix.lower() in SUFFIXES}
    told = {path.with_suffix("") for path in files if path.suffix == ".txt"} - {path.with_suffix("") for path in clips}
    return clips | {path for path in files if path.suffix not in ("", ".txt") and path.with_suffix("") in told}


def to_stderr(line: str) -> None:
    """Say something to who runs the program."""
    sys.stderr.write(f"{line}\n")


class VideoFolder:
    """What is in a folder, known from the files' headers and one frame of each, and its clips on request."""

    def __init__(
        self, config: DataConfig, patch: Patch, *, seed: int = 0, say: Callable[[str], object] | None = None
    ) -> None:
        self.config, self.patch, self.seed = config, patch, seed
        self.say = say = say or to_stderr
        self.entries: list[Entry] = []
        self.problems: list[tuple[Path, str]] = []
        if not config.folder.is_dir():
            raise ValueError(f"no folder {config.folder}; give one with videos in it and captions beside them")
        captions = read_captions(config.folder)
        named = {config.folder / name for name in captions if (config.folder / name).is_file()}
        paths = sorted(named | clips_in(config.folder))
        if not paths:
            raise ValueError(f"no videos in {config.folder}; it may hold {', '.join(SUFFIXES)} in any sub-folders")
        with ThreadPoolExecutor() as pool:
            for path, found in zip(paths, pool.map(lambda path: self._try_entry(path, captions), paths), strict=True):
                if isinstance(found, Entry):
                    self.entries.append(found)
                else:
                    self.problems.append((path, found))
        names = {path.relative_to(config.folder).as_posix() for path in paths}
        gone = [name for name in captions if name not in names]
        self.problems += [(config.folder / name, "its caption is there but the file is not") for name in gone]
        for path, reason in self.problems[:20]:
            say(f"not used: {path}: {reason}")
        if self.problems:
            say(f"{len(self.problems)} of {len(paths) + len(gone)} files of {config.folder} cannot be used")
        if not self.entries:
            raise ValueError(f"none of the {len(paths)} videos in {config.folder} can be used: {self.problems[0][1]}")

    def _try_entry(self, path: Path, captions: dict[str, str]) -> Entry | str:
        try:
            return self._entry(path, captions)
        except (ValueError, OSError) as error:
            return str(error)

    def _entry(self, path: Path, captions: dict[str, str]) -> Entry:
        name = path.relative_to(self.config.folder).as_posix()
        sidecar = path.with_suffix(".txt")
        caption = captions.get(name) or (read_text(sidecar).strip() if sidecar.is_file() else "")
        if not caption:
            raise ValueError(f"no caption; add a row to metadata.csv or write {sidecar.name} beside it")
        info = probe(path)
        seconds = min(info.seconds, self.config.max_seconds)
        frames = max(1, math.floor(seconds * self.config.fps + 1e-3))
        pt, ph, pw = self.patch
        cell, per_cell = SPACE_STRIDE * max(ph, pw), max(ph, pw) ** 2 // (ph * pw)  # cells are square, not all patches
        smallest = max(1, round(max(info.width, info.height) / min(info.width, info.height)))
        longest = (self.config.max_tokens // (smallest * per_cell)) * pt  # latent frames that fit at the smallest size
        if longest < pt:
            limit = self.config.max_tokens
            raise ValueError(f"one frame of {info.width}x{info.height} needs more than data.max_tokens = {limit}")
        latent_frames = min(1 + (frames - 1) // TIME_STRIDE, longest)
        latent_frames -= latent_frames % pt if latent_frames >= pt else 0
        room = self.config.max_tokens // (max(1, latent_frames // pt) * per_cell)
        width, height = fit_size(info.width, info.height, cell=cell, max_cells=room)
        tokens = (latent_frames // pt) * (height // (SPACE_STRIDE * ph)) * (width // (SPACE_STRIDE * pw))
        return Entry(path, caption, info, 1 + (latent_frames - 1) * TIME_STRIDE, width, height, tokens)

    def split(self) -> tuple[list[int], list[int]]:
        """Indices to train on and indices held out, drawn by the seed; at least one of each where there are two."""
        return hold_out(len(self.entries), self.config.val_clips, self.seed)

    def caption(self, index: int) -> str:
        """What is said of a clip."""
        return self.entries[index].caption

    def key(self, index: int, epoch: int) -> tuple[object, ...]:
        """All that decides the content of an epoch's clip: the file's path, size and time, the stretch, the target."""
        entry, stat = self.entries[index], self.entries[index].path.stat()
        file = (entry.path.resolve(), stat.st_size, stat.st_mtime_ns)
        return *file, f"{self.start_of(index, epoch):.4f}", self.config.fps, entry.frames, entry.width, entry.height

    def report(self, index: int, reason: str) -> None:
        """Name a file that failed while it was read, once."""
        path = self.entries[index].path
        if path not in dict(self.problems):
            self.problems.append((path, reason))
            self.say(f"not used: {path}: {reason}")

    def start_of(self, index: int, epoch: int) -> float:
        """Where in the file this epoch's stretch begins, in seconds."""
        entry = self.entries[index]
        slack = entry.info.seconds - entry.frames / self.config.fps
        if slack <= 1 / self.config.fps:
            return 0.0
        turn = epoch % self.config.windows
        return slack * torch.rand((), generator=step_generator(self.seed, turn, index)).item()

    def read(self, index: int, epoch: int = 0) -> Clip:
        """The clip of an epoch: decoded, at the config's frame rate, scaled and cropped to its size."""
        entry = self.entries[index]
        frames = read_video(
            entry.path,
            fps=self.config.fps,
            start_seconds=self.start_of(index, epoch),
            num_frames=entry.frames,
            each=lambda chunk: cover(chunk, entry.width, entry.height),
        )
        whole = 1 + (len(frames) - 1) // TIME_STRIDE * TIME_STRIDE  # a file may end before its header says
        return Clip(rearrange(frames[:whole], "t c h w -> c t h w"), entry.caption)


def hold_out(num: int, num_held: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and indices held out, drawn by the seed; at least one of each where there are two."""
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed)).tolist()
    num_held = min(num_held, len(order) // 2)
    return sorted(order[num_held:]), sorted(order[:num_held])


def epoch_order(indices: Sequence[int], seed: int, epoch: int) -> list[int]:
    """The indices in the order of one epoch."""
    order = torch.randperm(len(indices), generator=step_generator(seed, epoch))
    return [indices[i] for i in order.tolist()]
