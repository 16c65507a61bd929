"""Read the weights of files in the layouts that people have them in, and what a network of them is.

    file of Wan's own code, ComfyUI, diffusers or transformers  ->  {their names here: weight}, fp8 times its scale
    {names: weight}, of which shapes do  ->  config.json of diffusers or transformers

Names are converted by diffusers where it does it: transformers, and the VAE of Wan 2.1. Sizes are read off the shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from einops import rearrange

from videogen.models.original_folder import list_shards

if TYPE_CHECKING:
    from torch import Tensor

# No shape tells the width of a head: it is that of all of Wan's transformers, and that of their CLIP, ViT-H/14.
HEAD_WIDTH, CLIP_HEAD_WIDTH = 128, 80
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "first_stage_model.", "vae.")
SCALE = ".scale_weight"  # of fp8 weights, as ComfyUI scales them
NO_WEIGHTS = ("scaled_fp8", ".scale_input", "spiece_model", ".position_ids")  # parts of names beside the weights
# Of UMT5: names of Wan's own code, and those of transformers.
UMT5_NAMES = {
    "token_embedding.": "shared.", "blocks.": "encoder.block.", ".norm1.": ".layer.0.layer_norm.",
    ".norm2.": ".layer.1.layer_norm.", ".attn.": ".layer.0.SelfAttention.",
    ".pos_embedding.embedding.": ".layer.0.SelfAttention.relative_attention_bias.",
    ".ffn.gate.0.": ".layer.1.DenseReluDense.wi_0.", ".ffn.fc1.": ".layer.1.DenseReluDense.wi_1.",
    ".ffn.fc2.": ".layer.1.DenseReluDense.wo.",
}  # fmt: skip
# Of CLIP's half that sees, likewise.
CLIP_NAMES = {
    "patch_embedding.": "embeddings.patch_embedding.", "pre_norm.": "pre_layrnorm.", "post_norm.": "post_layernorm.",
    "transformer.": "encoder.layers.", ".norm1.": ".layer_norm1.", ".norm2.": ".layer_norm2.",
    ".attn.proj.": ".self_attn.out_proj.", ".mlp.0.": ".mlp.fc1.", ".mlp.2.": ".mlp.fc2.",
}  # fmt: skip
CLIP_READS = ("textual.", "log_scale")  # its half that reads, which Wan does not use
FLF2V_NAMES = {"img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed"}  # which diffusers does not convert
# A stage of the VAE of Wan 2.2, and the parts of its residual layers.
VAE_22_STAGE = re.compile(r"(encoder|decoder)\.(down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)")
VAE_22_NAMES = {
    "residual.0.": "norm1.", "residual.2.": "conv1.", "residual.3.": "norm2.", "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}  # fmt: skip
# The statistics of its latents (Wan Team 2025), which its file does not hold.
VAE_22_MEAN = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]  # fmt: skip
VAE_22_STD = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
]  # fmt: skip
Config = dict[str, object]
T = TypeVar("T")  # a weight, or what stands for it in a .gguf


def read_shapes(path: Path) -> dict[str, Tensor]:
    """Read the weights of a file, or of a folder of shards, by bare names as tensors without values, and no scales."""
    import torch
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for shard in list_shards(path):
        try:
            with safe_open(shard, framework="pt") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{shard} is not whole: {error}; download it again") from None
    return {bare_name(name): torch.empty(shape, device="meta") for name, shape in shapes.items() if is_weight(name)}


def is_weight(name: str) -> bool:
    """True for the name of a weight, not of what stands beside it."""
    return not name.endswith(SCALE) and not any(part in name for part in NO_WEIGHTS)


def bare_name(name: str) -> str:
    """Take off the prefix under which programs file a part."""
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights of read_shapes; those of fp8 that have a scale are multiplied by it, in float32."""
    from safetensors.torch import load_file

    tensors = {name: tensor for shard in list_shards(path) for name, tensor in load_file(shard).items()}
    scales = {name.removesuffix(SCALE) + ".weight": scale for name, scale in tensors.items() if name.endswith(SCALE)}
    return {
        bare_name(name): tensor.float() * scales[name].float() if name in scales else tensor
        for name, tensor in tensors.items()
        if is_weight(name)
    }


def renamed(name: str, names: Mapping[str, str]) -> str:
    """Replace parts of a name: those that begin with a dot anywhere in it, the others at its beginning."""
    for old, new in names.items():
        if old.startswith("."):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def convert_transformer(weights: Mapping[str, T]) -> dict[str, T]:
    """Rename a transformer's weights to diffusers' names, where they are not in them."""
    if any(name.startswith("condition_embedder.") for name in weights):
        return dict(weights)
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return convert_wan_transformer_to_diffusers({renamed(name, FLF2V_NAMES): w for name, w in weights.items()})


def transformer_config(shapes: Mapping[str, Tensor], path: Path) -> Config:
    """Read the sizes of a transformer off its shapes; a ValueError where it is none, or of a kind that does not run."""
    image = "condition_embedder.image_embedder."
    try:
        width, in_channels, *patch = shapes["patch_embedding.weight"].shape
        out_channels = len(shapes["proj_out.weight"]) // math.prod(patch)
        config: Config = {
            "patch_size": patch,
            "num_attention_heads": width // HEAD_WIDTH,
            "attention_head_dim": HEAD_WIDTH,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"].shape[1],
            "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"].shape[1],
            "ffn_dim": len(shapes["blocks.0.ffn.net.0.proj.weight"]),
            "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        }
    except KeyError as error:
        raise ValueError(f"{path} is no transformer of Wan: it has no {error.args[0]}; give one with --model") from None
    if in_channels not in (out_channels, 2 * out_channels + 4):  # an image's latent, and which of 4 frames it is
        raise ValueError(
            f"{path} takes {in_channels} channels for {out_channels}, which is neither text nor image to video; "
            f"give one of {out_channels} or {2 * out_channels + 4}"
        )
    if f"{image}norm1.weight" in shapes:
        config["image_dim"] = len(shapes[f"{image}norm1.weight"])
    if "blocks.0.attn2.add_k_proj.weight" in shapes:
        config["added_kv_proj_dim"] = shapes["blocks.0.attn2.add_k_proj.weight"].shape[1]
    if f"{image}pos_embed" in shapes:
        config["pos_embed_seq_len"] = shapes[f"{image}pos_embed"].shape[1]
    return config


def convert_vae(weights: Mapping[str, T]) -> dict[str, T]:
    """Rename a VAE's weights to diffusers' names, where they are not in them."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    stages = {name: match for name in weights if (match := VAE_22_STAGE.fullmatch(name))}
    return {name_of_stage(match): weights[name] for name, match in stages.items()} | convert_wan_vae_to_diffusers(
        {name: weight for name, weight in weights.items() if name not in stages}
    )


def name_of_stage(match: re.Match[str]) -> str:
    """Rename a weight of a stage of Wan 2.2's VAE to diffusers' name."""
    half, way, stage, layer, rest = match.groups()
    if rest.startswith(("resample.", "time_conv.")):
        return f"{half}.{way}_blocks.{stage}.{way}sampler.{rest}"
    return f"{half}.{way}_blocks.{stage}.resnets.{layer}.{renamed(rest, VAE_22_NAMES)}"


def vae_config(shapes: Mapping[str, Tensor], path: Path) -> Config:
    """Read the sizes of a VAE of Wan 2.1 or 2.2 off its shapes; a ValueError where it is none."""
    try:
        first, last = shapes["encoder.conv_in.weight"], shapes["decoder.conv_out.weight"]
        channels = len(shapes["post_quant_conv.weight"])
        if not any(name.startswith("encoder.down_blocks.0.resnets.") for name in shapes):
            return {"base_dim": len(first), "z_dim": channels}
        if channels != len(VAE_22_MEAN):
            raise ValueError(f"{path} has latents of {channels} channels, and Wan 2.2's have {len(VAE_22_MEAN)}")
        sides = math.isqrt(first.shape[1] // 3)
        return {
            "base_dim": len(first),
            "decoder_base_dim": len(shapes["decoder.conv_in.weight"]) // 4,
            "z_dim": channels,
            "is_residual": True,
            "in_channels": first.shape[1],
            "out_channels": len(last),
            "patch_size": sides,
            "scale_factor_temporal": 4,
            "scale_factor_spatial": 8 * sides,
            "latents_mean": VAE_22_MEAN,
            "latents_std": VAE_22_STD,
        }
    except KeyError as error:
        raise ValueError(f"{path} is no VAE of Wan: it has no {error.args[0]}; give one with --vae") from None


def convert_text(weights: Mapping[str, T]) -> dict[str, T]:
    """Rename the weights of UMT5 from the names of Wan's own code to those of transformers."""
    if "token_embedding.weight" not in weights:
        return dict(weights)
    return {
        "encoder.final_layer_norm.weight" if name == "norm.weight" else renamed(name, UMT5_NAMES): weight
        for name, weight in weights.items()
    }


def text_config(shapes: Mapping[str, Tensor], path: Path) -> Config:
    """Read the sizes of UMT5 off its shapes; a ValueError where it is none."""
    first = "encoder.block.0.layer"
    try:
        buckets, heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"].shape
        return {
            "architectures": ["UMT5EncoderModel"],
            "model_type": "umt5",
            "vocab_size": len(shapes["shared.weight"]),
            "d_model": shapes["shared.weight"].shape[1],
            "num_heads": heads,
            "d_kv": len(shapes[f"{first}.0.SelfAttention.q.weight"]) // heads,
            "d_ff": len(shapes[f"{first}.1.DenseReluDense.wi_0.weight"]),
            "num_layers": 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
            "relative_attention_num_buckets": buckets,
            "feed_forward_proj": "gated-gelu",
        }
    except KeyError as error:
        raise ValueError(f"{path} is no UMT5 encoder: it has no {error.args[0]}; give one with --text") from None


def convert_image_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of CLIP's half that sees to transformers' names, without its prefix vision_model.

    In Wan's own code queries, keys and values are one matrix, and the projection is transposed.
    """
    converted: dict[str, Tensor] = {}
    for whole_name, weight in weights.items():
        name = whole_name.removeprefix("visual.").removeprefix("vision_model.")
        if name == "cls_embedding":
            converted["embeddings.class_embedding"] = rearrange(weight, "1 1 d -> d")
        elif name == "pos_embedding":
            converted["embeddings.position_embedding.weight"] = rearrange(weight, "1 m d -> m d")
        elif name == "head":
            converted["visual_projection.weight"] = rearrange(weight, "d out -> out d")
        elif ".attn.to_qkv." in name:
            for part, rows in zip("qkv", rearrange(weight, "(three d) ... -> three d ...", three=3), strict=True):
                own = name.replace(".attn.to_qkv.", f".self_attn.{part}_proj.")
                converted[renamed(own, CLIP_NAMES)] = rows
        elif not name.startswith(CLIP_READS):
            converted[renamed(name, CLIP_NAMES)] = weight
    return converted


def image_encoder_config(shapes: Mapping[str, Tensor], path: Path) -> Config:
    """Read the sizes of CLIP's half that sees off its shapes; a ValueError where it is none."""
    try:
        width, patch = len(shapes["embeddings.class_embedding"]), shapes["embeddings.patch_embedding.weight"].shape[2]
        side = math.isqrt(len(shapes["embeddings.position_embedding.weight"]) - 1)  # the first row is the class's
        config: Config = {
            "architectures": ["CLIPVisionModel"],
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": len(shapes["encoder.layers.0.mlp.fc1.weight"]),
            "num_attention_heads": width // CLIP_HEAD_WIDTH,
            "num_hidden_layers": 1 + max(int(n.split(".")[2]) for n in shapes if n.startswith("encoder.layers.")),
            "patch_size": patch,
            "image_size": side * patch,
            "hidden_act": "gelu",
        }
    except KeyError as error:
        raise ValueError(f"{path} is no CLIP that sees: it has no {error.args[0]}; give --image-encoder one") from None
    if (projection := shapes.get("visual_projection.weight")) is not None:
        config |= {"architectures": ["CLIPVisionModelWithProjection"], "projection_dim": len(projection)}
    return config
