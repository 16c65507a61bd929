"""What a training run says of itself: log.jsonl, TensorBoard where it is installed, and a line on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Log:
    """Numbers of a run: a line of log.jsonl each time, and TensorBoard where it is installed."""

    def __init__(self, run_dir: Path) -> None:
        from accelerate.tracking import TensorBoardTracker, is_tensorboard_available

        self.path = run_dir / "log.jsonl"
        self.tracker = TensorBoardTracker("tensorboard", run_dir) if is_tensorboard_available() else None
        if self.tracker is not None:
            self.tracker.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values after a step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.tracker is not None:
            self.tracker.log(dict(values), step=step)


class Meter:
    """Averages the numbers of ten steps at a time, logs them, and says them in a few words."""

    def __init__(self, log: Log | None, num_processes: int = 1) -> None:
        self.log, self.num_processes = log, num_processes
        self.window, self.clock = list[dict[str, float]](), time.monotonic()

    def add(self, step: int, values: dict[str, float]) -> str:
        """Take a step's numbers; after every tenth, what to show."""
        self.window.append(values)
        if step % 10:
            return ""
        num, elapsed = len(self.window), time.monotonic() - self.clock
        rows: dict[str, list[float]] = {}
        for key, value in (item for one in self.window for item in one.items()):
            rows.setdefault(key, []).append(value)
        shown = {key: sum(row) / len(row) for key, row in rows.items()}
        shown["tokens_per_second"] = shown.get("tokens", 0.0) * num * self.num_processes / elapsed
        shown["steps_per_second"] = num / elapsed
        if self.log is not None:
            self.log.write(step, shown)
        self.window, self.clock = [], time.monotonic()
        said = f"loss {shown['loss']:.4f} · {shown['tokens_per_second']:,.0f} tokens/s"
        return said + (f" · fill {shown['fill']:.1%}" if "fill" in shown else "")


def progress_bar(*, disable: bool = False) -> Progress:
    """Bar, step, what the loop says, and time left, on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    columns = (*columns, TextColumn("{task.fields[said]}"), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=disable)
