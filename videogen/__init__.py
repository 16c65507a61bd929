"""videogen: text to video of any length, size and aspect ratio, on spacetime patches.

Legend of the whole project:

    b clips · c channels · t h w frames, rows, columns · pt ph pw patch · n packed video tokens · m packed text tokens
    d model width · heads, e head size · sigma noise level: 0 clean ... 1 noise (t is always frames)
    noised = (1 - sigma) clean + sigma noise · velocity = noise - clean · Wan's timestep = 1000 sigma

The data walks one line:  prompt -> text -> sampling(dit) -> vae.decode -> video_io -> MP4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videogen.config.sample import SampleConfig
    from videogen.config.train import TrainConfig
    from videogen.models.dit import VideoDiT
    from videogen.models.push import push_to_hub
    from videogen.models.vae import VideoVAE
    from videogen.sampling.known import Known
    from videogen.sampling.pipeline import VideoPipeline
    from videogen.training.folder_run import train

__version__ = "0.1.0"
__all__ = ["Known", "SampleConfig", "TrainConfig", "VideoDiT", "VideoPipeline", "VideoVAE", "push_to_hub", "train"]

_HOMES = {
    "Known": "sampling.known",
    "SampleConfig": "config.sample",
    "TrainConfig": "config.train",
    "VideoDiT": "models.dit",
    "VideoPipeline": "sampling.pipeline",
    "VideoVAE": "models.vae",
    "push_to_hub": "models.push",
    "train": "training.folder_run",
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use: importing videogen alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'videogen' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"videogen.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names too that are not loaded yet."""
    return sorted({*globals(), *__all__})
