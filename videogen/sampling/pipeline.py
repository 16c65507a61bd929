"""Prompt to frames, in the order of the diagram in DESIGN: text, noise, solving, decoding.

    prompts, SampleConfig, seeds  ->  frames (t, h, w, 3) uint8, one tensor a prompt

VideoPipeline is a diffusers pipeline folder on disk: model_index.json, transformer/, vae/, text_encoder/, tokenizer/.
A folder of diffusers' WanPipeline or WanImageToVideoPipeline opens too, and one of Wan's networks is saved as theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import torch
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from videogen.config.parsing import from_mapping, to_mapping
from videogen.config.sample import SampleConfig, resolve_frames
from videogen.data.files import MANIFEST, error_reason
from videogen.models.block_cache import BlockCache, make_block_cache
from videogen.models.checkpoint import check_checkpoint, copy_weights_into_memory, disable_library_progress_bars
from videogen.models.checkpoint_config import NO_IMAGE, TEXT_ONLY, convert_to_diffusers, with_videogen_classes
from videogen.models.dit import TextContext, VideoDiT
from videogen.models.hub import find_checkpoint
from videogen.models.streaming import decode_frames
from videogen.models.text_encoder import embed_prompts, load_encoder, num_text_rows
from videogen.models.vae import VideoVAE
from videogen.models.wan_vae import WanVAE
from videogen.packing.noise import seeded_noise
from videogen.packing.packs import PackedText, PackedVideo, RopeScaling, pack, pad_texts, patch_grid, unpack
from videogen.packing.patch_schedule import latent_grid, patch_schedule
from videogen.sampling.brownian import BrownianPath
from videogen.sampling.denoiser import Denoiser, with_guidance
from videogen.sampling.guidance import prompts_and_negatives
from videogen.sampling.image_prompts import (
    NO_CONDITION,
    ImageCondition,
    Images,
    clean_frame_condition,
    embed_images,
    extra_channels_condition,
)
from videogen.sampling.lora_files import check_experts, read_lora
from videogen.sampling.solvers import Scheduler, Velocity, make_scheduler, solve


class ClipRequest(NamedTuple):
    """One clip to make."""

    prompt: str
    seed: int
    images: Images | None = None
    config: SampleConfig | None = None  # its size and length, where they are not those of the whole pack


class VideoPipeline(DiffusionPipeline, WanLoraLoaderMixin):
    """Makes clips from prompts; loads and saves as a diffusers pipeline folder."""

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->transformer_2->vae"
    _optional_components: ClassVar = ["scheduler", "transformer_2", "image_encoder", "image_processor"]
    transformer: VideoDiT
    transformer_2: VideoDiT | None  # Wan 2.2 A14B: the expert for low noise
    vae: VideoVAE | WanVAE
    text_encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scheduler: Scheduler | None  # its settings, where the checkpoint brings one

    def __init__(
        self,
        transformer: VideoDiT,
        vae: VideoVAE | WanVAE,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: Scheduler | None = None,
        transformer_2: VideoDiT | None = None,
        image_encoder: PreTrainedModel | None = None,
        image_processor: BaseImageProcessor | None = None,
        boundary_ratio: float | None = None,
        expand_timesteps: bool = False,
        defaults: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            transformer_2=transformer_2,
            image_encoder=image_encoder,
            image_processor=image_processor,
        )
        self.register_to_config(boundary_ratio=boundary_ratio, expand_timesteps=expand_timesteps)
        self.register_to_config(defaults=dict(defaults or to_mapping(SampleConfig())))

    @classmethod
    def load(
        cls, name: str | Path, *, dtype: torch.dtype = torch.float32, options: Mapping[str, object] | None = None
    ) -> VideoPipeline:
        """Load as from_pretrained does, checked first: every weight there, none too many, each of its shape.

        Options are further arguments of from_pretrained, such as components that are loaded already.
        """
        folder, options = find_checkpoint(name), options or {}
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder} is not a checkpoint folder: it has no model_index.json")
        components = check_checkpoint(folder, skip=options)
        disable_library_progress_bars()
        parts = [part for part in ("text_encoder", "image_encoder") if part in components and part not in options]
        encoders = {part: load_encoder(folder, part, dtype=dtype) for part in parts}
        return cls.from_pretrained(folder, dtype=dtype, local_files_only=True, **encoders, **options)

    @classmethod
    def load_config(cls, *args: object, **options: object) -> dict[str, object]:  # type: ignore[override]
        """Read a folder's model_index.json with our classes in place of diffusers': they read the same weights."""
        index = super().load_config(*args, **options)  # type: ignore[arg-type]
        return with_videogen_classes(cast("dict[str, object]", index), Path(str(args[0])))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **options: object) -> VideoPipeline:
        """Load as diffusers does, with two differences: a Hub id is looked up in the local cache and nothing is
        downloaded, and the dtype is float32 unless another is asked for, where transformers would keep the file's.
        """
        where = {name: cast("str | None", options.pop(name, None)) for name in ("revision", "cache_dir")}
        folder = find_checkpoint(pretrained_model_name_or_path, **where)
        if options.get("dtype") is None and options.get("torch_dtype") is None:
            options["dtype"] = torch.float32
        pipeline = super().from_pretrained(folder, **options)  # type: ignore[arg-type]
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                copy_weights_into_memory(component)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **options: object) -> None:  # type: ignore[override]
        """Save as diffusers does; a pipeline of Wan's networks becomes a folder that WanPipeline opens as well."""
        if self.is_wan and self.scheduler is None:
            self.scheduler = make_scheduler("unipc", self.defaults.shift)
            self.register_modules(scheduler=self.scheduler)
        (Path(save_directory) / MANIFEST).unlink(missing_ok=True)  # that of what the folder held before
        super().save_pretrained(save_directory, **options)  # type: ignore[arg-type]
        if self.is_wan:
            convert_to_diffusers(Path(save_directory))

    def add_loras(self, names: Sequence[str]) -> None:
        """Add LoRAs to the weights: files or folders that diffusers reads, named as `read_lora` takes them."""
        loras = list(map(read_lora, names))
        check_experts(loras, two=self.transformer_2 is not None)
        scales: dict[str, dict[str, float]] = {}
        for number, (path, scale, expert) in enumerate(loras):
            part, adapter = "transformer_2" if expert == "low" else "transformer", f"lora_{number}"
            where = {"load_into_transformer_2": True} if expert == "low" else {}
            try:
                self.load_lora_weights(str(path), adapter_name=adapter, local_files_only=True, **where)
            except (KeyError, ValueError, RuntimeError, AttributeError, TypeError) as error:
                raise ValueError(f"{path} is no LoRA for this model: {error_reason(error)}") from error
            if adapter not in self.get_list_adapters().get(part, ()):
                raise ValueError(f"{path} is no LoRA for this model: it names none of its layers as diffusers does")
            scales.setdefault(part, {})[adapter] = scale
        for part, of_part in scales.items():
            getattr(self, part).set_adapters(list(of_part), list(of_part.values()))

    @property
    def compute_device(self) -> torch.device:
        """The device on which the networks compute: with offloading they wait on another."""
        return torch.device(self._execution_device)

    @property
    def experts(self) -> list[VideoDiT]:
        """The transformers, that for high noise first."""
        return [self.transformer, *([self.transformer_2] if self.transformer_2 is not None else [])]

    @property
    def boundary(self) -> float | None:
        """The noise level from which up the first expert answers; None for one transformer."""
        return self.config["boundary_ratio"] if self.transformer_2 is not None else None

    @property
    def is_wan(self) -> bool:
        """True if diffusers' WanPipeline can load this pipeline unchanged."""
        plain = all(dit.is_wan for dit in self.experts)
        return plain and isinstance(self.vae, WanVAE) and num_text_rows(self.text_encoder) > 0

    @property
    def defaults(self) -> SampleConfig:
        """The settings that this checkpoint was made for."""
        return from_mapping(SampleConfig, self.config["defaults"])

    def __call__(
        self,
        prompts: Sequence[str] | str,
        config: SampleConfig | None = None,
        *,
        seeds: Sequence[int] | None = None,
        images: Images | None = None,
    ) -> list[Tensor]:
        """Make one clip (t, h, w, 3) uint8 a prompt, all in one pack; seeds default to 0, 1, 2, ..."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"give as many seeds as prompts, got {len(seeds)} for {len(prompts)}")
        requests = [ClipRequest(prompt, seed, images) for prompt, seed in zip(prompts, seeds, strict=True)]
        latents = self.sample(requests, config or self.defaults)
        return [torch.cat(list(self.frames(latent))) for latent in latents]

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[ClipRequest],
        config: SampleConfig,
        on_evaluation: Callable[[], object] = lambda: None,
        *,
        block_cache: BlockCache | None = None,
        text: TextContext | None = None,
    ) -> list[Tensor]:
        """Denoise clips side by side into latents (c, t, h, w), calling on_evaluation at each network evaluation.

        Clips share all settings but size and length, which requests may have of their own. A block cache handed in says
        afterwards how much of the network was computed, where the settings reuse some of it. A text context is that of
        `prompts_and_negatives`, where they were encoded before.
        """
        seeds, configs = [request.seed for request in requests], [request.config or config for request in requests]
        noise = self.noise(seeds, configs)
        image, clip_embeddings = self.encode_images(requests, config, noise)
        if config.patch and image is not NO_CONDITION:
            raise ValueError(f"patch and images do not go together yet, got patch {config.patch!r}; leave it out")
        texts = prompts_and_negatives([request.prompt for request in requests], config)
        denoiser = Denoiser(
            self.experts,
            self.boundary,
            pack=noise,
            text=text or self.encode_prompts(texts, clip_embeddings),
            patch_at=patch_schedule(config, self.transformer.patches),
            image=image,
            block_cache=block_cache or make_block_cache(config),
            on_evaluation=on_evaluation,
        )
        velocity = with_guidance(denoiser, configs, noise.lengths, self.boundary)
        tokens = image.restore_known(self.solve(velocity, noise, seeds, config))
        if not tokens.isfinite().all():
            raise FloatingPointError("the latents are not finite; lower the guidance or check the weights")
        return unpack(noise._replace(tokens=tokens))

    def noise(self, seeds: Sequence[int], configs: Sequence[SampleConfig]) -> PackedVideo:
        """Sample a pack of noise, a clip a seed, each of the size and length of its settings."""
        latents = seeded_noise([self.latent_shape(config) for config in configs], seeds)
        video = pack([latent.to(self.compute_device) for latent in latents], self.transformer.base_patch)
        return video._replace(scaling=self.position_scaling(configs[0]))

    def solve(self, velocity: Velocity, noise: PackedVideo, seeds: Sequence[int], config: SampleConfig) -> Tensor:
        """Solve from noise to clean tokens, as the settings and the checkpoint's own scheduler say."""
        scheduler = self.scheduler if self.transformer.config["prediction"] == "velocity" else None
        paths = [BrownianPath(tuple(latent.shape), seed) for latent, seed in zip(unpack(noise), seeds, strict=True)]

        def brownian_increment(before: Tensor, after: Tensor) -> Tensor:
            latents = [path.increment(float(before), float(after)).to(self.compute_device) for path in paths]
            return pack(latents, noise.patch).tokens

        steps, shift = config.steps, config.shift
        return solve(
            config.sampler, velocity, noise.tokens, brownian_increment, steps=steps, shift=shift, scheduler=scheduler
        )

    def frames(self, latent: Tensor) -> Iterator[Tensor]:
        """Decode one latent, yielding frames (t, h, w, 3) uint8 as they are ready."""
        return decode_frames(self.vae, latent, self.compute_device)

    def latent_shape(self, config: SampleConfig) -> tuple[int, int, int, int]:
        """Compute (c, t, h, w) of a clip's latent; a ValueError where the strides or the patches forbid the clip."""
        strides = {"time_stride": self.vae.time_stride, "space_stride": self.vae.space_stride}
        return self.transformer.out_channels, *latent_grid(config, self.transformer.patches, **strides)

    def position_scaling(self, config: SampleConfig) -> RopeScaling | None:
        """Choose how positions beyond the size of the checkpoint's defaults, which it was trained at, are scaled."""
        if config.position_scaling == "none":
            return None
        trained = self.latent_shape(replace(self.defaults, patch=""))
        return RopeScaling(config.position_scaling, patch_grid(trained, self.transformer.base_patch))

    def encode_images(
        self, requests: Sequence[ClipRequest], config: SampleConfig, noise: PackedVideo
    ) -> tuple[ImageCondition, PackedText | None]:
        """Encode the clips' images by the VAE, and for Wan 2.1 by CLIP as well."""
        images = [request.images for request in requests if request.images is not None]
        needs_image = self.transformer.config["in_channels"] > self.transformer.out_channels
        if not images and not needs_image:
            return NO_CONDITION, None
        if len({self.latent_shape(request.config or config) for request in requests}) > 1:
            raise ValueError("clips of several sizes and images do not share a pack; make those of each size together")
        if len(images) < len(requests):
            raise ValueError(NO_IMAGE)
        if not isinstance(self.vae, WanVAE) or not (needs_image or self.config["expand_timesteps"]):
            raise ValueError(TEXT_ONLY)
        size = (config.height, config.width)
        if not needs_image:
            return clean_frame_condition(images, self.vae, noise, self.latent_shape(config), *size), None
        frames = resolve_frames(config, self.vae.time_stride)
        condition = extra_channels_condition(images, self.vae, noise, frames, *size)
        if not self.transformer.takes_image_embeddings:
            return condition, None
        self.maybe_free_model_hooks()
        return condition, embed_images(images, self.image_processor, self.image_encoder, self.compute_device)

    def encode_prompts(self, prompts: Sequence[str], clip_embeddings: PackedText | None = None) -> TextContext:
        """Compute the keys and values of the prompts in every block of every expert, each different prompt once.

        CLIP embeddings, of a model that reads them, are those of as many clips as there are prompts, or of half as many
        where each clip has a prompt and a negative prompt.
        """
        unique = sorted(set(prompts))
        self.maybe_free_model_hooks()  # with offloading, the image encoder need not wait on the device beside this one,
        embedded = embed_prompts(unique, self.tokenizer, self.text_encoder, self.compute_device)
        self.maybe_free_model_hooks()  # nor this one beside the transformer
        texts = pad_texts(embedded, num_text_rows(self.text_encoder))
        contexts = [expert.project_text(texts) for expert in self.experts]
        if len(self.experts) > 1:
            self.maybe_free_model_hooks()
        context = contexts[0]._replace(blocks=[block for part in contexts for block in part.blocks])
        context = context.take([unique.index(prompt) for prompt in prompts])
        if clip_embeddings is None:
            return context
        image = self.transformer.project_images(clip_embeddings)
        return context._replace(image=image.take([i % len(image.keys.rows) for i in range(len(prompts))]))
