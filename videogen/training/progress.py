"""Report a training run's progress: log.jsonl, TensorBoard if it is installed, and a progress bar on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class RunLog:
    """The metrics of a run: one line of log.jsonl per call, and TensorBoard if it is installed."""

    def __init__(self, run_dir: Path) -> None:
        from accelerate.tracking import TensorBoardTracker, is_tensorboard_available

        self.path = run_dir / "log.jsonl"
        self.tracker = TensorBoardTracker("tensorboard", run_dir) if is_tensorboard_available() else None
        if self.tracker is not None:
            self.tracker.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values after a step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.tracker is not None:
            self.tracker.log(dict(values), step=step)


class Meter:
    """Averages the metrics of ten steps at a time and logs the means."""

    def __init__(self, log: RunLog | None, num_processes: int = 1) -> None:
        self.log, self.num_processes = log, num_processes
        self.window, self.clock = list[dict[str, float]](), time.monotonic()

    def add(self, step: int, values: dict[str, float]) -> str:
        """Add a step's metrics; return a message for the bar after every tenth step, else an empty string."""
        self.window.append(values)
        if step % 10:
            return ""
        num_steps, elapsed = len(self.window), time.monotonic() - self.clock
        keys = dict.fromkeys(key for metrics in self.window for key in metrics)
        columns = {key: [metrics[key] for metrics in self.window if key in metrics] for key in keys}
        means = {key: sum(column) / len(column) for key, column in columns.items()}
        means["tokens_per_second"] = means.get("tokens", 0.0) * num_steps * self.num_processes / elapsed
        means["steps_per_second"] = num_steps / elapsed
        if self.log is not None:
            self.log.write(step, means)
        self.window, self.clock = [], time.monotonic()
        message = f"loss {means['loss']:.4f} · {means['tokens_per_second']:,.0f} tokens/s"
        return message + (f" · fill {means['fill']:.1%}" if "fill" in means else "")


def progress_bar(*, disable: bool = False) -> Progress:
    """Make a progress bar on stderr that shows the step, the loop's message and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    columns = (*columns, TextColumn("{task.fields[message]}"), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=disable)
