"""Read a folder of captioned videos as training clips: every file at its own size and length, none dropped in silence.

    folder  ->  VideoFolder: entries (path, caption, size, frames, token count)  ->  Clip (3, t, h, w) in [-1, 1]

The layout is Hugging Face's `videofolder` (videos in any sub-folders; metadata.csv, .jsonl or .parquet with file_name
and text), or a clip.txt beside clip.mp4. Which window of a long file is read depends on seed, epoch and the file's name
alone. Every file is judged (clip_plan.py); one that cannot be used is named.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from videogen.config.sizes import TIME_STRIDE
from videogen.config.train import DataConfig
from videogen.data.clip_plan import find_scenes, judge_clip, plan_clip
from videogen.data.findings import KINDS, Finding, printable
from videogen.data.frame_findings import judge_frames
from videogen.data.judgement import Judgement
from videogen.data.judgement_cache import JudgementCache, open_judgements
from videogen.data.listing import list_folder
from videogen.data.manifest import load_hashed_tensors, save_hashed_tensors
from videogen.data.splits import name_hash
from videogen.data.video_io import VideoInfo, read_video
from videogen.packing.noise import step_generator
from videogen.packing.patch_schedule import Patch


class Clip(NamedTuple):
    """A video and its caption."""

    video: Tensor  # (3, t, h, w) in [-1, 1]
    caption: str


@dataclass(frozen=True)
class ClipEntry:
    """A usable file of a folder, with the frames, size and token count of the clip that is read from it."""

    path: Path
    captions: tuple[str, ...]
    info: VideoInfo
    frames: int
    width: int
    height: int
    num_tokens: int
    start: float = 0.0  # of its scene in the file, in seconds; info has the scene's length
    scene: str = ""  # of a file with cuts: told from its other scenes by this end of its name, as in film.mp4#t=12.50


def judge_scenes(path: Path, known: JudgementCache, scenes_over: float | None) -> Judgement:
    """Judge a file by its header, and one of more seconds by all of its frames, which tells where its cuts are."""
    judgement = known.judge(path)
    if scenes_over is None or judgement.info is None or judgement.info.seconds <= scenes_over:
        return judgement
    return known.judge(path, deep=judge_frames)


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
        listing = list_folder(config.folder, follow_links=config.follow_links)
        listing.check_tables()
        self.problems += [(path, finding.words) for path, finding in listing.findings if finding.level == "unusable"]
        noticed = defaultdict[str, list[tuple[Path, Finding]]](list)
        with open_judgements() as known, ThreadPoolExecutor() as pool:
            judge = partial(judge_scenes, known=known, scenes_over=config.scenes_over)
            judged = pool.map(lambda path: judge_clip(path, listing.captions, config, patch, judge), listing.clips)
            for path, (judgement, captions, shape) in zip(listing.clips, judged, strict=True):
                scenes = self._list_scenes(path, captions, judgement) if shape is not None else []
                for finding in judgement.findings:
                    if not (scenes and finding.kind == "cuts"):  # which no clip reaches across
                        noticed[finding.kind].append((path, finding))
                if judgement.info is not None and shape is not None:
                    self.entries += scenes or [ClipEntry(path, captions, judgement.info, *shape)]
                elif (fault := judgement.fault) is not None:
                    self.problems.append((path, fault.words))
        self._report(noticed, len(self.entries) + len(self.problems))
        if not self.entries:
            raise ValueError(
                f"none of the {len(self.problems)} videos in {config.folder} can be used: {self.problems[0][1]}"
            )

    def _report(self, noticed: Mapping[str, Sequence[tuple[Path, Finding]]], num_files: int) -> None:
        for path, reason in self.problems:
            self.log(f"not used: {printable(path)}: {printable(reason)}")
        if self.problems:
            self.log(f"{len(self.problems)} of {num_files} files of {self.config.folder} cannot be used")
        for kind, found in noticed.items():
            if KINDS[kind].level == "warning":
                path, finding = found[0]
                more = f", and {len(found) - 1} more: videogen doctor names them" if len(found) > 1 else ""
                self.log(f"used, but {KINDS[kind].title}: {printable(path)}: {finding.words}{more}")

    def _list_scenes(self, path: Path, captions: tuple[str, ...], judgement: Judgement) -> list[ClipEntry]:
        """List the scenes of a file with cuts, each a clip; none where its cuts were not looked for."""
        info, entries = judgement.info, list[ClipEntry]()
        if self.config.scenes_over is None or info is None or not judgement.facts.get("cuts"):
            return entries
        for start, seconds in find_scenes(judgement):
            scene = info._replace(seconds=seconds, num_frames=max(1, int(seconds * info.fps)))
            shape = plan_clip(scene, self.config, self.patch)
            entries.append(ClipEntry(path, captions, scene, *shape, start=start, scene=f"#t={start:.2f}"))
        if entries:
            scenes = "1 scene is a clip" if len(entries) == 1 else f"{len(entries)} scenes are clips each"
            self.log(f"{printable(path)} has cuts: its {scenes}")
        return entries

    def names(self) -> list[str]:
        """Return the clips' names, relative to the folder; a scene's has its start as a media fragment."""
        return [self._name(entry) for entry in self.entries]

    def _name(self, entry: ClipEntry) -> str:
        return entry.path.relative_to(self.config.folder).as_posix() + entry.scene

    def caption(self, index: int, epoch: int) -> str:
        """Return the caption of a clip; the epochs read several in turn."""
        captions = self.entries[index].captions
        return captions[epoch % len(captions)]

    def key(self, index: int, epoch: int) -> tuple[object, ...]:
        """Return all that decides an epoch's pixels: the file's path, size and time, the window, rate and size."""
        entry, stat = self.entries[index], self.entries[index].path.stat()
        file = (entry.path.resolve(), stat.st_size, stat.st_mtime_ns)
        start = f"{self.start_seconds(index, epoch):.4f}"
        return *file, start, self.config.fps, entry.frames, entry.width, entry.height

    def report(self, index: int, reason: str) -> None:
        """Log a file that failed while it was read, once."""
        path = self.entries[index].path
        reason = reason.removeprefix(f"cannot read {path}: ")
        if path not in dict(self.problems):
            self.problems.append((path, reason))
            self.log(f"not used: {printable(path)}: {printable(reason)}")

    def num_windows(self, index: int) -> int:
        """Count the windows of a file that the epochs read: one if the file is hardly longer than a clip."""
        return self.config.windows if self._spare_seconds(index) else 1

    def _spare_seconds(self, index: int) -> float:
        """Return how much longer than a clip a file or scene is; 0 where that is less than a frame."""
        entry = self.entries[index]
        spare = entry.info.seconds - entry.frames / self.config.fps
        return spare if spare > 1 / self.config.fps else 0.0

    def start_seconds(self, index: int, epoch: int) -> float:
        """Return where in the file this epoch's window begins, one of config.windows random places."""
        entry, spare = self.entries[index], self._spare_seconds(index)
        if not spare:
            return entry.start
        clip, window = int.from_bytes(name_hash(self._name(entry), self.seed)[:8]), epoch % self.config.windows
        return entry.start + spare * torch.rand((), generator=step_generator(self.seed, clip, window)).item()

    def read(self, index: int, epoch: int = 0) -> Clip:
        """Read the clip of an epoch: decoded from its file, or as an earlier reading kept it in data.decoded."""
        if (folder := self.config.decoded) is None:
            frames = self.decode(index, epoch)
        else:
            digest = hashlib.sha256("|".join(map(str, self.key(index, epoch))).encode()).hexdigest()
            path = folder / digest[:2] / f"{digest[2:34]}.safetensors"
            frames = load_kept(path, lambda: ((self.decode(index, epoch) + 1) * 127.5).round().to(torch.uint8))
            frames = frames / 127.5 - 1
        num_frames = 1 + (len(frames) - 1) // TIME_STRIDE * TIME_STRIDE  # A file may end before its header says.
        return Clip(rearrange(frames[:num_frames], "t c h w -> c t h w"), self.caption(index, epoch))

    def decode(self, index: int, epoch: int) -> Tensor:
        """Decode the frames (t, 3, h, w) of an epoch at the config's frame rate, scaled and cropped to their entry."""
        entry = self.entries[index]
        return read_video(
            entry.path,
            fps=self.config.fps,
            start_seconds=self.start_seconds(index, epoch),
            num_frames=entry.frames,
            transform=lambda chunk: scale_and_crop(chunk, entry.width, entry.height),
        )


def load_kept(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """Load a tensor from its file; make and write it where the file is missing or damaged."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return load_hashed_tensors(path)["frames"]
    frames = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_hashed_tensors({"frames": frames}, path)
    return frames


def epoch_order(indices: Sequence[int], seed: int, epoch: int) -> list[int]:
    """Shuffle the indices for one epoch: a function of its arguments alone."""
    order = torch.randperm(len(indices), generator=step_generator(seed, epoch))
    return [indices[i] for i in order.tolist()]
