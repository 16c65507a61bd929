"""Open models whose parts come as single files: Wan's transformers and VAEs, UMT5 and CLIP, each a file or a folder.

    transformer.safetensors, --vae, --text, ...  ->  a folder of their configs, and which file each part is in
    ModelFiles, that folder  ->  the networks, or a ValueError that names a weight which does not fit

What the layouts of the files are stands in weight_layouts.py.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from atexit import register
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from videogen.data.files import content_id, error_reason
from videogen.models.checkpoint_config import ModelFiles, has_image_channels
from videogen.models.original_folder import find_parts, is_original_folder, list_shards
from videogen.models.weight_layouts import (
    Config,
    convert_image_encoder,
    convert_text,
    convert_transformer,
    convert_vae,
    image_encoder_config,
    read_shapes,
    read_weights,
    text_config,
    transformer_config,
    vae_config,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    Weights = Mapping[str, Tensor]
    Convert = Callable[[Weights], dict[str, Tensor]]

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".gguf")
INDEX = {
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
}
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
}  # fmt: skip
# The shift of diffusers' folders: of Wan 2.2 5B, of first and last frame to video, and of all others.
SHIFT_5B, SHIFT_FLF2V, SHIFT = 5.0, 16.0, 3.0
CHANNELS_5B = 48
# The noise level at which the second expert of Wan 2.2 A14B takes over, from text and from an image.
BOUNDARY_T2V, BOUNDARY_I2V = 0.875, 0.9
FLAGS = {"vae": "--vae", "text": "--text", "transformer_2": "--model-2", "image_encoder": "--image-encoder"}
WHY_NEEDED = dict.fromkeys(("vae", "text"), "holds a transformer alone") | {
    "image_encoder": "sees images through CLIP", "transformer_2": "is one of the two experts of image to video",
}  # fmt: skip
KINDS_OF_PATH = dict.fromkeys(FLAGS, "a file or a folder") | {"transformer_2": "the file of that for low noise"}
NOISE = re.compile(r"(high|low)[ _-]?noise", re.IGNORECASE)  # in the names of the experts' files


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
        new = path.with_suffix(".safetensors")
        raise ValueError(
            f"{path} is a pickle, which could run anything when it is opened; convert it where you trust it: python -c "
            f"\"import torch, safetensors.torch as s; s.save_file(torch.load('{path}', map_location='cpu', "
            f"weights_only=True), '{new}')\""
        )


def assemble(model: Path, parts: Mapping[str, Path]) -> tuple[Path, ModelFiles]:
    """Write the configs of a model's parts into a folder for this process, and return it with the parts' files.

    Parts are named as ModelFiles names them; a folder of Wan's own code brings those that are not given. Raises a
    ValueError that names a part which is missing, which the model does not take, or which a file does not hold.
    """
    named = model
    if is_original_folder(model):
        model, own = find_parts(model)
        parts = own | dict(parts)
    check_file(model, "--model")
    for part, path in parts.items():
        check_file(path, FLAGS[part])
    check_names_of_experts(model, parts.get("transformer_2"))
    config = transformer_config(convert_transformer(read_shapes(model)), model)
    check_parts(model, config, parts)
    files = ModelFiles(transformer=model, model=named, **parts)
    root = Path(tempfile.mkdtemp(prefix="videogen-"))
    register(shutil.rmtree, root, ignore_errors=True)
    folder = root / (named.name if named.is_dir() else named.stem)
    for name, values in list_configs(files, config).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values, indent=2), encoding="utf-8")
    find_tokenizer(files.text)
    return folder, files


def check_names_of_experts(model: Path, second: Path | None) -> None:
    """Refuse experts whose files say that they are swapped, or that the second is missing: such clips are noise."""
    first = (match := NOISE.search(model.stem)) and match[1].lower()
    if second is None and first == "high":
        raise ValueError(f"{model} is by its name the expert for high noise alone; give that for low noise, --model-2")
    if second is not None and first == "low" and (match := NOISE.search(second.stem)) and match[1].lower() == "high":
        raise ValueError(f"{model} is by its name the expert for low noise; give it with --model-2, and {second} first")


def check_parts(model: Path, config: Config, parts: Mapping[str, Path]) -> None:
    """Refuse a model whose parts are not those that its transformer's config asks for."""
    sees, from_image = "image_dim" in config, has_image_channels(config)
    needed = ["vae", "text", *(["image_encoder"] if sees else ["transformer_2"] if from_image else [])]
    for part in needed:
        if part not in parts:
            raise ValueError(f"{model} {WHY_NEEDED[part]}; give {FLAGS[part]} too, {KINDS_OF_PATH[part]}")
    if "image_encoder" in parts and not sees:
        raise ValueError(f"{model} does not see images through CLIP; leave --image-encoder out")
    if "transformer_2" in parts and sees:
        raise ValueError(f"{model} sees images through CLIP, as Wan 2.1 does, and is no expert; leave --model-2 out")
    if (second := parts.get("transformer_2")) is not None:
        if not list_shards(second):
            raise ValueError(f"--model-2 is a file of Wan's second expert, and {second} is a folder without one")
        other = transformer_config(convert_transformer(read_shapes(second)), second)
        if name := next((name for name, value in config.items() if other[name] != value), None):
            raise ValueError(
                f"{second} has {name} {other[name]}, and {model} {config[name]}; they are not the experts of one model"
            )


def list_configs(files: ModelFiles, config: Config) -> dict[str, Config]:
    """List the JSON files of the folder that diffusers would have of a model, by name."""
    vae = config_of(files.vae, "vae", "--vae", convert_vae, vae_config)
    text = config_of(files.text, "text_encoder", "--text", convert_text, text_config)
    from_image, is_5b = has_image_channels(config), config["in_channels"] == CHANNELS_5B
    index: Config = {**INDEX, "_class_name": "WanImageToVideoPipeline" if from_image else "WanPipeline"}
    index |= {"expand_timesteps": is_5b}
    shift = SHIFT_5B if is_5b else SHIFT_FLF2V if "pos_embed_seq_len" in config else SHIFT
    dit = {"_class_name": "WanTransformer3DModel"} | config
    configs: dict[str, Config] = {
        "transformer/config.json": dit,
        "vae/config.json": {"_class_name": "AutoencoderKLWan"} | vae,
        "text_encoder/config.json": text,
        "scheduler/scheduler_config.json": {**SCHEDULER, "flow_shift": shift},
    }
    widths = [("channels", files.vae, vae.get("z_dim", 16), config["out_channels"])]
    widths += [("numbers a token", files.text, text.get("d_model"), config["text_dim"])]
    if files.transformer_2 is not None:
        configs["transformer_2/config.json"] = dit
        index |= {"transformer_2": INDEX["transformer"], "boundary_ratio": BOUNDARY_I2V if from_image else BOUNDARY_T2V}
    if (path := files.image_encoder) is not None:
        clip = config_of(path, "image_encoder", "--image-encoder", convert_image_encoder, image_encoder_config)
        configs["image_encoder/config.json"] = clip
        configs["image_processor/preprocessor_config.json"] = image_processor_config(path, clip)
        name = cast("list[str]", clip.get("architectures") or ["CLIPVisionModel"])[0]
        index |= {"image_encoder": ["transformers", name], "image_processor": ["transformers", "CLIPImageProcessor"]}
        widths += [("numbers a patch", path, clip.get("hidden_size"), config["image_dim"])]
    for what, path, given, wanted in widths:
        if given != wanted:
            raise ValueError(
                f"{path} gives {given} {what}, and {files.transformer} takes {wanted}; give that of one model"
            )
    paths = {part: getattr(files, part) for part in ("transformer", *FLAGS)}
    ids: Config = {part: content_id(path) for part, path in paths.items() if path is not None}
    return configs | {"model_index.json": index, "files.json": ids}  # the clips record a hash of the latter


def config_of(path: Path, part: str, flag: str, convert: Convert, config: Callable[[Weights, Path], Config]) -> Config:
    """Read a part's config: that of its folder or that of its pipeline's, or what the shapes in its file say."""
    if not path.is_dir():
        return config(convert(read_shapes(path)), path)
    found = next((file for file in (path / part / "config.json", path / "config.json") if file.is_file()), None)
    if found is None:
        raise ValueError(f"{path} has no {part}/config.json; give a file or a folder of weights with {flag}")
    return json.loads(found.read_text(encoding="utf-8"))


def image_processor_config(path: Path, clip: Config) -> Config:
    """Read how a pipeline's folder prepares images for CLIP; of a file, as CLIP's pixels are prepared everywhere."""
    own = path / "image_processor" / "preprocessor_config.json"
    if own.is_file():
        return json.loads(own.read_text(encoding="utf-8"))
    side = clip["image_size"]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
    }


def find_tokenizer(text: Path) -> Path:
    """Find the tokenizer of an encoder: in its folder, or beside its file."""
    folder = text if text.is_dir() else text.parent
    for path in (folder / "tokenizer", folder, folder / "google" / "umt5-xxl"):
        if any((path / name).is_file() for name in ("tokenizer.json", "spiece.model")):
            return path
    raise ValueError(f"there is no tokenizer beside {text}; put tokenizer.json of google/umt5-xxl into {folder}")


def load_parts(files: ModelFiles, folder: Path, dtype: torch.dtype) -> dict[str, object]:
    """Load every part of an assembled folder in a precision: networks and tokenizer, by their names in the folder.

    The names and shapes of all files are compared with the networks before the weights of any are read.
    """
    from transformers import AutoTokenizer

    converters: dict[str, tuple[Path | None, Convert]] = {
        "transformer": (files.transformer, convert_transformer),
        "transformer_2": (files.transformer_2, convert_transformer),
        "vae": (files.vae, convert_vae),
        "text_encoder": (files.text, convert_text),
        "image_encoder": (files.image_encoder, convert_image_encoder),
    }
    given = {part: (path, convert) for part, (path, convert) in converters.items() if path is not None}
    networks = {part: meta_part(folder, part) for part, (path, _) in given.items() if in_layout(part, path)}
    for part, network in networks.items():
        path, convert = given[part]
        check_fit(network, convert(read_shapes(path)), path)
    loaded: dict[str, object] = {"tokenizer": AutoTokenizer.from_pretrained(find_tokenizer(files.text))}
    for part, (path, convert) in given.items():
        loaded[part] = (
            fill(networks[part], convert(read_weights(path)), path, dtype)
            if part in networks
            else load_vae_part(path, folder, dtype)
            if part == "vae"
            else load_encoder_part(path, part, dtype)
        )
    return loaded


def in_layout(part: str, path: Path) -> bool:
    """True for weights in the layouts of files, not those of a folder that diffusers or transformers open."""
    return path.is_file() or part.startswith("transformer")


def meta_part(folder: Path, part: str) -> nn.Module:
    """Build a part of an assembled folder on the meta device."""
    from videogen.models.checkpoint import meta_component

    return meta_component(folder, part)


def load_vae_part(path: Path, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load the VAE of an assembled folder."""
    from videogen.models.checkpoint import check_weights, copy_weights_into_memory
    from videogen.models.wan_vae import WanVAE

    if path.is_dir():
        path = path / "vae" if (path / "vae").is_dir() else path
        check_weights(WanVAE, path)
        vae: WanVAE = WanVAE.from_pretrained(path, dtype=dtype, local_files_only=True)  # type: ignore[assignment]
        copy_weights_into_memory(vae)
        return vae
    network = meta_part(folder, "vae")
    check_fit(network, convert_vae(read_shapes(path)), path)
    return fill(network, convert_vae(read_weights(path)), path, dtype)


def load_encoder_part(path: Path, part: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load an encoder from its own folder, or from that of its pipeline."""
    from videogen.models.text_encoder import load_encoder

    folder, name = (path, part) if (path / part).is_dir() else (path.parent, path.name)
    return load_encoder(folder, name, dtype=dtype)


def name_in_file(name: str) -> str:
    """Return under which name a file holds a weight: once where two are one, and CLIP's without their prefix."""
    return "shared.weight" if name == "encoder.embed_tokens.weight" else name.removeprefix("vision_model.")


def check_fit(network: nn.Module, shapes: Weights, path: Path) -> None:
    """Refuse a file whose names and shapes are not exactly those of a network on the meta device."""
    wanted = network.state_dict()
    in_file = {name_in_file(name): weight for name, weight in wanted.items()}
    ignored = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()
    others = shapes.keys() - in_file.keys() - wanted.keys()
    surplus = {name for name in others if not any(key in name for key in ignored)}
    for fault, names in (("lacks", in_file.keys() - shapes.keys()), ("has an extra weight", surplus)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path} {fault} {min(names)}{more}; it is not whole, or of another model")
    for name, weight in in_file.items():
        if weight.shape != (given := shapes[name].shape):
            raise ValueError(f"{path}: {name} is {tuple(given)}, and the others ask for {tuple(weight.shape)}")


def fill(network: nn.Module, weights: Weights, path: Path, dtype: torch.dtype) -> nn.Module:
    """Fill a network on the meta device with a file's weights, each copied once into memory of the network's layout."""
    import torch

    from videogen.models.checkpoint import cast_weights

    cast_weights(network, dtype, whole=getattr(network, "_keep_in_fp32_modules", None) or ())
    state = {
        name: torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype).copy_(weights[name_in_file(name)])
        for name, meta in network.state_dict().items()
    }
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit: {error_reason(error)}") from None
    for name, buffer in network.named_buffers():
        if buffer.is_meta:  # CLIP's numbers of its patches, which no file holds
            assert name.endswith("position_ids"), f"{name} is on the meta device"
            layer = network.get_submodule(name.rpartition(".")[0])
            layer.register_buffer("position_ids", torch.arange(buffer.shape[-1])[None], persistent=False)
    return network.eval().requires_grad_(False)
