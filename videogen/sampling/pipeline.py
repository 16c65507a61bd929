"""The sampling line as a pipeline of diffusers: its loading and saving, LoRA and offloading, and all of Wan.

    folder  <->  VideoPipeline;  prompts, SampleConfig, seeds  ->  clips (t, h, w, 3) uint8, as ClipSampler makes them

VideoPipeline is a diffusers pipeline folder on disk: model_index.json, transformer/, vae/, text_encoder/, tokenizer/.
A folder of diffusers' WanPipeline or WanImageToVideoPipeline opens too, and one of Wan's networks is saved as theirs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import ClassVar, cast

import torch
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from videogen.config.parsing import from_mapping, to_mapping
from videogen.config.sample import SampleConfig, resolve_frames
from videogen.data.files import MANIFEST
from videogen.models.checkpoint import check_checkpoint, copy_weights_into_memory, without_bars
from videogen.models.checkpoint_config import NO_IMAGE, TEXT_ONLY, convert_to_diffusers, with_videogen_classes
from videogen.models.dit import VideoDiT
from videogen.models.hub import find_checkpoint
from videogen.models.push import add_companions, push_to_hub
from videogen.models.text_encoder import embed_prompts, load_encoder, num_text_rows
from videogen.models.vae import VideoVAE
from videogen.models.wan_vae import WanVAE
from videogen.packing.packs import PackedText, PackedVideo, pad_texts
from videogen.sampling.clip_sampler import ClipRequest, ClipSampler
from videogen.sampling.diffusers_call import DiffusersCall
from videogen.sampling.image_prompts import embed_images, extra_channels_of
from videogen.sampling.known import Known
from videogen.sampling.known_tokens import Condition, KnownLatent
from videogen.sampling.lora_files import check_experts, read_lora
from videogen.sampling.lora_loading import load_lora
from videogen.sampling.solvers import AfterStep, Scheduler, Velocity, keep, make_scheduler, settings_of_scheduler

PUSHING = ("push_to_hub", "repo_id", "commit_message", "private", "token", "create_pr", "subfolder")  # in diffusers


class VideoPipeline(DiffusersCall, DiffusionPipeline, WanLoraLoaderMixin, ClipSampler):
    """Makes clips from prompts; loads and saves as a diffusers pipeline folder."""

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->transformer_2->vae"
    _optional_components: ClassVar = ["scheduler", "transformer", "transformer_2", "image_encoder", "image_processor"]
    transformer: VideoDiT | None  # Wan 2.2 A14B may have its second expert alone
    transformer_2: VideoDiT | None  # Wan 2.2 A14B: the expert for low noise
    vae: VideoVAE | WanVAE
    text_encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scheduler: Scheduler | None  # its settings, where the checkpoint brings one, or what has replaced it
    _own_scheduler: Scheduler | None  # the checkpoint's

    def __init__(
        self,
        transformer: VideoDiT | None,
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
        self._own_scheduler = scheduler
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
        parts = [part for part in ("text_encoder", "image_encoder") if part in components and part not in options]
        with without_bars():
            variant = cast("str | None", options.get("variant"))
            encoders = {part: load_encoder(folder, part, dtype=dtype, variant=variant) for part in parts}
        return cls.from_pretrained(folder, dtype=dtype, local_files_only=True, **encoders, **options)

    @classmethod
    def load_config(cls, *args: object, **options: object) -> dict[str, object]:  # type: ignore[override]
        """Read a folder's model_index.json with our classes in place of diffusers': they read the same weights."""
        index = super().load_config(*args, **options)  # type: ignore[arg-type]
        return with_videogen_classes(cast("dict[str, object]", index), Path(str(args[0])))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **options: object) -> VideoPipeline:
        """Load as diffusers does, with three differences: what the cache holds of a Hub id is used as it is, the dtype
        is float32 unless another is asked for, where transformers would keep the file's, and VAE and encoders are
        frozen: by the weights' need of gradients torch chooses among products, whose last bits may differ.
        """
        where = {name: cast("str | None", options.pop(name, None)) for name in ("revision", "cache_dir")}
        is_local = bool(options.get("local_files_only"))
        folder = find_checkpoint(pretrained_model_name_or_path, local_files_only=is_local, **where)
        if options.get("dtype") is None and options.get("torch_dtype") is None:
            options["dtype"] = torch.float32
        with without_bars():
            pipeline = super().from_pretrained(folder, **options)  # type: ignore[arg-type]
        for name, component in pipeline.components.items():
            if isinstance(component, torch.nn.Module):
                copy_weights_into_memory(component)
                if name not in options and not name.startswith("transformer"):
                    component.requires_grad_(False)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **options: object) -> None:  # type: ignore[override]
        """Save as diffusers does; a pipeline of Wan's networks becomes a folder that WanPipeline opens as well."""
        pushing = {name: options.pop(name) for name in PUSHING if name in options}
        if self.is_wan and self.scheduler is None:
            self.scheduler = make_scheduler("unipc", self.defaults.shift)
            self._own_scheduler = self.scheduler
            self.register_modules(scheduler=self.scheduler)
        if self.replaces_scheduler:
            self.register_to_config(defaults=to_mapping(self.defaults))
        (Path(save_directory) / MANIFEST).unlink(missing_ok=True)  # that of what the folder held before
        with without_bars():
            super().save_pretrained(save_directory, **options)  # type: ignore[arg-type]
        if self.is_wan:
            convert_to_diffusers(Path(save_directory))
        mode = Path(save_directory).stat().st_mode & 0o666
        for path in Path(save_directory).glob("*/*.safetensors"):
            path.chmod(mode)  # safetensors makes files that nobody else can read
        if pushing.pop("push_to_hub", False):
            name = str(pushing.pop("repo_id", None) or Path(save_directory).resolve().name)
            self.add_companions(Path(save_directory), title=name.split("/")[-1])
            push_to_hub(save_directory, name, **pushing)  # type: ignore[arg-type]

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, variant: str | None = None, **options: object
    ) -> str:
        """Push the pipeline to a repository of the Hub; return the commit's address.

        It has the card, the words and the licences of the folder that it was loaded from, where diffusers would write
        a card of its own. The options are those of `videogen.push_to_hub`.
        """
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / repo_id.split("/")[-1]
            self.save_pretrained(folder, variant=variant)
            self.add_companions(folder, title=folder.name)
            return push_to_hub(folder, repo_id, **options)  # type: ignore[arg-type]

    def add_companions(self, folder: Path, *, title: str) -> None:
        """Put what stood beside the parts of the pipeline's own folder into another."""
        add_companions(folder, Path(str(self.config.get("_name_or_path") or "")), title=title)

    def add_loras(self, names: Sequence[str]) -> None:
        """Add LoRAs to the weights: files or folders that diffusers reads, named as `read_lora` takes them."""
        loras = list(map(read_lora, names))
        check_experts(loras, two=len(self.experts) > 1)
        scales: dict[str, dict[str, float]] = {}
        for number, (path, scale, expert) in enumerate(loras):
            is_low = expert == "low" or self.transformer is None
            part, adapter = "transformer_2" if is_low else "transformer", f"lora_{number}"
            load_lora(self, path, adapter, part, scale)
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
        return [expert for expert in (self.transformer, self.transformer_2) if expert is not None]

    @property
    def boundary(self) -> float | None:
        """The noise level from which up the first expert answers; None for one transformer."""
        return self.config["boundary_ratio"] if len(self.experts) > 1 else None

    @property
    def is_wan(self) -> bool:
        """True if diffusers' WanPipeline can load this pipeline unchanged."""
        plain = all(dit.is_wan for dit in self.experts)
        return plain and isinstance(self.vae, WanVAE) and num_text_rows(self.text_encoder) > 0

    @property
    def replaces_scheduler(self) -> bool:
        """True if `pipeline.scheduler` is another than the checkpoint's."""
        return self.scheduler is not None and self.scheduler is not self._own_scheduler

    @property
    def defaults(self) -> SampleConfig:
        """The settings that this checkpoint was made for; with another scheduler, its sampler and its shift."""
        settings = from_mapping(SampleConfig, self.config["defaults"])
        if self.scheduler is None or not self.replaces_scheduler:
            return settings
        return replace(settings, **settings_of_scheduler(self.scheduler))  # type: ignore[arg-type]

    def check_scheduler(self, config: SampleConfig) -> None:
        """Refuse settings of another sampler than the scheduler that has been put in place of the checkpoint's."""
        if self.replaces_scheduler and config.sampler != self.defaults.sampler:
            raise ValueError(
                f"the pipeline's scheduler was replaced by a {type(self.scheduler).__name__}, which is sampler "
                f"{self.defaults.sampler!r}, and the settings say {config.sampler!r}; begin with pipeline.defaults, or "
                "set pipeline.scheduler to None"
            )

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
        """Solve from noise to clean tokens, as settings and the scheduler say where these agree."""
        self.check_scheduler(config)
        return super().solve(velocity, noise, seeds, config, clean, after_step=after_step)

    def condition(
        self, requests: Sequence[ClipRequest], configs: Sequence[SampleConfig], noise: PackedVideo
    ) -> Condition:
        """Encode what is known of a pack's clips; for Wan's image-to-video models as extra channels, and by CLIP."""
        if self.experts[0].in_channels == self.experts[0].out_channels:
            return super().condition(requests, configs, noise)
        clips = [request.known for request in requests if request.known and not isinstance(request.known, KnownLatent)]
        if len(clips) < len(requests):
            raise ValueError(NO_IMAGE)
        if len({self.latent_shape(config) for config in configs}) > 1:
            raise ValueError("clips of several sizes and images do not share a pack; make those of each size together")
        config, vae = configs[0], cast("WanVAE", self.vae)
        frames = resolve_frames(config, vae.time_stride)
        condition = Condition(extra_channels=extra_channels_of(clips, vae, noise, frames, config.height, config.width))
        if not self.experts[0].takes_image_embeddings:
            return condition
        self.maybe_free_model_hooks()
        size, parts = (config.width, config.height), (self.image_processor, self.image_encoder)
        return condition._replace(image_rows=embed_images(clips, size, *parts, self.compute_device))

    def encode_known(self, known: Sequence[Known] | KnownLatent, config: SampleConfig) -> KnownLatent:
        """Encode what is known of a clip; Wan's text-to-video models can begin with it, and cannot keep it."""
        latent = super().encode_known(known, config)
        if latent.weight.any() and self.is_wan and not self.config["expand_timesteps"]:
            raise ValueError(TEXT_ONLY)
        return latent

    def embed(self, prompts: Sequence[str]) -> PackedText:
        """Embed prompts as one pack, padded with zeros where the encoder's are."""
        return pad_texts(self.embed_rows(prompts), self.num_text_rows())

    def embed_rows(self, prompts: Sequence[str], max_length: int | None = None) -> list[Tensor]:
        """Embed each prompt as (m_i, text_dim), truncated beyond a number of tokens (the encoder's own by default)."""
        return embed_prompts(prompts, self.tokenizer, self.text_encoder, self.compute_device, max_length=max_length)

    def num_text_rows(self, max_length: int | None = None) -> int:
        """Return to how many rows a text is padded; 0 if the encoder's texts are not padded."""
        rows = num_text_rows(self.text_encoder)
        return min(rows, max_length or rows)
