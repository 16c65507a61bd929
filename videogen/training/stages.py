"""Choose what is trained: the VAE on pixels, then the DiT on its latents.

TrainConfig  ->  VaeStage or DitStage

A stage's batches are a pure function of (config, step): the order of the data is never saved.
"""

from __future__ import annotations

from videogen.config.train import TrainConfig
from videogen.training.dit_stage import DitStage
from videogen.training.vae_stage import VaeStage


def make_stage(config: TrainConfig) -> VaeStage | DitStage:
    """Make the stage that a recipe names."""
    return {"vae": VaeStage, "dit": DitStage}[config.stage](config)
