"""Estimate the memory that a training step takes, part by part, from configs alone: nothing is loaded.

network on the meta device, recipe, weights of the frozen models  ->  StepMemory
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

OVERHEAD = 600_000_000  # of Python, torch and its kernels
MOMENT_BYTES = {"adamw": 8.0, "muon": 8.0, "adamw8bit": 2 + 8 / 256}
"""Bytes of an optimizer's state for each trained value; of 256 in 8 bits each moment has a scale in float32."""


class StepMemory(NamedTuple):
    """The bytes that a training step takes."""

    base: int  # the transformer below a LoRA, which is not trained
    vae: int
    text_encoder: int
    trained: int  # trained weights, their gradients and their averages
    optimizer: int
    activations: int

    def total(self, *, encoder_waits: bool) -> int:
        """Add up the parts; an encoder that waits on the host comes only while there are no activations."""
        at_once = max if encoder_waits else sum
        parts = self.base + self.vae + self.trained + self.optimizer
        return parts + at_once((self.text_encoder, self.activations)) + OVERHEAD


def count_activations(config: Mapping[str, int], tokens: int, *, recompute: bool) -> int:
    """Count the bytes that a pack's tokens leave for the gradient, in float32.

    A block keeps 28 values a channel and 2 a feed-forward channel of every token (counted over its saved tensors);
    recomputing keeps only each block's input, and one block whole at a time.
    """
    d, layers = config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]
    block = 28 * d + 2 * config["ffn_dim"]
    return 4 * tokens * (block + layers * d if recompute else layers * block)


def count_trained(weights: int, optimizer: str, averages: int) -> tuple[int, int]:
    """Count the bytes of trained values with their gradients and averages, and those of their optimizer's state."""
    return 4 * weights * (2 + averages), round(MOMENT_BYTES[optimizer] * weights)
