"""Read weights that come as single files: Wan's transformers and VAE, and UMT5, in the original or in ComfyUI's layout.

    transformer.safetensors, --vae FILE, --text FILE  ->  a folder of their configs, and which file each part is in
    a part's file  ->  the network, its fp8 weights multiplied by their scales

The names are converted by diffusers, sizes are read off the shapes. A part may also be a folder, as diffusers saves it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from atexit import register
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from videogen.data.files import content_id, error_reason
from videogen.models.checkpoint_config import ModelFiles

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".gguf")
HEAD_WIDTH = 128  # of all of Wan's transformers; no shape tells it
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "first_stage_model.", "vae.")
SCALE = ".scale_weight"  # of fp8 weights, as ComfyUI scales them
NO_WEIGHTS = ("scaled_fp8", ".scale_input", "spiece_model")  # parts of names beside the weights
SHIFT = 3.0
INDEX = {
    "_class_name": "WanPipeline",
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
}
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True,
    "num_train_timesteps": 1000, "flow_shift": SHIFT,
}  # fmt: skip
# UMT5 in the names of Wan's own code, and in those of transformers.
UMT5_NAMES = {
    "token_embedding.": "shared.", "blocks.": "encoder.block.", ".norm1.": ".layer.0.layer_norm.",
    ".norm2.": ".layer.1.layer_norm.", ".attn.": ".layer.0.SelfAttention.",
    ".pos_embedding.embedding.": ".layer.0.SelfAttention.relative_attention_bias.",
    ".ffn.gate.0.": ".layer.1.DenseReluDense.wi_0.", ".ffn.fc1.": ".layer.1.DenseReluDense.wi_1.",
    ".ffn.fc2.": ".layer.1.DenseReluDense.wo.",
}  # fmt: skip
Shapes = Mapping[str, Sequence[int]]
T = TypeVar("T")  # a weight, or its shape


def is_weight_file(name: str) -> bool:
    """True if a model is named by a file of weights, not by a folder or an id."""
    return Path(name).suffix.lower() in WEIGHT_FILES and not Path(name).is_dir()


def check_file(path: Path, flag: str) -> None:
    """Refuse a file that does not exist, a pickle, and any other that holds no safetensors."""
    if path.suffix.lower() == ".gguf":
        raise ValueError(f"{path} replaces the transformer of a folder: --model FOLDER --gguf {path}")
    if not path.exists():
        raise ValueError(f"there is no file {path}; give another with {flag}")
    if path.is_file() and path.suffix.lower() != ".safetensors":
        new = path.with_suffix(".safetensors").name
        raise ValueError(
            f"{path} is a pickle, which could run anything when it is opened; convert it where you trust it: python -c "
            f"\"import torch, safetensors.torch as s; s.save_file(torch.load('{path.name}', map_location='cpu', "
            f"weights_only=True), '{new}')\""
        )


def assemble(model: Path, vae: Path | None, text: Path | None) -> tuple[Path, ModelFiles]:
    """Write the configs of a model's parts into a folder for this process, and return it with the parts' files.

    Raises a ValueError that names a part that is not given, or that a file does not hold.
    """
    check_file(model, "--model")
    for part, flag in ((vae, "--vae"), (text, "--text")):
        if part is None:
            raise ValueError(f"{model} holds a transformer alone; give {flag} too, a file or a folder")
        check_file(part, flag)
    assert vae is not None
    assert text is not None
    files = ModelFiles(model, vae, text)
    root = Path(tempfile.mkdtemp(prefix="videogen-"))
    register(shutil.rmtree, root, ignore_errors=True)
    folder = root / model.stem
    config = transformer_config(convert_transformer(read_shapes(model)), model)
    configs = {
        "transformer/config.json": {"_class_name": "WanTransformer3DModel"} | config,
        "vae/config.json": {"_class_name": "AutoencoderKLWan"} | vae_config(vae),
        "text_encoder/config.json": text_config(text),
        "scheduler/scheduler_config.json": SCHEDULER,
        "model_index.json": INDEX | {"expand_timesteps": config["in_channels"] == 48},  # Wan 2.2 5B
        "files.json": {part: content_id(path) for part, path in files._asdict().items()},  # which the clips record
    }
    for name, values in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values, indent=2), encoding="utf-8")
    find_tokenizer(text)
    return folder, files


def read_shapes(path: Path) -> dict[str, Sequence[int]]:
    """Read the names and shapes of a file's weights, without prefixes and scales."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not whole: {error}; download it again") from None
    return {bare_name(name): shape for name, shape in shapes.items() if is_weight(name)}


def is_weight(name: str) -> bool:
    """True for the name of a weight, not of what stands beside it."""
    return not name.endswith(SCALE) and not any(part in name for part in NO_WEIGHTS)


def bare_name(name: str) -> str:
    """Take off the prefix under which programs file a part."""
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file's weights by bare names; those of fp8 that have a scale are multiplied by it, in float32."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    scales = {name.removesuffix(SCALE) + ".weight": scale for name, scale in tensors.items() if name.endswith(SCALE)}
    return {
        bare_name(name): tensor.float() * scales[name].float() if name in scales else tensor
        for name, tensor in tensors.items()
        if is_weight(name)
    }


def convert_transformer(weights: Mapping[str, T]) -> dict[str, T]:
    """Rename a transformer's weights to diffusers' names, where they are not in them."""
    if any(name.startswith("condition_embedder.") for name in weights):
        return dict(weights)
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return convert_wan_transformer_to_diffusers(dict(weights))


def transformer_config(shapes: Shapes, path: Path) -> dict[str, object]:
    """Read the sizes of a text-to-video transformer off its shapes; a ValueError where it is none."""
    try:
        width, in_channels, *patch = shapes["patch_embedding.weight"]
        return {
            "patch_size": patch,
            "num_attention_heads": width // HEAD_WIDTH,
            "attention_head_dim": HEAD_WIDTH,
            "in_channels": check_channels(in_channels, shapes, path),
            "out_channels": shapes["proj_out.weight"][0] // (patch[0] * patch[1] * patch[2]),
            "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
            "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
            "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
            "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        }
    except KeyError as error:
        raise ValueError(f"{path} is no transformer of Wan: it has no {error.args[0]}; give one with --model") from None


def check_channels(in_channels: int, shapes: Shapes, path: Path) -> int:
    """Refuse a transformer that begins with an image: its CLIP or its second expert is in no single file."""
    if in_channels != shapes["proj_out.weight"][0] // 4 or "condition_embedder.image_embedder.norm1.weight" in shapes:
        raise ValueError(f"{path} begins with an image, and needs more parts than files give; use diffusers' folder")
    return in_channels


def vae_config(path: Path) -> dict[str, object]:
    """Read the config of a VAE's folder, or the sizes of Wan 2.1's off its shapes."""
    if path.is_dir():
        return read_config(path, "vae", "--vae")
    shapes = convert_vae(read_shapes(path), path)
    if "post_quant_conv.weight" not in shapes or "encoder.conv_in.weight" not in shapes:
        raise ValueError(f"{path} is no VAE of Wan 2.1: it has no encoder and decoder; give one with --vae")
    return {"base_dim": shapes["encoder.conv_in.weight"][0], "z_dim": shapes["post_quant_conv.weight"][0]}


def convert_vae(weights: Mapping[str, T], path: Path) -> dict[str, T]:
    """Rename a VAE's weights to diffusers' names, where they are not in them."""
    if any(".downsamples.0.downsamples." in name for name in weights):
        raise ValueError(f"{path} is the VAE of Wan 2.2, which is read from diffusers' folder alone: --vae FOLDER")
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    return convert_wan_vae_to_diffusers(dict(weights))


def text_config(path: Path) -> dict[str, object]:
    """Read the config of an encoder's folder, or the sizes of UMT5 off its shapes."""
    if path.is_dir():
        return read_config(path, "text_encoder", "--text")
    shapes = convert_text(read_shapes(path))
    first = "encoder.block.0.layer"
    try:
        buckets, heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"]
        return {
            "architectures": ["UMT5EncoderModel"],
            "model_type": "umt5",
            "vocab_size": shapes["shared.weight"][0],
            "d_model": shapes["shared.weight"][1],
            "num_heads": heads,
            "d_kv": shapes[f"{first}.0.SelfAttention.q.weight"][0] // heads,
            "d_ff": shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0],
            "num_layers": 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
            "relative_attention_num_buckets": buckets,
            "feed_forward_proj": "gated-gelu",
        }
    except KeyError as error:
        raise ValueError(f"{path} is no UMT5 encoder: it has no {error.args[0]}; give one with --text") from None


def convert_text(weights: Mapping[str, T]) -> dict[str, T]:
    """Rename the weights of UMT5 from the names of Wan's own code to those of transformers."""
    if "token_embedding.weight" not in weights:
        return dict(weights)
    renamed: dict[str, T] = {}
    for name, weight in weights.items():
        new = "encoder.final_layer_norm.weight" if name == "norm.weight" else name
        for old, theirs in UMT5_NAMES.items():
            new = theirs + new.removeprefix(old) if not old.startswith(".") and new.startswith(old) else new
            new = new.replace(old, theirs) if old.startswith(".") else new
        renamed[new] = weight
    return renamed


def read_config(folder: Path, part: str, flag: str) -> dict[str, object]:
    """Read a part's config.json, in the folder itself or in that of its pipeline."""
    path = next((path for path in (folder / part / "config.json", folder / "config.json") if path.is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has no {part}/config.json; give a file or a folder of weights with {flag}")
    return json.loads(path.read_text(encoding="utf-8"))


def find_tokenizer(text: Path) -> Path:
    """Find the tokenizer of an encoder: in its folder, or beside its file."""
    folder = text if text.is_dir() else text.parent
    for path in (folder / "tokenizer", folder):
        if any((path / name).is_file() for name in ("tokenizer.json", "spiece.model")):
            return path
    raise ValueError(f"there is no tokenizer beside {text}; put tokenizer.json of google/umt5-xxl into {folder}")


def load_parts(files: ModelFiles, folder: Path, dtype: torch.dtype) -> dict[str, object]:
    """Load every part of an assembled folder in a precision: transformer, vae, text_encoder, tokenizer."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    from videogen.models.checkpoint import meta_component
    from videogen.models.text_encoder import load_encoder

    text = files.text
    if text.is_dir():
        whole = (text / "text_encoder").is_dir()
        encoder = load_encoder(text if whole else text.parent, "text_encoder" if whole else text.name, dtype=dtype)
    else:
        encoder = fill(meta_component(folder, "text_encoder"), convert_text(read_weights(text)), text, dtype)
        assert isinstance(encoder, UMT5EncoderModel)
    transformer = meta_component(folder, "transformer")
    weights = convert_transformer(read_weights(files.transformer))
    return {
        "transformer": fill(transformer, weights, files.transformer, dtype),
        "vae": load_vae_part(files.vae, folder, dtype),
        "text_encoder": encoder,
        "tokenizer": AutoTokenizer.from_pretrained(find_tokenizer(text)),
    }


def load_vae_part(path: Path, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load the VAE of an assembled folder."""
    from videogen.models.checkpoint import check_weights, copy_weights_into_memory, meta_component
    from videogen.models.wan_vae import WanVAE

    if path.is_dir():
        path = path / "vae" if (path / "vae").is_dir() else path
        check_weights(WanVAE, path)
        vae: WanVAE = WanVAE.from_pretrained(path, dtype=dtype, local_files_only=True)  # type: ignore[assignment]
        copy_weights_into_memory(vae)
        return vae
    return fill(meta_component(folder, "vae"), convert_vae(read_weights(path), path), path, dtype)


def fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> nn.Module:
    """Fill a network on the meta device with a file's weights; a ValueError where they are not exactly its own."""
    import torch

    from videogen.models.checkpoint import cast_weights

    cast_weights(network, dtype, whole=getattr(network, "_keep_in_fp32_modules", None) or ())
    wanted = network.state_dict()
    tied = {"encoder.embed_tokens.weight": "shared.weight"}  # of UMT5
    given = dict(weights) | {name: weights[own] for name, own in tied.items() if own in weights and name in wanted}
    for fault, names in (
        ("lacks", wanted.keys() - given.keys()),
        ("has an extra weight", given.keys() - wanted.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path} {fault} {min(names)}{more}; it is not whole, or of another model")
    for name, meta in wanted.items():
        if meta.shape != given[name].shape:
            raise ValueError(
                f"{path}: {name} is {tuple(given[name].shape)}, and the others ask for {tuple(meta.shape)}"
            )
        wanted[name] = torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype).copy_(given[name])
    try:
        network.load_state_dict(wanted, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit: {error_reason(error)}") from None
    return network.eval().requires_grad_(False)
