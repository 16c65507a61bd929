"""Tell what is due after a step of a run, and what a run that was killed has not written.

RunConfig, step  ->  RunParts: checkpoint, validation, samples
"""

from __future__ import annotations

from typing import NamedTuple

from videogen.config.train import RunConfig
from videogen.data.manifest import find_fault
from videogen.training.progress import is_validation, read_log


class RunParts(NamedTuple):
    """Which of the parts that a run leaves are meant."""

    checkpoint: bool
    validation: bool
    samples: bool


def is_validation_due(run: RunConfig, step: int) -> bool:
    """True after the steps that are validated in a run that nothing interrupts."""
    return step % run.val_every == 0 or step >= run.steps


def are_samples_due(run: RunConfig, step: int) -> bool:
    """True after the steps that are sampled in a run that nothing interrupts."""
    num = step // run.sample_every if run.sample_every and step % run.sample_every == 0 else 0
    is_due = num > 0 and not (run.sample_rarer and num & (num - 1))  # or where num is a power of two
    return is_due or step >= run.steps


def find_missing(run: RunConfig, step: int, *, validates: bool, samples: bool) -> RunParts:
    """Find what a run should have left with its last saved step; whether it validates and samples at all is given.

    Missing are the checkpoint of a complete run, also where it is damaged, a validation that is not in the log, and
    samples whose sheet, the last of their files, is not there.
    """
    folder, sheet = run.dir / "checkpoint", run.dir / "samples" / f"step_{step:06d}.png"
    validated = any(row["step"] == step and is_validation(row) for row in read_log(run.dir))
    return RunParts(
        checkpoint=step >= run.steps and (not folder.is_dir() or any(map(find_fault, (folder, folder / "vae")))),
        validation=validates and step > 0 and is_validation_due(run, step) and not validated,
        samples=samples and step > 0 and are_samples_due(run, step) and not sheet.is_file(),
    )
