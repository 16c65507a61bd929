"""The networks that training takes from checkpoint folders, and leaves as they are.

DitConfig  ->  Frozen(VAE, tokenizer, text encoder, scheduler)
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import diffusers
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from videogen.config.sizes import SPACE_STRIDE
from videogen.config.train import DitConfig
from videogen.models.checkpoint import check_weights, load_vae, meta_component
from videogen.models.checkpoint_config import components_of, read_json
from videogen.models.dit import VideoDiT
from videogen.models.hub import find_checkpoint
from videogen.models.text_encoder import load_text
from videogen.models.vae import VideoVAE
from videogen.models.wan_vae import WanVAE
from videogen.sampling.solvers import Scheduler
from videogen.toybox.token_labels import FACTS

logger = logging.getLogger(__name__)
Model = TypeVar("Model", VideoVAE, VideoDiT)


class Frozen(NamedTuple):
    """What stands beside a DiT."""

    vae: VideoVAE | WanVAE
    tokenizer: PreTrainedTokenizerBase
    text_encoder: PreTrainedModel
    scheduler: Scheduler | None = None


def frozen_parts(dit: DitConfig) -> Frozen:
    """VAE and text encoder of their own folders; for a LoRA all of the pipeline that it is for."""
    if not dit.lora_rank or dit.init is None:
        vae = load_part(VideoVAE, dit.vae, "vae").eval().requires_grad_(requires_grad=False)
        return Frozen(vae, *load_text(dit.text))
    vae = load_vae(dit.init).eval().requires_grad_(requires_grad=False)
    if vae.space_stride != SPACE_STRIDE:
        raise ValueError(f"{dit.init} has cells of {vae.space_stride} pixels; training takes models of {SPACE_STRIDE}")
    components = components_of(read_json(dit.init / "model_index.json"))
    if "transformer_2" in components:
        raise ValueError(f"{dit.init} has two transformers; training takes models of one, such as Wan 2.1")
    name = components.get("scheduler")
    scheduler = getattr(diffusers, name).from_pretrained(dit.init, subfolder="scheduler") if name else None
    return Frozen(vae, *load_text(dit.init), scheduler)


def count_frozen(dit: DitConfig) -> int:
    """The weights that frozen_parts will load, from their configs; a part that is not there yet counts none."""
    own = dit.init if dit.lora_rank else None
    found = [(own or dit.vae, "vae"), (own or dit.text, "text_encoder")]
    there = [(folder, part) for folder, part in found if (folder / part / "config.json").is_file()]
    return sum(weight.numel() for folder, part in there for weight in meta_component(folder, part).parameters())


def located(dit: DitConfig, find: Callable[[Path], Path] = find_checkpoint) -> DitConfig:
    """The same recipe with folders in place of Hub ids."""
    init = None if dit.init is None else find(dit.init)
    return replace(dit, vae=find(dit.vae), text=find(dit.text), init=init)


def check_fit(model: VideoDiT, vae: VideoVAE | WanVAE, dit: DitConfig, *, text_dim: int) -> None:
    """Refuse to go on from a DiT (dit.init) that the rest of the recipe does not go with; say what stays as it was."""
    assert dit.init is not None
    channels = vae.config["latent_channels"] if isinstance(vae, VideoVAE) else model.out_channels
    if model.out_channels != channels:
        raise ValueError(
            f"{dit.init} denoises latents of {model.out_channels} channels, and the VAE of {dit.vae} makes {channels}; "
            "give its own with --dit.vae"
        )
    if text_dim != (wanted := model.config["text_dim"]):
        raise ValueError(
            f"{dit.init} reads texts of {wanted} values a token, and the encoder of {dit.text} makes {text_dim}; "
            "give its own with --dit.text"
        )
    has_own = isinstance(vae, VideoVAE) and dit.init != dit.vae and (dit.init / "vae" / "config.json").is_file()
    if has_own and encoder_id(load_part(VideoVAE, dit.init, "vae")) != encoder_id(vae):
        said = "%s denoises latents of its own VAE, and those of %s are others; --dit.vae %s has them"
        logger.warning(said, dit.init, dit.vae, dit.init)
    usual = DitConfig()
    for name in ("num_layers", "patch_size", "prediction"):
        told, held = getattr(dit, name), model.config[name]
        if told not in (getattr(usual, name), tuple(held) if isinstance(held, list) else held):
            logger.warning("dit.%s = %s is left aside: %s has %s", name, told, dit.init, held)
    head = model.facts_head
    if dit.facts and head is not None and head.out_features != len(FACTS):
        said = f"{dit.init} tells {head.out_features} facts, and the toybox has {len(FACTS)}"
        raise ValueError(f"dit.facts does not go with dit.init: {said}; set it to 0")


def encoder_id(vae: VideoVAE | WanVAE) -> str:
    """A name for all that decides a VAE's latents; a decoder that is trained on changes nothing of it."""
    digest = hashlib.sha256()
    layers: list[nn.Module] = [vae.encoder, *([vae.quant_conv] if isinstance(vae, WanVAE) else [])]
    for name, value in (item for layer in layers for item in sorted(layer.state_dict().items())):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    digest.update(str((vae.config["latents_mean"], vae.config["latents_std"])).encode())
    return digest.hexdigest()


def load_part(kind: type[Model], folder: Path, name: str) -> Model:
    """One model of a checkpoint folder, checked."""
    if not (folder / name / "config.json").is_file():
        raise ValueError(f"{folder} has no {name}/config.json; give a checkpoint folder that holds one")
    check_weights(kind, folder / name)
    return kind.from_pretrained(folder, subfolder=name, dtype=torch.float32)
