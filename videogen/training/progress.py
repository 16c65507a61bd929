"""Report a training run's progress: log.jsonl, trackers such as TensorBoard, and a progress bar on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from videogen.config.parsing import dotted, to_mapping
from videogen.config.train import TrainConfig
from videogen.data.files import save_text
from videogen.data.pictures import read_image_file

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

LOG = "log.jsonl"
COUNTS = ("tokens", "clips", "fill")
"""Values of a loss that add up over the packs of a step; all others are means, each pack by its weight."""


def read_log(run_dir: Path) -> list[dict[str, object]]:
    """Read the rows of a log, the last of each kind where a step has several; what a kill left of a row is left out."""
    path = run_dir / LOG
    if path.exists() and not path.is_file():  # whoever opens a fifo waits for its other end
        raise ValueError(f"{path} is no regular file; remove it to go on")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    rows = {(row["step"], is_validation(row)): row for row in map(read_row, lines) if row}
    return list(rows.values())


def read_row(line: str) -> dict[str, object]:
    """Read a row of a log; where half a row has another glued to it, the other; an empty one where there is none."""
    for start in (0, line.rfind('{"step"')):
        try:
            row = json.loads(line[max(0, start) :])
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            return row
    return {}


def is_validation(row: Mapping[str, object]) -> bool:
    """True if a row of a log holds the metrics of the held-out clips."""
    return any(key.startswith("val_") for key in row)


def cut_log(run_dir: Path, step: int, *, validates: bool) -> None:
    """Cut a log back to a step, as it read then: without later rows, and where the step does not validate, without that
    of a run that left there.
    """
    rows = [row for row in read_log(run_dir) if int(str(row["step"])) <= step]
    rows = [row for row in rows if validates or not is_validation(row) or row["step"] != step]
    text, path = "".join(json.dumps(row) + "\n" for row in rows), run_dir / LOG
    if path.is_file() and path.read_bytes() != text.encode():
        save_text(path, text)


def check_trackers(report_to: str) -> None:
    """Refuse a tracker that accelerate does not know, or whose package is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = [str(name) for name in get_available_trackers()]
    for name in named_trackers(report_to):
        if name not in LOGGER_TYPE_TO_CLASS:
            allowed = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise ValueError(f"run.report_to must be auto, none, or of {allowed}, got {name!r}")
        if name not in installed:
            raise ValueError(f"run.report_to = {name!r} needs a package that is not installed: pip install {name}")


def named_trackers(report_to: str) -> list[str]:
    """List the trackers of run.report_to by name; none for auto and none."""
    names = [name.strip() for name in report_to.split(",")]
    return [] if names in (["auto"], ["none"]) else names


def open_trackers(run_dir: Path, step: int, config: TrainConfig | None) -> list[GeneralTracker]:
    """Open the trackers of a recipe, and tell those that it names its settings."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, is_tensorboard_available

    report_to = "auto" if config is None else config.run.report_to
    names = named_trackers(report_to)
    if report_to == "auto" and is_tensorboard_available():
        names = ["tensorboard"]
    trackers: list[GeneralTracker] = []
    for name in names:
        kind = LOGGER_TYPE_TO_CLASS[name]
        # TensorBoard leaves out what it was told of later steps before. The others name runs within a project.
        options: dict[str, object] = {"purge_step": step + 1} if step and name == "tensorboard" else {}
        options |= {"name": run_dir.name} if name in ("wandb", "trackio") else {}
        folder = (run_dir,) if kind.requires_logging_directory else ()
        tracker = kind("tensorboard" if name == "tensorboard" else "videogen", *folder, **options)
        tracker.start()
        if config is not None and report_to != "auto":
            settings = dotted(to_mapping(config))
            plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in settings}
            tracker.store_init_configuration(plain)
        trackers.append(tracker)
    return trackers


def average_packs(packs: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """Join the losses of a step's packs to those of one large pack."""
    shares = [weight / sum(weights) for weight in weights]
    return {
        name: sum(pack[name] * (1 if name in COUNTS else share) for pack, share in zip(packs, shares, strict=True))
        for name in packs[0]
    }


class RunLog:
    """The metrics of a run: one line of log.jsonl per call, and the trackers of the recipe."""

    def __init__(self, run_dir: Path, step: int = 0, config: TrainConfig | None = None) -> None:
        self.path = run_dir / LOG
        self.trackers = open_trackers(run_dir, step, config)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values after a step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self.trackers:
            tracker.log(dict(values), step=step)

    def show(self, step: int, sheet: Path) -> None:
        """Give the trackers that take pictures the sheet of a step's samples, where there is one."""
        if not sheet.is_file():
            return
        from accelerate.tracking import TensorBoardTracker

        picture = read_image_file(sheet)
        for tracker in self.trackers:
            if (log_images := getattr(tracker, "log_images", None)) is not None:
                layout = {"dataformats": "NHWC"} if isinstance(tracker, TensorBoardTracker) else {}
                log_images({"samples": picture}, step=step, **layout)

    def close(self) -> None:
        """Let the trackers write what they hold back."""
        for tracker in self.trackers:
            tracker.finish()


class Meter:
    """Averages the metrics of ten steps at a time and logs the means; a resumed run begins with an earlier window."""

    def __init__(self, log: RunLog | None, num_processes: int = 1, window: Sequence[dict[str, float]] = ()) -> None:
        self.log, self.num_processes = log, num_processes
        self.window, self.num_earlier, self.clock = list(window), len(window), time.monotonic()

    def start(self) -> None:
        """Start the clock by which speeds are measured."""
        self.clock = time.monotonic()

    def add(self, step: int, values: dict[str, float]) -> str:
        """Add a step's metrics; return a message for the bar after every tenth step, else an empty string."""
        self.window.append(values)
        if step % 10:
            return ""
        num_steps, elapsed = len(self.window) - self.num_earlier, time.monotonic() - self.clock
        keys = dict.fromkeys(key for metrics in self.window for key in metrics)
        columns = {key: [metrics[key] for metrics in self.window if key in metrics] for key in keys}
        means = {key: sum(column) / len(column) for key, column in columns.items()}
        means["tokens_per_second"] = means.get("tokens", 0.0) * num_steps * self.num_processes / elapsed
        means["steps_per_second"] = num_steps / elapsed
        if self.log is not None:
            self.log.write(step, means)
        self.window, self.num_earlier, self.clock = [], 0, time.monotonic()
        loss = f"loss {means['loss']:.4f} · " if "loss" in means else ""  # of skipped steps it is not finite
        message = f"{loss}{means['tokens_per_second']:,.0f} tokens/s"
        return message + (f" · fill {means['fill']:.1%}" if "fill" in means else "")


def progress_bar(*, disable: bool = False) -> Progress:
    """Make a progress bar on stderr that shows the step, the loop's message and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    columns = (*columns, TextColumn("{task.fields[message]}"), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=disable)
