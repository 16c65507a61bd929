"""Convert the words of diffusers' call to what the line of ClipSampler takes: settings, texts, seeds and noise.

height, width, num_frames, guidance_scale, ...  ->  SampleConfig;  prompt, negative_prompt, embeddings  ->  Texts
seeds, generators or latents  ->  a seed for each clip, and the noise that they begin at
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Generator, Tensor

from videogen.config.sample import SampleConfig
from videogen.packing.packs import PackedVideo, pack
from videogen.sampling.clip_sampler import ClipSampler
from videogen.sampling.known import Known

if TYPE_CHECKING:
    from PIL.Image import Image

Embeds = Tensor | Sequence[Tensor]  # (b, m, text_dim)


class Texts(NamedTuple):
    """The texts of a call: as many prompts as clips, as strings or embedded."""

    prompts: list[str]
    embeds: list[Tensor] | None
    negatives: list[str]
    negative_embeds: list[Tensor] | None


def settings_of(
    config: SampleConfig,
    *,
    size: tuple[int | None, int | None],
    frames: int | None,
    steps: int | None,
    guidance: float | None,
    guidance_2: float | None,
    two_experts: bool,
) -> SampleConfig:
    """Replace settings by those that a call gives in diffusers' words; its guidance is off at 1 and below."""
    if guidance_2 is not None and not two_experts:
        raise ValueError("guidance_scale_2 is that of a second expert, and this model has one; leave it out")
    if size != (None, None):
        config = replace(config, size=f"{size[0] or config.width}x{size[1] or config.height}")
    if frames is not None:
        config = replace(config, frames=frames, seconds=None)
    if steps is not None:
        config = replace(config, steps=steps)
    if guidance is not None:
        config = replace(config, guidance=max(1.0, guidance), guidance_2=None)
    return config if guidance_2 is None else replace(config, guidance_2=max(1.0, guidance_2))


def texts_of(
    given: tuple[Sequence[str] | str | None, Sequence[str] | str | None, Embeds | None],
    negatives: tuple[Sequence[str] | str | None, Embeds | None],
    config: SampleConfig,
    num_videos: int | None,
) -> Texts:
    """Repeat prompts and negative prompts, or their embeddings, once a clip; a ValueError where they do not match."""
    prompts, prompt, embeds = given
    if sum(word is not None for word in given) != 1:
        raise ValueError("give the prompts once: as the first argument, as prompt, or embedded as prompt_embeds")
    if negatives[0] is not None and negatives[1] is not None:
        raise ValueError("give negative_prompt or negative_prompt_embeds, not both")
    strings = prompts if prompts is not None else prompt
    strings = [""] * len(() if embeds is None else embeds) if strings is None else strings
    strings = [strings] if isinstance(strings, str) else [*strings]
    if not strings:
        raise ValueError("there is no prompt; give one")
    if num_videos is not None and num_videos < 1:
        raise ValueError(f"num_videos_per_prompt must be at least 1, got {num_videos}")

    def repeated(values: Sequence[object]) -> list[object]:
        if len(values) != len(strings):
            raise ValueError(f"give as many negative prompts as prompts, or one; got {len(values)} for {len(strings)}")
        return [value for value in values for _ in range(num_videos or 1)]

    negative = config.negative if negatives[0] is None else negatives[0]
    negative = [negative] * len(strings) if isinstance(negative, str) else negative
    negative_embeds = None if negatives[1] is None else repeated([*negatives[1]])
    return Texts(
        cast("list[str]", repeated(strings)),
        None if embeds is None else cast("list[Tensor]", repeated([*embeds])),
        cast("list[str]", repeated(negative)),
        cast("list[Tensor] | None", negative_embeds),
    )


def ends_of(image: Image | Tensor | None, last_image: Image | Tensor | None) -> list[Known]:
    """Give a first and a last image as what is known of a clip."""
    first = [] if image is None else [Known.first(image)]
    return first if last_image is None else [*first, Known.last(last_image)]


def noise_of(
    sampler: ClipSampler,
    configs: Sequence[SampleConfig],
    seeds: Sequence[int] | None,
    generator: Generator | Sequence[Generator] | None,
    latents: Embeds | None,
) -> tuple[list[int], PackedVideo]:
    """Return a seed for each clip and the noise that they begin at: of the seeds, of generators, or given."""
    num, shape = len(configs), sampler.latent_shape(configs[0])
    if seeds is not None and generator is not None:
        raise ValueError("give seeds or a generator, not both")
    generators = [generator] if isinstance(generator, Generator) else [*(generator or ())]
    if seeds is None and not generators:
        seeds = range(num)
    drawn = None if latents is None else [*latents]
    if generators:
        if len(generators) not in (1, num):
            raise ValueError(f"give one generator, or as many as clips; got {len(generators)} for {num}")
        fresh = [own.initial_seed() if is_fresh(own) else None for own in generators]
        if drawn is None:
            sizes = [(num, *shape)] if len(generators) == 1 else [(1, *shape)] * num
            pairs = zip(sizes, generators, strict=True)
            drawn = [*torch.cat([torch.randn(size, generator=own, device=own.device).cpu() for size, own in pairs])]
        if len(generators) == num and None not in fresh:
            seeds = cast("list[int]", fresh)
        else:
            owners = generators * (num // len(generators))
            seeds = [int(torch.randint(2**62, (), generator=own, device=own.device)) for own in owners]
    seeds = list(seeds or ())
    if len(seeds) != num:
        raise ValueError(f"give as many seeds as prompts, got {len(seeds)} for {num}")
    if drawn is None:
        return seeds, sampler.noise(seeds, configs)
    if [tuple(latent.shape) for latent in drawn] != [shape] * num:
        got = ", ".join(sorted({str(tuple(latent.shape)) for latent in drawn}))
        raise ValueError(f"latents must be {num} of (c, t, h, w) = {shape} for this size and length, got {got}")
    video = pack([latent.to(sampler.compute_device).float() for latent in drawn], sampler.experts[0].base_patch)
    return seeds, video._replace(scaling=sampler.position_scaling(configs[0]))


def is_fresh(generator: Generator) -> bool:
    """True if nothing has been drawn from a generator since it was seeded: it then stands for its seed."""
    begin = Generator(generator.device).manual_seed(generator.initial_seed())
    return torch.equal(begin.get_state(), generator.get_state())
