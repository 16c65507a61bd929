"""Check a checkpoint folder before it is loaded: every weight there, none too many, each of its shape.

folder  ->  nothing, or a ValueError that names the first fault;  folder, plain class  ->  network, by torch alone

Classes of diffusers, and the faces that our networks have there, are imported for the folders that need them.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast, get_type_hints

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from videogen.data.files import error_reason
from videogen.data.json_files import check_types
from videogen.data.manifest import check_manifest
from videogen.models.checkpoint_config import CLASSES, NETWORKS, check_family, components_of, read_json
from videogen.models.text_encoder import meta_encoder
from videogen.models.weight_headers import check_sizes, read_shapes

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

    from videogen.models.vae import VideoVAE
    from videogen.models.wan_vae import WanVAE

Network = TypeVar("Network", bound=nn.Module)


def network_class(name: str) -> type[ModelMixin]:
    """Import the class that runs a network here by the name of its class in a folder."""
    module, kind = CLASSES[name]
    return getattr(import_module(module), kind)


def check_checkpoint(folder: Path, *, skip: Collection[str] = ()) -> dict[str, str]:
    """Refuse a folder of another family or with incomplete networks, and return the class of each component.

    Components named in skip are not looked at: they are not loaded from the folder.
    """
    index = read_json(folder / "model_index.json")
    check_family(index, folder)
    components = components_of(index)
    check_manifest(folder, skip=skip)
    for part in NETWORKS:
        if part in components and part not in skip:
            check_weights(network_class(components[part]), folder / part)
    return components


def check_weights(kind: type[Network], folder: Path) -> Network:
    """Refuse a model folder whose weights are not exactly those that its config asks for.

    Returns the network as its config says, on the meta device.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; the checkpoint is not complete")
    check_manifest(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no .safetensors weights; the checkpoint is not complete")
    missing = sorted(name for name in _shards_of(folder) if not (folder / name).is_file())
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]}, one of the files of its weights; download it again")
    shapes = read_shapes(folder)
    check_sizes(read_json(folder / "config.json"), shapes, folder / "config.json")
    network = meta_network(kind, folder)
    wanted = {name: tuple(p.shape) for name, p in network.state_dict().items()}
    ignored = getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ()
    surplus = {name for name in shapes.keys() - wanted.keys() if not any(key in name for key in ignored)}
    for fault, names in (("lacks", wanted.keys() - shapes.keys()), ("has an extra weight", surplus)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{folder} {fault} {min(names)}{more}; its weights do not belong to its config.json")
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise ValueError(f"{folder}: {name} is {shapes[name]} and its config.json asks for {shape}")
    return network


def meta_network(kind: type[Network], folder: Path) -> Network:
    """Build a network as its config says on the meta device: all of it but the weights' values.

    Raises a ValueError that names the value of the config which is of a wrong type, or makes no network.
    """
    path = folder / "config.json"
    config, known = read_json(path), get_type_hints(inspect.unwrap(kind.__init__))
    check_types(config, known, path)
    check_statistics(config, path)
    try:
        with torch.device("meta"):
            return kind(**{name: value for name, value in config.items() if name in known})
    except (TypeError, ArithmeticError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path} makes no {kind.__name__}: {error_reason(error)}") from None


def check_statistics(config: Mapping[str, object], path: Path) -> None:
    """Refuse a VAE's statistics that are not one for each channel, or deviations that are not above 0."""
    channels = config.get("latent_channels", config.get("z_dim"))
    for name in ("latents_mean", "latents_std"):
        if isinstance(values := config.get(name), list) and channels is not None and len(values) != channels:
            raise ValueError(f"{path} has {len(values)} values of {name} for {channels} latent channels")
        if isinstance(values, list) and not all(math.isfinite(v) and (v > 0 or name == "latents_mean") for v in values):
            raise ValueError(f"{path} has a {name} that is not finite, or not above 0")


def load_network(kind: type[Network], folder: Path, *, dtype: torch.dtype = torch.float32) -> Network:
    """Load a plain network, checked, by torch alone.

    Each weight is copied once, from its mapped file into memory of the network's layout: in the file it is not aligned,
    and products round differently then.
    """
    network = check_weights(kind, folder)
    cast_weights(network, dtype, whole=getattr(kind, "_keep_in_fp32_modules", ()))
    wanted = network.state_dict()
    for path in folder.glob("*.safetensors"):
        for name, stored in load_file(path).items():
            if (meta := wanted.get(name)) is not None:
                wanted[name] = torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype).copy_(stored)
    network.load_state_dict(wanted, assign=True)
    return network.eval().requires_grad_(False)


def cast_weights(network: nn.Module, dtype: torch.dtype, *, whole: Collection[str] = ()) -> None:
    """Cast a network's weights and buffers; those whose names have a part among `whole` to float32."""
    for name, weight in weights_of(network).items():
        if weight.is_floating_point():
            weight.data = weight.data.to(torch.float32 if {*whole} & {*name.split(".")} else dtype)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Collect parameters and buffers by name."""
    return dict(chain(network.named_parameters(), network.named_buffers()))


def meta_component(folder: Path, part: str) -> nn.Module:
    """Build a component of a checkpoint folder on the meta device: a network of ours, or an encoder of transformers."""
    name = str(read_json(folder / part / "config.json").get("_class_name"))
    return meta_network(network_class(name), folder / part) if name in CLASSES else meta_encoder(folder / part)


def load_vae(folder: Path, *, dtype: torch.dtype = torch.float32) -> VideoVAE | WanVAE:
    """Load the VAE of a checkpoint folder, checked: all that decoding needs."""
    others = ("transformer", "transformer_2", "text_encoder", "tokenizer", "image_encoder")
    components = check_checkpoint(folder, skip=others)
    if "vae" not in components:
        raise ValueError(f"{folder} has no VAE; the checkpoint is not complete")
    kind = network_class(components["vae"])
    vae = cast("VideoVAE | WanVAE", kind.from_pretrained(folder, subfolder="vae", dtype=dtype, local_files_only=True))
    copy_weights_into_memory(vae)
    return vae


def copy_weights_into_memory(model: nn.Module) -> None:
    """Copy weights out of their file: they are not aligned there as in memory, and products round differently then."""
    for weight in model.parameters():
        if type(weight) is nn.Parameter:  # a quantiser's parameters are of a class of their own
            weight.data = weight.data.clone()


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Turn off the bars of diffusers and transformers for a moment: loading and saving take no longer than that."""
    import diffusers
    import transformers

    modules = [diffusers.utils.logging, transformers.utils.logging]
    active = [module for module in modules if module.is_progress_bar_enabled()]
    for module in active:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in active:
            module.enable_progress_bar()


def _shards_of(folder: Path) -> set[str]:
    """Look up the files that the weights are spread over, where an index lists them."""
    paths = sorted(folder.glob("*.safetensors.index.json"))
    return {str(name) for path in paths for name in cast("dict[str, str]", read_json(path)["weight_map"]).values()}
