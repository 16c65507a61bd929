"""Prompt to frames, in the order of the diagram in DESIGN: text, noise, solving, decoding; by torch alone.

    prompts, SampleConfig, seeds  ->  frames (t, h, w, 3) uint8, one tensor a prompt

ClipSampler samples from networks of our own, without diffusers and transformers, whose imports take longer than a short
clip. VideoPipeline (pipeline.py) is the same line for every folder, with all that diffusers does for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from videogen.config.sample import SampleConfig
from videogen.data.manifest import check_manifest
from videogen.models.bert import BertEncoder, embed_texts, load_tokenizer
from videogen.models.block_cache import BlockCache, make_block_cache
from videogen.models.checkpoint import load_network
from videogen.models.checkpoint_config import NO_START, CheckpointInfo
from videogen.models.dit_network import DiT, TextContext
from videogen.models.streaming import Autoencoder, decode_frames
from videogen.models.vae_network import VAE
from videogen.packing.noise import seeded_noise
from videogen.packing.packs import PackedText, PackedVideo, RopeScaling, pack, pack_texts, patch_grid, unpack
from videogen.packing.patch_schedule import coarsest_patch, latent_grid, patch_schedule
from videogen.sampling.brownian import BrownianPath
from videogen.sampling.denoiser import Denoiser, with_guidance
from videogen.sampling.guidance import prompts_and_negatives
from videogen.sampling.known import Known, encode_known, overlay
from videogen.sampling.known_tokens import (
    NO_CONDITION,
    Condition,
    KnownLatent,
    KnownTokens,
    free_latent,
    pack_known,
)
from videogen.sampling.solvers import AfterStep, Scheduler, Velocity, keep, known_levels, solve

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class ClipRequest(NamedTuple):
    """One clip to make."""

    prompt: str
    seed: int
    known: Sequence[Known] | KnownLatent = ()  # parts of the clip that are given, or what they were encoded to
    config: SampleConfig | None = None  # its size and length, where they are not those of the whole pack


class ClipSampler:
    """Makes clips from prompts with networks of our own."""

    scheduler: Scheduler | None = None  # its settings, where the checkpoint brings one

    def __init__(
        self,
        transformer: DiT,
        vae: Autoencoder,
        text_encoder: BertEncoder,
        tokenizer: Tokenizer,
        defaults: SampleConfig,
    ) -> None:
        self.transformer, self.vae, self.text_encoder, self.tokenizer = transformer, vae, text_encoder, tokenizer
        self._defaults = defaults

    @property
    def defaults(self) -> SampleConfig:
        """The settings that this checkpoint was made for."""
        return self._defaults

    @property
    def compute_device(self) -> torch.device:
        """The device on which the networks compute."""
        return next(self.experts[0].parameters()).device

    @property
    def experts(self) -> Sequence[DiT]:
        """The transformers, that for high noise first."""
        return [self.transformer]

    @property
    def boundary(self) -> float | None:
        """The noise level from which up the first expert answers; None for one transformer."""
        return None

    def maybe_free_model_hooks(self) -> None:
        """Make room for the next network, where networks wait elsewhere (diffusers' offloading)."""

    def __call__(
        self,
        prompts: Sequence[str] | str,
        config: SampleConfig | None = None,
        *,
        seeds: Sequence[int] | None = None,
        known: Sequence[Known] = (),
    ) -> list[Tensor]:
        """Make one clip (t, h, w, 3) uint8 a prompt, all in one pack; seeds default to 0, 1, 2, ...

        What is known of a clip is the same for all of them.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"give as many seeds as prompts, got {len(seeds)} for {len(prompts)}")
        config = config or self.defaults
        requests = [ClipRequest(prompt, seed, known) for prompt, seed in zip(prompts, seeds, strict=True)]
        latents = self.sample(requests, config)
        return [torch.cat(list(self.frames(latent, known, config))) for latent in latents]

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[ClipRequest],
        config: SampleConfig,
        on_evaluation: Callable[[], object] = lambda: None,
        *,
        block_cache: BlockCache | None = None,
        text: TextContext | None = None,
        noise: PackedVideo | None = None,
        after_step: AfterStep = keep,
    ) -> list[Tensor]:
        """Denoise clips side by side into latents (c, t, h, w), calling on_evaluation at each network evaluation.

        Clips share all settings but size and length, which requests may have of their own. A block cache handed in says
        afterwards how much of the network was computed, where the settings reuse some of it. A text context is that of
        `prompts_and_negatives`, where they were encoded before, and noise that of the seeds. after_step is called with
        the pack's tokens.
        """
        seeds, configs = [request.seed for request in requests], [request.config or config for request in requests]
        noise = self.noise(seeds, configs) if noise is None else noise
        condition = self.condition(requests, configs, noise)
        if text is None:
            text = self.encode_prompts(prompts_and_negatives([request.prompt for request in requests], config))
        if condition.image_rows is not None:
            text = self.with_images(text, condition.image_rows)
        denoiser = Denoiser(
            self.experts,
            self.boundary,
            pack=noise,
            text=text,
            patch_at=patch_schedule(config, self.experts[0].patches),
            condition=condition,
            block_cache=block_cache or make_block_cache(config),
            on_evaluation=on_evaluation,
            sigmas=known_levels(config.sampler, config.steps, shift=config.shift),
        )
        velocity = with_guidance(denoiser, configs, noise.lengths, self.boundary)
        tokens = self.solve_around(condition.known, velocity, noise, seeds, config, after_step=after_step)
        if not tokens.isfinite().all():
            raise FloatingPointError("the latents are not finite; lower the guidance or check the weights")
        return unpack(noise._replace(tokens=tokens))

    def noise(self, seeds: Sequence[int], configs: Sequence[SampleConfig]) -> PackedVideo:
        """Sample a pack of noise, a clip a seed, each of the size and length of its settings."""
        latents = seeded_noise([self.latent_shape(config) for config in configs], seeds)
        video = pack([latent.to(self.compute_device) for latent in latents], self.experts[0].base_patch)
        return video._replace(scaling=self.position_scaling(configs[0]))

    def solve_around(
        self,
        known: KnownTokens | None,
        velocity: Velocity,
        noise: PackedVideo,
        seeds: Sequence[int],
        config: SampleConfig,
        *,
        after_step: AfterStep = keep,
    ) -> Tensor:
        """Solve from noise to clean tokens, holding what is known; strength below 1 begins at it."""
        if known is None:
            return self.solve(velocity, noise, seeds, config, after_step=after_step)
        start = known.clean.tokens if config.strength < 1 else None
        return known.restore(self.solve(known.hold(velocity), noise, seeds, config, start, after_step=after_step))

    def solve(
        self,
        velocity: Velocity,
        noise: PackedVideo,
        seeds: Sequence[int],
        config: SampleConfig,
        clean: Tensor | None = None,
        *,
        after_step: AfterStep = keep,
    ) -> Tensor:
        """Solve from noise, or noised clean tokens, to clean ones, as settings and the checkpoint's scheduler say."""
        if clean is None and config.first_step:
            raise ValueError(NO_START)
        paths = [BrownianPath(tuple(latent.shape), seed) for latent, seed in zip(unpack(noise), seeds, strict=True)]

        def brownian_increment(before: Tensor, after: Tensor) -> Tensor:
            latents = [path.increment(float(before), float(after)).to(self.compute_device) for path in paths]
            return pack(latents, noise.patch).tokens

        steps, shift = config.steps, config.shift
        return solve(
            config.sampler,
            velocity,
            noise.tokens,
            brownian_increment,
            steps=steps,
            shift=shift,
            scheduler=self.scheduler,
            by_timestep=self.scheduler is not None and self.experts[0].prediction == "velocity",
            clean=clean,
            skip=config.first_step,
            after_step=after_step,
        )

    def frames(
        self, latent: Tensor, known: Sequence[Known] = (), config: SampleConfig | None = None
    ) -> Iterator[Tensor]:
        """Decode one latent, yielding frames (t, h, w, 3) uint8 as they are ready; given clips keep their pixels."""
        frames = decode_frames(self.vae, latent, self.compute_device)
        return overlay(frames, known, config or self.defaults, self.vae.time_stride) if known else frames

    def latent_shape(self, config: SampleConfig) -> tuple[int, int, int, int]:
        """Compute (c, t, h, w) of a clip's latent; a ValueError where the strides or the patches forbid the clip."""
        strides = {"time_stride": self.vae.time_stride, "space_stride": self.vae.space_stride}
        return self.experts[0].out_channels, *latent_grid(config, self.experts[0].patches, **strides)

    def position_scaling(self, config: SampleConfig) -> RopeScaling | None:
        """Choose how positions beyond the size of the checkpoint's defaults, which it was trained at, are scaled."""
        if config.position_scaling == "none":
            return None
        trained = self.latent_shape(replace(self.defaults, patch=""))
        return RopeScaling(config.position_scaling, patch_grid(trained, self.experts[0].base_patch))

    def condition(
        self, requests: Sequence[ClipRequest], configs: Sequence[SampleConfig], noise: PackedVideo
    ) -> Condition:
        """Encode what is known of the clips of a pack."""
        if not any(len(request.known) for request in requests):
            return NO_CONDITION
        encoded = dict[tuple[int, SampleConfig], KnownLatent]()  # once where clips share it
        for request, config in zip(requests, configs, strict=True):
            if (key := (id(request.known), config)) not in encoded:
                encoded[key] = self.encode_known(request.known, config)
        latents = [encoded[id(request.known), config] for request, config in zip(requests, configs, strict=True)]
        known = pack_known(latents, noise.patch, coarsest_patch(configs[0], self.experts[0].base_patch))
        return Condition(known.to(self.compute_device))

    def encode_known(self, known: Sequence[Known] | KnownLatent, config: SampleConfig) -> KnownLatent:
        """Encode what is known of a clip of some settings."""
        shape = self.latent_shape(config)
        if isinstance(known, KnownLatent):
            return known
        if not known:
            return free_latent(shape)
        return encode_known(known, self.vae, shape, config, self.compute_device)

    def embed(self, prompts: Sequence[str]) -> PackedText:
        """Embed prompts as one pack."""
        return pack_texts(embed_texts(prompts, self.tokenizer, self.text_encoder, self.compute_device))

    def encode_prompts(self, prompts: Sequence[str]) -> TextContext:
        """Compute the keys and values of the prompts in every block of every expert, each different prompt once."""
        unique = sorted(set(prompts))
        self.maybe_free_model_hooks()  # with offloading, the image encoder need not wait on the device beside this one
        return self.project(self.embed(unique)).take([unique.index(prompt) for prompt in prompts])

    def project(self, texts: PackedText) -> TextContext:
        """Compute the keys and values of embedded texts in every block of every expert."""
        self.maybe_free_model_hooks()  # the text encoder need not wait on the device beside the transformer
        contexts = [expert.project_text(texts) for expert in self.experts]
        if len(self.experts) > 1:
            self.maybe_free_model_hooks()
        return contexts[0]._replace(blocks=[block for part in contexts for block in part.blocks])

    def with_images(self, text: TextContext, clip_embeddings: PackedText) -> TextContext:
        """Add to a text context CLIP's embeddings of the images of its clips, for a model that reads them.

        They are those of as many clips as there are texts, or of half as many where each has a negative prompt.
        """
        image = self.experts[0].project_images(clip_embeddings)
        num_texts, num_clips = len(text.keys.lengths), len(image.keys.rows)
        return text._replace(image=image.take([i % num_clips for i in range(num_texts)]))


def load_clip_sampler(info: CheckpointInfo, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> ClipSampler:
    """Load a folder of our own by torch alone, checked: every weight there, none too many, each of its shape."""
    check_manifest(info.folder)
    kinds = {"transformer": DiT, "vae": VAE, "text_encoder": BertEncoder}
    transformer, vae, text_encoder = (
        load_network(kind, info.folder / part, dtype=dtype).to(device) for part, kind in kinds.items()
    )
    return ClipSampler(transformer, vae, text_encoder, load_tokenizer(info.folder), info.defaults)
