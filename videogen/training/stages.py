"""Choose what is trained: the VAE on pixels, then the DiT on its latents.

TrainConfig  ->  VaeStage or DitStage, each a Stage: what the trainer asks of them

A stage's batches are a pure function of (config, step): the order of the data is never saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from videogen.config.train import TrainConfig
from videogen.data.splits import Split
from videogen.sampling.gguf_files import require
from videogen.training.dit_stage import DitStage
from videogen.training.run_checkpoints import Stretch
from videogen.training.vae_stage import VaeStage

Batch = TypeVar("Batch")
MicroBatch = TypeVar("MicroBatch")


class Stage(Protocol[Batch, MicroBatch]):
    """The model, batches and loss of one kind of training."""

    model: nn.Module
    objective: nn.Module  # what `loss` calls: the model, or a module around it
    clip_split: Split  # the clips that are trained on, and those held out
    cache_bytes: int  # about what the run keeps on disk of its clips

    def to_device(self, device: torch.device) -> None:
        """Move the frozen models to the trained model's device."""
        ...

    def batches(self, start: int, every: int = 1, earlier: Sequence[Stretch] = ()) -> Iterator[Batch]:
        """Yield the batches start, start + every, ... after those of earlier stretches with other packs a step.

        optim.accumulate of them are those of a step. Each depends on its number and on the stretches alone, in a
        resumed run too.
        """
        ...

    def split(self, batch: Batch, max_tokens: int) -> Iterator[MicroBatch]:
        """Yield micro-batches of at most max_tokens tokens, or of one clip, whose losses add up to the batch's."""
        ...

    def longest_clip(self, batch: Batch) -> int:
        """Return the number of tokens of a batch's longest clip: no micro-batch can be smaller."""
        ...

    def loss(self, model: nn.Module, micro_batch: MicroBatch, batch_number: int) -> dict[str, Tensor]:
        """Return the loss of the objective as "loss", and further values to log; the bar shows "tokens" and "fill".

        "weight", which is not logged, is how much the loss of the whole batch counts in the mean over a step's.
        """
        ...

    def clip_names(self, batch: Batch, batch_number: int) -> list[str]:
        """Name the clips of a batch."""
        ...

    def validate(self) -> dict[str, float]:
        """Return the metrics of the held-out clips."""
        ...

    def preview(self, step: int, out_dir: Path) -> None:
        """Write samples of the averaged model."""
        ...

    def export(self, out_dir: Path) -> None:
        """Write the model with its current weights as a checkpoint folder."""
        ...


def make_stage(config: TrainConfig) -> VaeStage | DitStage:
    """Make the stage that a recipe names; raises a ValueError where a package that it needs is not installed."""
    for name, value in (("optim.optimizer", config.optim.optimizer), ("dit.base_dtype", config.dit.base_dtype)):
        if value in ("adamw8bit", "nf4"):
            require("bitsandbytes", f"{name} = {value!r}")
    return {"vae": VaeStage, "dit": DitStage}[config.stage](config)
