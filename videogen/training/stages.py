"""The two things that are trained here: the VAE on pixels, then the DiT on its latents.

A stage's batches are a pure function of (config, step): nothing about the order of the data has to be saved.
"""

from __future__ import annotations

from videogen.config.train import TrainConfig
from videogen.training.dit_stage import DitStage
from videogen.training.vae_stage import VaeStage


def make_stage(config: TrainConfig) -> VaeStage | DitStage:
    """The stage that a recipe names."""
    return {"vae": VaeStage, "dit": DitStage}[config.stage](config)
