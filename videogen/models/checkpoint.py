"""A checkpoint folder, checked before it is loaded: every weight there, none too many, each of its shape.

folder  ->  nothing, or a ValueError that names the first thing that is wrong
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open

from videogen.models.checkpoint_config import CLASSES, PARTS, check_family, class_of, read_json
from videogen.models.dit import VideoDiT
from videogen.models.text_encoder import blank_encoder
from videogen.models.vae import VideoVAE
from videogen.models.wan_vae import WanVAE

KINDS: dict[str, type[ModelMixin]] = {kind.__name__: kind for kind in (VideoDiT, VideoVAE, WanVAE)}


def check_checkpoint(folder: Path, *, but: Collection[str] = ()) -> None:
    """Refuse a folder of another family, or one whose networks are not whole, but for parts that are not read."""
    index = read_json(folder / "model_index.json")
    check_family(index, folder)
    for part in PARTS:
        if part not in but and (name := class_of(index, part)) is not None:
            check_weights(KINDS[CLASSES[name][1]], folder / part)


def check_weights(kind: type[ModelMixin], folder: Path) -> None:
    """Refuse a model folder whose weights are not exactly those that its config asks for."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; the checkpoint is not complete")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no .safetensors weights; the checkpoint is not complete")
    missing = sorted(name for name in _files_of_index(folder) if not (folder / name).is_file())
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]}, one of the files of its weights; download it again")
    wanted = {name: tuple(p.shape) for name, p in blank_network(kind, folder).state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not whole: {error}; download or save the checkpoint again") from None
    ignored = kind._keys_to_ignore_on_load_unexpected or ()
    surplus = {name for name in found.keys() - wanted.keys() if not any(key in name for key in ignored)}
    for say, names in (("lacks", wanted.keys() - found.keys()), ("has an extra weight", surplus)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{folder} {say} {min(names)}{more}; its weights do not belong to its config.json")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(f"{folder}: {name} is {found[name]} and its config.json asks for {shape}")


def blank_network(kind: type[ModelMixin], folder: Path) -> torch.nn.Module:
    """A network as its config says, on the meta device: all of it but the weights' values."""
    with torch.device("meta"):
        config = kind.load_config(folder)  # type: ignore[attr-defined]
        return cast("torch.nn.Module", kind.from_config(config))  # type: ignore[attr-defined]


def blank(folder: Path, part: str) -> torch.nn.Module:
    """A part of a checkpoint folder on the meta device: a network of ours, or an encoder of transformers'."""
    name = str(read_json(folder / part / "config.json").get("_class_name"))
    return blank_network(KINDS[CLASSES[name][1]], folder / part) if name in CLASSES else blank_encoder(folder / part)


def load_vae(folder: Path, *, dtype: torch.dtype = torch.float32) -> VideoVAE | WanVAE:
    """The VAE of a checkpoint folder, checked: all that decoding needs."""
    index = read_json(folder / "model_index.json")
    check_family(index, folder)
    if (name := class_of(index, "vae")) is None:
        raise ValueError(f"{folder} has no VAE; the checkpoint is not complete")
    kind = KINDS[CLASSES[name][1]]
    check_weights(kind, folder / "vae")
    vae = cast("VideoVAE | WanVAE", kind.from_pretrained(folder, subfolder="vae", dtype=dtype, local_files_only=True))
    align(vae)
    return vae


def align(model: torch.nn.Module) -> None:
    """Copy weights out of their file: they are not aligned there as in memory, and products round differently then."""
    for weight in model.parameters():
        if type(weight) is torch.nn.Parameter:  # not what a quantiser has made of it
            weight.data = weight.data.clone()


def _files_of_index(folder: Path) -> set[str]:
    """The files that the weights are spread over, where they are."""
    paths = sorted(folder.glob("*.safetensors.index.json"))
    return {str(name) for path in paths for name in cast("dict[str, str]", read_json(path)["weight_map"]).values()}


def quiet_libraries() -> None:
    """No progress bars of libraries: loading takes a moment and the command has a bar of its own."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
