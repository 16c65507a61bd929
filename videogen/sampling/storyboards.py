"""Make one clip of several scenes: each shot in windows under the prompts of its scenes, then one behind the other.

[Shot], settings, seed  ->  frames (t, h, w, 3) uint8, as they come
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from videogen.config.sample import SampleConfig
from videogen.config.storyboard import Shot
from videogen.models.streaming import decode_chunks
from videogen.sampling.clip_sampler import ClipSampler
from videogen.sampling.known import Known
from videogen.sampling.long_clips import LongClip, window_seed


def sample_storyboard(
    sampler: ClipSampler,
    shots: Sequence[Shot],
    images: Sequence[Known | None],
    config: SampleConfig,
    seed: int,
    *,
    length: int,
    on_evaluation: Callable[[], object] = lambda: None,
) -> Iterator[Tensor]:
    """Make the shots, each of which may begin with an image, in windows of at most a number of latent frames."""
    videos = [
        sample_shot(sampler, shot, image, config, window_seed(seed, -number), length, on_evaluation)
        for number, (shot, image) in enumerate(zip(shots, images, strict=True))
    ]
    yield from join_shots(videos, [shot.blend for shot in shots])


def sample_shot(
    sampler: ClipSampler,
    shot: Shot,
    image: Known | None,
    config: SampleConfig,
    seed: int,
    length: int,
    on_evaluation: Callable[[], object],
) -> Iterator[Tensor]:
    """Make the frames of a shot: a scene begins with what the windows of the one before have left."""
    config = replace(config, frames=shot.num_frames, seconds=None)
    clip = LongClip(sampler, sampler.encode_known([image] if image else [], config), config, seed, length=length)
    stride = sampler.vae.time_stride

    def latents() -> Iterator[Tensor]:
        for scene, end in zip(shot.scenes, shot.ends, strict=True):
            yield from clip.denoise(scene.prompt, 1 + (end - 1) // stride, on_evaluation)

    yield from decode_chunks(sampler.vae, latents(), sampler.compute_device)


def join_shots(videos: Sequence[Iterable[Tensor]], blends: Sequence[int]) -> Iterator[Tensor]:
    """Put videos behind each other; the first frames of one, its blend, are mixed with the last of that before it."""
    tail: Tensor | None = None  # frames that the next video is mixed with
    for video, blend, next_blend in zip(videos, blends, [*blends[1:], 0], strict=True):
        held: Tensor | None = None
        mixed = 0
        for chunk in video:
            if tail is not None and mixed < blend:
                num = min(blend - mixed, len(chunk))
                share = rearrange((torch.arange(mixed, mixed + num) + 1) / (blend + 1), "t -> t 1 1 1")
                mix = torch.lerp(tail[mixed : mixed + num].float(), chunk[:num].float(), share)
                chunk, mixed = torch.cat([mix.round().to(torch.uint8), chunk[num:]]), mixed + num
            held = chunk if held is None else torch.cat([held, chunk])
            if len(held) > next_blend:
                yield held[: len(held) - next_blend]
                held = held[len(held) - next_blend :]
        tail = held
