"""Prompt to frames, in the order of the diagram in DESIGN: text, noise, sampling, decoding.

    prompts, SampleConfig, seeds  ->  frames (t, h, w, 3) uint8, one tensor a prompt

VideoPipeline is a diffusers pipeline folder on disk: model_index.json, transformer/, vae/, text_encoder/, tokenizer/.
A folder of diffusers' WanPipeline or WanImageToVideoPipeline is one too, and one of Wan's parts is saved as theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
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
from videogen.config.sizes import check_size
from videogen.data.files import reason
from videogen.models.block_cache import BlockCache, cache_of
from videogen.models.checkpoint import align, check_checkpoint, quiet_libraries
from videogen.models.checkpoint_config import (
    NO_IMAGE,
    PROMPTS_ALONE,
    at_home,
    class_of,
    go_abroad,
    read_defaults,
    read_json,
)
from videogen.models.dit import TextContext, VideoDiT
from videogen.models.hub import find_checkpoint
from videogen.models.streaming import decode
from videogen.models.text_encoder import embed_prompts, load_encoder, num_rows_of
from videogen.models.vae import VideoVAE
from videogen.models.wan_vae import WanVAE
from videogen.packing.noise import seeded_noise, velocity_of
from videogen.packing.packs import (
    Lengths,
    PackedText,
    PackedVideo,
    Scaling,
    check_patch,
    pack,
    pad_texts,
    recut,
    unpack,
)
from videogen.packing.patch_schedule import Cut, check_duration, coarsest, cut_by
from videogen.sampling.brownian import NoisePath
from videogen.sampling.guidance import is_guided, strengthen, texts_of
from videogen.sampling.image_prompts import Given, Images, give_beside, give_known, view
from videogen.sampling.lora_files import check_experts, read_lora
from videogen.sampling.solvers import Scheduler, Velocity, denoise, make_scheduler

Tick = Callable[[], None]
Ask = Callable[[Tensor, Tensor, int], tuple[Tensor, ...]]
# Both prompts in one call up to so many tokens: beyond, it is no faster and takes twice the memory.
TOKENS_AT_ONCE = 2048


class Job(NamedTuple):
    """One clip to make."""

    prompt: str
    seed: int
    images: Images | None = None
    own: SampleConfig | None = None  # whose size and length it has, where they are not those of the whole pack


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
        """from_pretrained, checked first: every weight there, none too many, each of its shape.

        What else from_pretrained takes, such as a part that is already there, stands in options.
        """
        folder, options = find_checkpoint(name), options or {}
        read_defaults(folder)
        check_checkpoint(folder, but=options)
        quiet_libraries()
        index = read_json(folder / "model_index.json")
        parts = [part for part in ("text_encoder", "image_encoder") if class_of(index, part) and part not in options]
        encoders = {part: load_encoder(folder, part, dtype=dtype) for part in parts}
        return cls.from_pretrained(folder, dtype=dtype, local_files_only=True, **encoders, **options)

    @classmethod
    def load_config(cls, *args: object, **options: object) -> dict[str, object]:  # type: ignore[override]
        """The model_index.json of a folder, with our classes in place of diffusers': they read the same weights."""
        index = super().load_config(*args, **options)  # type: ignore[arg-type]
        return at_home(cast("dict[str, object]", index), Path(str(args[0])))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **options: object) -> VideoPipeline:
        """As of diffusers, with two differences: a Hub id is looked up in the local cache and nothing is fetched, and
        it is float32 unless another dtype is asked for, where transformers would keep the file's.
        """
        where = {name: cast("str | None", options.pop(name, None)) for name in ("revision", "cache_dir")}
        folder = find_checkpoint(pretrained_model_name_or_path, **where)
        if options.get("dtype") is None and options.get("torch_dtype") is None:
            options["dtype"] = torch.float32
        pipeline = super().from_pretrained(folder, **options)  # type: ignore[arg-type]
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                align(part)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **options: object) -> None:  # type: ignore[override]
        """As of diffusers; a pipeline of Wan's parts becomes a folder that WanPipeline opens as well."""
        if self.is_wan and self.scheduler is None:
            self.scheduler = make_scheduler("unipc", self.defaults.shift)
            self.register_modules(scheduler=self.scheduler)
        super().save_pretrained(save_directory, **options)  # type: ignore[arg-type]
        if self.is_wan:
            go_abroad(Path(save_directory))

    def add_loras(self, words: Sequence[str]) -> None:
        """Put LoRAs beside the weights: files or folders that diffusers knows, as `read_lora` has them."""
        loras = list(map(read_lora, words))
        check_experts(loras, two=self.transformer_2 is not None)
        scales: dict[str, dict[str, float]] = {}
        for number, (path, scale, expert) in enumerate(loras):
            part, name = "transformer_2" if expert == "low" else "transformer", f"lora_{number}"
            where = {"load_into_transformer_2": True} if expert == "low" else {}
            try:
                self.load_lora_weights(str(path), adapter_name=name, local_files_only=True, **where)
            except (KeyError, ValueError, RuntimeError, AttributeError, TypeError) as error:
                raise ValueError(f"{path} is no LoRA for this model: {reason(error)}") from error
            if name not in self.get_list_adapters().get(part, ()):
                raise ValueError(f"{path} is no LoRA for this model: it names none of its layers as diffusers does")
            scales.setdefault(part, {})[name] = scale
        for part, of_part in scales.items():
            getattr(self, part).set_adapters(list(of_part), list(of_part.values()))

    @property
    def computes_on(self) -> torch.device:
        """Where the networks compute: with offloading they wait elsewhere."""
        return torch.device(self._execution_device)

    @property
    def experts(self) -> list[VideoDiT]:
        """The networks, that for high noise first."""
        return [self.transformer, *([self.transformer_2] if self.transformer_2 is not None else [])]

    @property
    def is_wan(self) -> bool:
        """Whether diffusers could run every part."""
        plain = all(dit.is_wan for dit in self.experts)
        return plain and isinstance(self.vae, WanVAE) and num_rows_of(self.text_encoder) > 0

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
        """One clip (t, h, w, 3) uint8 a prompt, all in one pack; seeds default to 0, 1, 2, ..."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"give as many seeds as prompts, got {len(seeds)} for {len(prompts)}")
        jobs = [Job(prompt, seed, images) for prompt, seed in zip(prompts, seeds, strict=True)]
        latents = self.sample(jobs, config or self.defaults)
        return [torch.cat(list(self.frames(latent))) for latent in latents]

    @torch.no_grad()
    def sample(
        self,
        jobs: Sequence[Job],
        config: SampleConfig,
        tick: Tick = lambda: None,
        *,
        cache: BlockCache | None = None,
        context: TextContext | None = None,
    ) -> list[Tensor]:
        """The latents (c, t, h, w) of some clips, denoised side by side; tick is called at each network evaluation.

        They share all settings but size and length, which jobs may have of their own. A cache of one's own says
        afterwards how much of the network was computed, where the settings reuse some of it. A context is that of
        their texts (`texts_of`), where it was read before.
        """
        seeds = [job.seed for job in jobs]
        video = self.noise(seeds, [job.own or config for job in jobs])
        given, views = self.look(jobs, config, video)
        context = context or self.read(texts_of([job.prompt for job in jobs], config), views)
        cut = cut_by(config, self.transformer.patches)
        if given != Given() and config.patch:
            raise ValueError(f"patch and images do not go together yet, got patch {config.patch!r}; leave it out")
        ask = self.ask(video, context, given, tick, cut, cache or cache_of(config))
        field = self.guided(ask, config, video.lengths)
        tokens = given.impose(self.denoise(field, video, seeds, config))
        if not tokens.isfinite().all():
            raise FloatingPointError("the latents are not finite; lower the guidance or check the weights")
        return unpack(video._replace(tokens=tokens))

    def noise(self, seeds: Sequence[int], configs: Sequence[SampleConfig]) -> PackedVideo:
        """A pack of noise, a clip a seed, each of the size and length of its settings."""
        latents = seeded_noise([self.latent_shape(config) for config in configs], seeds)
        video = pack([latent.to(self.computes_on) for latent in latents], self.transformer.base_patch)
        return video._replace(scaling=self.scaling_of(configs[0]))

    def denoise(self, velocity: Velocity, noise: PackedVideo, seeds: Sequence[int], config: SampleConfig) -> Tensor:
        """From noise to clean tokens, as the settings and the checkpoint's own scheduler say."""
        own = self.scheduler if self.transformer.config["prediction"] == "velocity" else None
        paths = [NoisePath(tuple(latent.shape), seed) for latent, seed in zip(unpack(noise), seeds, strict=True)]

        def fresh(before: Tensor, after: Tensor) -> Tensor:
            latents = [path.between(float(before), float(after)).to(self.computes_on) for path in paths]
            return pack(latents, noise.patch).tokens

        tokens, steps, shift = noise.tokens, config.steps, config.shift
        return denoise(config.sampler, velocity, tokens, fresh, steps=steps, shift=shift, scheduler=own)

    def frames(self, latent: Tensor) -> Iterator[Tensor]:
        """Decode one latent, yielding frames (t, h, w, 3) uint8 as they are ready."""
        return decode(self.vae, latent, self.computes_on)

    def latent_shape(self, config: SampleConfig) -> tuple[int, int, int, int]:
        """(c, t, h, w) of the latent of a clip of these settings; a ValueError where the strides forbid it."""
        frames, rows, columns = coarsest(config, self.transformer.patches)
        check_size(config.width, config.height, self.vae.space_stride * max(rows, columns))
        shape = self.vae.latent_shape(resolve_frames(config, self.vae.time_stride), config.height, config.width)
        check_duration(shape[1], frames, self.vae.time_stride)
        return shape

    def scaling_of(self, config: SampleConfig) -> Scaling | None:
        """How places past the size that the model was trained at, that of its defaults, are told to the network."""
        if config.position_scaling == "none":
            return None
        trained = self.latent_shape(replace(self.defaults, patch=""))
        return Scaling(config.position_scaling, check_patch(trained, self.transformer.base_patch))

    def look(self, jobs: Sequence[Job], config: SampleConfig, video: PackedVideo) -> tuple[Given, PackedText | None]:
        """What the clips' images say: to the network beside the noise, and through CLIP."""
        images = [job.images for job in jobs if job.images is not None]
        size, frames = (config.height, config.width), resolve_frames(config, self.vae.time_stride)
        more = self.transformer.config["in_channels"] > self.transformer.out_channels
        if not images and not more:
            return Given(), None
        if len({self.latent_shape(job.own or config) for job in jobs}) > 1:
            raise ValueError("clips of several sizes and images do not share a pack; make those of each size together")
        if len(images) < len(jobs):
            raise ValueError(NO_IMAGE)
        if not isinstance(self.vae, WanVAE) or not (more or self.config["expand_timesteps"]):
            raise ValueError(PROMPTS_ALONE)
        if not more:
            return give_known(images, self.vae, video, self.latent_shape(config), *size), None
        given = give_beside(images, self.vae, video, frames, *size)
        if not self.transformer.reads_images:
            return given, None
        self.maybe_free_model_hooks()
        return given, view(images, self.image_processor, self.image_encoder, self.computes_on)

    def read(self, prompts: Sequence[str], views: PackedText | None = None) -> TextContext:
        """The keys and values of the prompts in every block of every expert, each different prompt read once.

        Of a model that reads images, views are those of as many clips as there are prompts, or of half as many that
        stand twice, with their prompts and again with what they should not show.
        """
        unique = sorted(set(prompts))
        self.maybe_free_model_hooks()  # where parts take turns, who has seen an image need not wait beside this one,
        embedded = embed_prompts(unique, self.tokenizer, self.text_encoder, self.computes_on)
        self.maybe_free_model_hooks()  # nor this one beside the next
        texts = pad_texts(embedded, num_rows_of(self.text_encoder))
        read = [expert.read_text(texts) for expert in self.experts]
        if len(self.experts) > 1:
            self.maybe_free_model_hooks()
        context = read[0]._replace(blocks=[block for part in read for block in part.blocks])
        context = context.take([unique.index(prompt) for prompt in prompts])
        if views is None:
            return context
        image = self.transformer.read_images(views)
        return context._replace(image=image.take([i % len(image.keys.rows) for i in range(len(prompts))]))

    def velocity(
        self,
        video: PackedVideo,
        context: TextContext,
        tick: Tick,
        given: Given = Given(),  # noqa: B008
        cut: Cut | None = None,
        cache: BlockCache | None = None,
        first: int = 0,
    ) -> Velocity:
        """The network as a velocity field on the tokens of a pack; it may see them in patches of another size.

        A cache knows the pack's clips by their numbers from first on.
        """
        starts = [0, len(self.transformer.blocks)]
        if self.transformer.config["in_channels"] > self.transformer.out_channels and given.beside is None:
            raise ValueError(NO_IMAGE)

        def field(tokens: Tensor, sigma: Tensor) -> Tensor:
            which = self.expert_at(sigma)
            expert = self.experts[which]
            part = context._replace(blocks=context.blocks[starts[which] :][: len(expert.blocks)])
            exact = sigma.float() if tokens.device.type == "mps" else sigma  # which has no float64
            seen = video._replace(tokens=tokens)
            told = recut(given.tell(seen), cut(float(sigma)) if cut else video.patch)
            levels = given.levels(exact.reshape(1).to(tokens.device), len(told.tokens))
            keys = [(which, first + i) for i in range(len(video.grids))]
            around = None if cache is None else cache.at(keys, float(sigma), len(expert.blocks))
            out = recut(told._replace(tokens=expert(told, levels, part, around=around).float()), video.patch).tokens
            tick()
            return velocity_of(out, tokens, sigma) if expert.config["prediction"] == "clean" else out

        return field

    def expert_at(self, sigma: Tensor) -> int:
        """Which network answers at a noise level: from the boundary up the first."""
        boundary = self.config["boundary_ratio"]
        if boundary is None or self.transformer_2 is None:
            return 0
        return 0 if 1000 * float(sigma) >= 1000 * boundary else 1

    def ask(
        self,
        video: PackedVideo,
        context: TextContext,
        given: Given,
        tick: Tick,
        cut: Cut | None = None,
        cache: BlockCache | None = None,
    ) -> Ask:
        """Ask the network about a pack, with its prompts, or in the same call with its negative prompts as well.

        The context holds the prompts and behind them the negative ones.
        """
        num, total = len(video.grids), len(context.keys.rows)
        parts = [context.take(range(start, start + num)) for start in range(0, total, num)]
        twice = video._replace(grids=video.grids * 2)

        def answer(x: Tensor, sigma: Tensor, branches: int) -> tuple[Tensor, ...]:
            if branches == 2 and 2 * len(x) <= TOKENS_AT_ONCE:
                both = self.velocity(twice, context, tick, given.twice(), cut, cache)(torch.cat([x, x]), sigma)
                tick()
                return both.split(len(x))
            fields = (self.velocity(video, part, tick, given, cut, cache, i * num) for i, part in enumerate(parts))
            return tuple(field(x, sigma) for field in islice(fields, branches))

        return answer

    def guided(self, ask: Ask, config: SampleConfig, lengths: Lengths) -> Velocity:
        """Guidance inside its interval of noise levels; outside, the prompt's own velocity from one evaluation."""

        def field(x: Tensor, sigma: Tensor) -> Tensor:
            now = self.settings_at(config, sigma)
            answers = ask(x, sigma, 2 if is_guided(now, sigma) else 1)
            return strengthen(*answers, now, lengths) if len(answers) == 2 else answers[0]

        return field

    def settings_at(self, config: SampleConfig, sigma: Tensor) -> SampleConfig:
        """The settings at a noise level: the second expert has a guidance of its own."""
        if config.guidance_2 is None or self.expert_at(sigma) == 0:
            return config
        return replace(config, guidance=config.guidance_2)
