"""The video autoencoder as a model of diffusers: its loading and saving, and offloading, around the plain VAE.

folder/vae  <->  VideoVAE
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from videogen.models.vae_network import VAE


class VideoVAE(VAE, ModelMixin, ConfigMixin):
    """The VAE that diffusers loads, saves and offloads; it computes as the plain one."""

    __init__ = register_to_config(VAE.__init__)  # the same arguments, kept in the config
    posterior = apply_forward_hook(VAE.posterior)
    reconstruct = apply_forward_hook(VAE.reconstruct)

    @classmethod
    def from_pretrained(cls, *args: object, **options: object) -> VideoVAE:  # type: ignore[override]
        """Load as diffusers does, then restore channels_last, which diffusers replaces by the layout in the file."""
        loaded = super().from_pretrained(*args, **options)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return loaded

    def enable_tiling(self, *_: object, **__: object) -> None:
        """Refuse tiles, which only Wan's VAE has."""
        raise ValueError(
            "VideoVAE has no tiles: it decodes a few frames at a time, each whole; ask for a smaller size where one "
            "does not fit in memory (Wan's VAE has tiles)"
        )

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Take the statistics from the config, where training registers them when it ends."""
        self.latents_mean, self.latents_std = self.config["latents_mean"], self.config["latents_std"]
        return super()._statistics(latents)
