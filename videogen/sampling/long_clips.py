"""Denoise a clip in windows of a length that the model knows, each of which begins or ends with what is there already.

    what is known of the whole clip, window length  ->  windows  ->  latents, one window after another

A clip that is extended, and one longer than the model was trained on, is a row of windows. The overlap is known to the
later one as latents, and is never decoded and encoded again, so nothing drifts there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from videogen.config.sample import SampleConfig
from videogen.packing.noise import step_generator
from videogen.packing.windows import plan_windows
from videogen.sampling.clip_sampler import ClipRequest, ClipSampler
from videogen.sampling.known_tokens import KnownLatent


def window_seed(seed: int, number: int) -> int:
    """Return the seed of a clip's window: the first has the clip's own."""
    if number == 0:
        return seed
    return int(torch.randint(2**62, (), generator=step_generator(seed, number)))


def known_frames(known: KnownLatent) -> list[bool]:
    """Return which latent frames of a clip are given wholly."""
    return (known.weight == 1).flatten(1).all(1).tolist()


def sample_windows(
    sampler: ClipSampler,
    requests: Sequence[ClipRequest],
    config: SampleConfig,
    on_evaluation: Callable[[], object] = lambda: None,
    *,
    length: int,
) -> list[Tensor]:
    """Denoise clips of the same settings side by side, in windows of at most a number of latent frames."""
    clips = [sampler.encode_known(request.known, config) for request in requests]
    clean, weight = ([part.clone() for part in parts] for parts in zip(*clips, strict=True))
    stride = sampler.vae.time_stride
    for number, (low, high) in enumerate(plan_windows(known_frames(clips[0]), length)):
        part = slice(low, high)
        inside = [
            request._replace(
                seed=window_seed(request.seed, number),
                known=KnownLatent(clean[i][:, part], weight[i][part]),
                config=None,
            )
            for i, request in enumerate(requests)
        ]
        window = replace(config, frames=1 + (high - low - 1) * stride, seconds=None)
        for i, latent in enumerate(sampler.sample(inside, window, on_evaluation)):
            clean[i][:, part] = latent.cpu()
            weight[i][part] = 1
    return clean
