"""Read several folders as one: each clip by the settings of its own set.

DataConfig with sets  ->  ClipSets: the entries of all, one behind the other  ->  Clip
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from videogen.config.clip_sets import ClipSet
from videogen.config.train import DataConfig
from videogen.data.folder import Clip, VideoFolder, log_to_stderr
from videogen.packing.patch_schedule import Patch


def config_of(one: ClipSet, data: DataConfig) -> DataConfig:
    """Return the settings by which the folder of a set is read."""
    fps = one.fps or data.fps
    max_seconds = data.max_seconds if one.frames is None else one.frames / fps
    return replace(data, sets=(), folder=one.folder, fps=fps, max_seconds=max_seconds, max_size=one.size)


class ClipSets(VideoFolder):
    """The clips of several folders, numbered through."""

    def __init__(
        self, config: DataConfig, patch: Patch, *, seed: int = 0, log: Callable[[str], object] = log_to_stderr
    ) -> None:
        self.config, self.patch, self.seed, self.log = config, patch, seed, log
        self.folders = [VideoFolder(config_of(one, config), patch, seed=seed, log=log) for one in config.sets]
        self.entries = [entry for folder in self.folders for entry in folder.entries]
        self.problems = [problem for folder in self.folders for problem in folder.problems]
        self.places = [(folder, index) for folder in self.folders for index in range(len(folder.entries))]
        self.repeats = [
            one.repeats for one, folder in zip(config.sets, self.folders, strict=True) for _ in folder.entries
        ]

    def names(self) -> list[str]:
        """Return the clips' names, each with its set's folder before it."""
        return [f"{folder.config.folder.as_posix()}/{name}" for folder in self.folders for name in folder.names()]

    def key(self, index: int, epoch: int) -> tuple[object, ...]:
        """Return all that decides an epoch's pixels."""
        folder, place = self.places[index]
        return folder.key(place, epoch)

    def report(self, index: int, reason: str) -> None:
        """Log a file that failed while it was read, once."""
        folder, place = self.places[index]
        folder.report(place, reason)
        self.problems = [problem for folder in self.folders for problem in folder.problems]

    def start_seconds(self, index: int, epoch: int) -> float:
        """Return where in the file this epoch's window begins."""
        folder, place = self.places[index]
        return folder.start_seconds(place, epoch)

    def read(self, index: int, epoch: int = 0) -> Clip:
        """Read the clip of an epoch."""
        folder, place = self.places[index]
        return folder.read(place, epoch)

    def decode(self, index: int, epoch: int) -> Tensor:
        """Decode the frames (t, 3, h, w) of an epoch."""
        folder, place = self.places[index]
        return folder.decode(place, epoch)
