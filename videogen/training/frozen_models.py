"""Load the networks that training takes from checkpoint folders and does not change.

DitConfig  ->  FrozenModels(VAE, tokenizer, text encoder, scheduler)
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
from videogen.data.manifest import check_manifest
from videogen.models.checkpoint import check_weights, load_vae, meta_component
from videogen.models.checkpoint_config import components_of, read_json
from videogen.models.dit import VideoDiT
from videogen.models.hub import find_checkpoint
from videogen.models.quantised_linear import load_quantised
from videogen.models.text_encoder import load_tokenizer_and_encoder
from videogen.models.vae import VideoVAE
from videogen.models.wan_vae import WanVAE
from videogen.sampling.solvers import Scheduler
from videogen.toybox.token_labels import FACTS

logger = logging.getLogger(__name__)
Model = TypeVar("Model", VideoVAE, VideoDiT)


class FrozenModels(NamedTuple):
    """The frozen models that a DiT is trained with; a scheduler only if the DiT's pipeline has one."""

    vae: VideoVAE | WanVAE
    tokenizer: PreTrainedTokenizerBase
    text_encoder: PreTrainedModel
    scheduler: Scheduler | None = None


def load_frozen(dit: DitConfig, *, text_dtype: torch.dtype = torch.float32) -> FrozenModels:
    """Load the VAE and the text encoder, each from its own folder; a LoRA takes all of them from its pipeline."""
    if not dit.lora_rank or dit.init is None:
        vae = load_part(VideoVAE, dit.vae, "vae").eval().requires_grad_(requires_grad=False)
        check_manifest(dit.text, only=("tokenizer", "text_encoder"))
        return FrozenModels(vae, *load_tokenizer_and_encoder(dit.text))
    vae = load_vae(dit.init).eval().requires_grad_(requires_grad=False)
    if vae.space_stride != SPACE_STRIDE:
        raise ValueError(f"{dit.init} has cells of {vae.space_stride} pixels; training takes models of {SPACE_STRIDE}")
    components = components_of(read_json(dit.init / "model_index.json"))
    if "transformer_2" in components:
        has = "two transformers" if "transformer" in components else "the second of two transformers alone"
        raise ValueError(f"{dit.init} has {has}; training takes models of one, such as Wan 2.1")
    name = components.get("scheduler")
    scheduler = getattr(diffusers, name).from_pretrained(dit.init, subfolder="scheduler") if name else None
    return FrozenModels(vae, *load_tokenizer_and_encoder(dit.init, dtype=text_dtype), scheduler)


def count_frozen_weights(dit: DitConfig) -> dict[str, int]:
    """Count the weights of each model that load_frozen will load, from its config; one that is missing counts 0."""
    pipeline = dit.init if dit.lora_rank else None
    folders = {"vae": pipeline or dit.vae, "text_encoder": pipeline or dit.text}
    return {
        part: sum(weight.numel() for weight in meta_component(folder, part).parameters())
        if (folder / part / "config.json").is_file()
        else 0
        for part, folder in folders.items()
    }


def resolve_checkpoints(dit: DitConfig, find: Callable[[Path], Path] = find_checkpoint) -> DitConfig:
    """Replace the recipe's Hub ids by their folders."""
    return replace(dit, vae=find(dit.vae), text=find(dit.text), init=dit.init and find(dit.init))


def check_compatible(model: VideoDiT, vae: VideoVAE | WanVAE, dit: DitConfig, *, text_dim: int) -> None:
    """Check the DiT of dit.init against the rest of the recipe.

    Raises a ValueError if the model cannot be trained with the VAE, the text encoder or the facts, and warns of
    settings that the model overrides.
    """
    assert dit.init is not None
    channels = vae.config["latent_channels"] if isinstance(vae, VideoVAE) else model.out_channels
    if model.out_channels != channels:
        raise ValueError(
            f"{dit.init} denoises latents of {model.out_channels} channels, and the VAE of {dit.vae} makes {channels}; "
            "give the VAE that this model was trained with (--dit.vae)"
        )
    if text_dim != (model_text_dim := model.config["text_dim"]):
        raise ValueError(
            f"{dit.init} takes text embeddings of width {model_text_dim}, and the encoder of {dit.text} makes "
            f"{text_dim}; give the text encoder that this model was trained with (--dit.text)"
        )
    has_own_vae = isinstance(vae, VideoVAE) and dit.init != dit.vae and (dit.init / "vae" / "config.json").is_file()
    if has_own_vae and encoder_id(load_part(VideoVAE, dit.init, "vae")) != encoder_id(vae):
        message = "%s denoises latents of its own VAE, and those of %s are others; --dit.vae %s has them"
        logger.warning(message, dit.init, dit.vae, dit.init)
    defaults = DitConfig()
    for name in ("num_layers", "patch_size", "prediction"):
        setting, in_model = getattr(dit, name), model.config[name]
        if setting not in (getattr(defaults, name), tuple(in_model) if isinstance(in_model, list) else in_model):
            logger.warning("dit.%s = %s is left aside: %s has %s", name, setting, dit.init, in_model)
    head = model.facts_head
    if dit.facts and head is not None and head.out_features != len(FACTS):
        reason = f"{dit.init} tells {head.out_features} facts, and the toybox has {len(FACTS)}"
        raise ValueError(f"dit.facts does not go with dit.init: {reason}; set it to 0")


def encoder_id(vae: VideoVAE | WanVAE) -> str:
    """Hash everything that decides a VAE's latents; training its decoder further does not change the hash."""
    digest = hashlib.sha256()
    layers: list[nn.Module] = [vae.encoder, *([vae.quant_conv] if isinstance(vae, WanVAE) else [])]
    for name, value in (item for layer in layers for item in sorted(layer.state_dict().items())):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    digest.update(str((vae.config["latents_mean"], vae.config["latents_std"])).encode())
    return digest.hexdigest()


def load_base(dit: DitConfig) -> VideoDiT:
    """Load the transformer of dit.init, the matrices below a LoRA in dit.base_dtype."""
    assert dit.init is not None
    if dit.base_dtype == "float32":
        return load_part(VideoDiT, dit.init, "transformer")
    check_part(dit.init, "transformer")
    return load_quantised(dit.init / "transformer", dit.base_dtype)


def load_part(kind: type[Model], folder: Path, name: str) -> Model:
    """Check and load one model of a checkpoint folder in float32."""
    check_part(folder, name)
    check_weights(kind, folder / name)
    return kind.from_pretrained(folder, subfolder=name, dtype=torch.float32)


def check_part(folder: Path, name: str) -> None:
    """Raise a ValueError if a model of a checkpoint folder is not there, or damaged."""
    if not (folder / name / "config.json").is_file():
        raise ValueError(f"{folder} has no {name}/config.json; give a checkpoint folder that holds one")
    check_manifest(folder, only=(name,))
