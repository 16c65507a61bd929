"""Prompt to frames, in the order of the diagram in DESIGN: text, noise, sampling, decoding.

    prompts, SampleConfig, seeds  ->  frames (t, h, w, 3) uint8, one tensor a prompt

VideoPipeline is a diffusers pipeline folder on disk: model_index.json, transformer/, vae/, text_encoder/, tokenizer/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from videogen.config import SampleConfig, check_size, from_mapping, read_defaults, resolve_frames, to_mapping
from videogen.dit import TextContext, VideoDiT
from videogen.flow import velocity_of
from videogen.packing import Lengths, PackedVideo, pack, shared_level, unpack
from videogen.sampling import Velocity, denoise, guide, seeded_noise, zero_star
from videogen.text import embed_prompts, load_encoder, pack_texts
from videogen.vae import SPACE_STRIDE, VideoVAE

Tick = Callable[[], None]


class Job(NamedTuple):
    """One clip to make."""

    prompt: str
    seed: int


def to_uint8(video: Tensor) -> Tensor:
    """A clip (3, t, h, w) in [-1, 1] as frames (t, h, w, 3) uint8; a FloatingPointError where it is not finite."""
    if not video.isfinite().all():
        raise FloatingPointError("the decoded frames are not finite; check the weights and their precision")
    return rearrange((video.float().clamp(-1, 1) + 1) * 127.5, "c t h w -> t h w c").round().to(torch.uint8).cpu()


class VideoPipeline(DiffusionPipeline):
    """Makes clips from prompts; loads and saves as a diffusers pipeline folder."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    transformer: VideoDiT
    vae: VideoVAE
    text_encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        transformer: VideoDiT,
        vae: VideoVAE,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        defaults: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_to_config(defaults=dict(defaults or to_mapping(SampleConfig())))

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype = torch.float32) -> VideoPipeline:
        """from_pretrained of a local folder, checked first: every weight there, none too many, each of its shape."""
        read_defaults(folder)
        check_weights(VideoDiT, folder / "transformer")
        check_weights(VideoVAE, folder / "vae")
        quiet_libraries()
        encoder = load_encoder(folder, dtype=dtype)
        return cls.from_pretrained(folder, dtype=dtype, local_files_only=True, text_encoder=encoder)

    @classmethod
    def from_pretrained(cls, *args: object, **options: object) -> VideoPipeline:  # type: ignore[override]
        """As of diffusers, but float32 unless another dtype is asked for: transformers would keep the file's."""
        if options.get("dtype") is None and options.get("torch_dtype") is None:
            options["dtype"] = torch.float32
        pipeline = super().from_pretrained(*args, **options)  # type: ignore[arg-type]
        # Weights in a file are not aligned as those in memory are, and the matrix products round differently then.
        for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
            for weight in part.parameters():
                weight.data = weight.data.clone()
        return pipeline

    @property
    def defaults(self) -> SampleConfig:
        """The settings that this checkpoint was made for."""
        return from_mapping(SampleConfig, self.config["defaults"])

    def __call__(
        self, prompts: Sequence[str] | str, config: SampleConfig | None = None, *, seeds: Sequence[int] | None = None
    ) -> list[Tensor]:
        """One clip (t, h, w, 3) uint8 a prompt, all in one pack; seeds default to 0, 1, 2, ..."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"give as many seeds as prompts, got {len(seeds)} for {len(prompts)}")
        jobs = [Job(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        latents = self.sample(jobs, config or self.defaults)
        return [torch.cat(list(self.frames(latent))) for latent in latents]

    @torch.no_grad()
    def sample(self, jobs: Sequence[Job], config: SampleConfig, tick: Tick = lambda: None) -> list[Tensor]:
        """The latents (c, t, h, w) of some clips, denoised side by side; tick is called at each network evaluation."""
        shape = self.latent_shape(config)
        noise = seeded_noise([shape] * len(jobs), [job.seed for job in jobs])
        video = pack([latent.to(self.device) for latent in noise], self.transformer.base_patch)
        answer = self.velocity(video, self.read([job.prompt for job in jobs]), tick)
        if config.guidance != 1:
            blank = self.velocity(video, self.read([config.negative] * len(jobs)), tick)
            answer = guided(answer, blank, config, video.lengths)
        tokens = denoise(config.sampler, answer, video.tokens, steps=config.steps, shift=config.shift)
        if not tokens.isfinite().all():
            raise FloatingPointError("the latents are not finite; lower the guidance or check the weights")
        return unpack(video._replace(tokens=tokens))

    @torch.no_grad()
    def frames(self, latent: Tensor) -> Iterator[Tensor]:
        """Decode one latent, yielding frames (t, h, w, 3) uint8 as they are ready."""
        for part in self.vae.decode_stream(latent[None].to(self.vae.dtype), chunk=4):
            yield to_uint8(part[0])

    def latent_shape(self, config: SampleConfig) -> tuple[int, int, int, int]:
        """(c, t, h, w) of the latent of a clip of these settings; a ValueError where the strides forbid it."""
        check_size(config.width, config.height, SPACE_STRIDE * max(self.transformer.base_patch[1:]))
        return self.vae.latent_shape(resolve_frames(config, self.vae.time_stride), config.height, config.width)

    def read(self, prompts: Sequence[str]) -> TextContext:
        """The keys and values of the prompts in every block, each different prompt read once."""
        unique = sorted(set(prompts))
        embedded = dict(zip(unique, embed_prompts(unique, self.tokenizer, self.text_encoder), strict=True))
        return self.transformer.read_text(pack_texts([embedded[prompt] for prompt in prompts]))

    def velocity(self, video: PackedVideo, context: TextContext, tick: Tick) -> Velocity:
        """The network as a velocity field on the tokens of a pack."""

        def field(tokens: Tensor, sigma: Tensor) -> Tensor:
            levels = shared_level(sigma.reshape(1), len(tokens))
            out = self.transformer(video._replace(tokens=tokens), levels, context).float()
            tick()
            return velocity_of(out, tokens, sigma) if self.transformer.config["prediction"] == "clean" else out

        return field


def guided(cond: Velocity, uncond: Velocity, config: SampleConfig, lengths: Lengths) -> Velocity:
    """Guidance inside its interval of noise levels; outside, the prompt's own velocity from one evaluation."""

    def field(x: Tensor, sigma: Tensor) -> Tensor:
        answer = cond(x, sigma)
        return strengthen(answer, uncond(x, sigma), config, lengths) if is_guided(config, sigma) else answer

    return field


def is_guided(config: SampleConfig, sigma: Tensor) -> bool:
    """Whether the negative prompt is asked at this noise level."""
    low, high = config.guidance_interval
    return config.guidance != 1 and low <= float(sigma) <= high


def strengthen(answer: Tensor, blank: Tensor, config: SampleConfig, lengths: Lengths) -> Tensor:
    """The prompt's velocity, led away from the negative prompt's."""
    return guide(answer, zero_star(answer, blank, lengths) if config.cfg_zero else blank, config.guidance)


def check_weights(kind: type[VideoDiT] | type[VideoVAE], folder: Path) -> None:
    """Refuse a model folder whose weights are not exactly those that its config asks for."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; the checkpoint is not complete")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no .safetensors weights; the checkpoint is not complete")
    with torch.device("meta"):
        model = cast("VideoDiT | VideoVAE", kind.from_config(cast("dict[str, object]", kind.load_config(folder))))
    wanted = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not whole: {error}; download or save the checkpoint again") from None
    for say, names in (("lacks", wanted.keys() - found.keys()), ("has an extra weight", found.keys() - wanted.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{folder} {say} {min(names)}{more}; its weights do not belong to its config.json")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(f"{folder}: {name} is {found[name]} and its config.json asks for {shape}")


def quiet_libraries() -> None:
    """No progress bars of libraries: loading takes a moment and the command has a bar of its own."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
