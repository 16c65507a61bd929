"""What a folder of diffusers' Wan pipelines asks for and how one is written, from its JSON alone: nothing is loaded.

    model_index.json, scheduler/, transformer/ and vae/ configs  <->  settings, strides, classes here

Wan 2.1 and 2.2, text- and image-to-video (Wan Team 2025); the settings are those of its model cards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from videogen.config.parsing import from_mapping
from videogen.config.sample import SampleConfig
from videogen.data.video_decode import read_picture
from videogen.packing.patch_schedule import Patch

Index = Mapping[str, object]
OURS = "VideoPipeline"
THEIRS = ("WanPipeline", "WanImageToVideoPipeline")
# A part, by the name of its class in model_index.json, and the class that runs it here.
CLASSES = {
    "VideoDiT": ("videogen.models.dit", "VideoDiT"),
    "VideoVAE": ("videogen.models.vae", "VideoVAE"),
    "WanVAE": ("videogen.models.wan_vae", "WanVAE"),
    "WanTransformer3DModel": ("videogen.models.dit", "VideoDiT"),
    "AutoencoderKLWan": ("videogen.models.wan_vae", "WanVAE"),
}
ABROAD = {"VideoDiT": ("diffusers", "WanTransformer3DModel"), "WanVAE": ("diffusers", "AutoencoderKLWan")}
PARTS = ("transformer", "transformer_2", "vae")
# A scheduler's class: our name for it, and what it calls the shift.
SAMPLER_OF = {
    "UniPCMultistepScheduler": ("unipc", "flow_shift"),
    "DEISMultistepScheduler": ("deis", "flow_shift"),
    "DPMSolverMultistepScheduler": ("dpmpp_multistep", "flow_shift"),
    "FlowMatchEulerDiscreteScheduler": ("flow_euler", "shift"),
    "FlowMatchHeunDiscreteScheduler": ("flow_heun", "shift"),
}
NO_IMAGE = "this model begins with an image; give one for every clip (--image)"
PROMPTS_ALONE = "this model makes clips from prompts alone; leave the image out"
BEYOND_WAN = ("prediction", "extra_patch_sizes", "num_facts", "nearby")  # config keys that diffusers does not know


def read_json(path: Path) -> dict[str, object]:
    """A JSON object; a ValueError where the file is not there or does not hold one."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; the checkpoint is not complete")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not whole: {error}; download or save the checkpoint again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def class_of(index: Index, part: str) -> str | None:
    """The class of a part of a pipeline, by its model_index.json; none where it is left empty."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list | tuple) and entry[0] is not None else None


def check_family(index: Index, where: object) -> None:
    """Refuse a pipeline of another family, saying what it is."""
    name = index.get("_class_name")
    if name not in (OURS, *THEIRS):
        raise ValueError(f"{where} holds a {name}; what runs here is a {OURS}, {THEIRS[0]} or {THEIRS[1]}")
    for part in PARTS:
        if (kind := class_of(index, part)) is not None and kind not in CLASSES:
            raise ValueError(f"{where}: {part} is a {kind}; what runs here is one of {', '.join(CLASSES)}")


def at_home(index: Index, folder: Path) -> dict[str, object]:
    """A folder's model_index.json with our classes in place of diffusers', and its settings."""
    check_family(index, folder)
    ours = {part: list(CLASSES[kind]) for part in PARTS if (kind := class_of(index, part)) is not None}
    return {**index, **ours, "defaults": default_settings(folder)}


def go_abroad(folder: Path) -> None:
    """Make a saved pipeline of Wan's parts one that diffusers opens; our settings stay, where it does not look."""
    index = read_json(folder / "model_index.json")
    looks = class_of(index, "image_encoder") is not None or _sees_images(folder)
    for part in PARTS:
        if (kind := class_of(index, part)) is not None:
            index[part] = list(ABROAD[kind])
            path = folder / part / "config.json"
            config = read_json(path) | {"_class_name": ABROAD[kind][1]}
            _write_json(path, {key: value for key, value in config.items() if key not in BEYOND_WAN})
    index |= {"_class_name": THEIRS[looks], "_defaults": index.pop("defaults")}
    if not looks:
        index = {key: value for key, value in index.items() if key not in ("image_encoder", "image_processor")}
    _write_json(folder / "model_index.json", index)


def default_settings(folder: Path) -> dict[str, object]:
    """The settings of a checkpoint: its own, or of diffusers' Wan folders those that the model was made for."""
    index = read_json(folder / "model_index.json")
    check_family(index, folder)
    stored = index.get("defaults") or index.get("_defaults")
    if isinstance(stored, dict) or index["_class_name"] == OURS:
        return stored if isinstance(stored, dict) else {}
    settings: dict[str, object] = {"size": "832x480", "frames": 81, "fps": 16.0, "steps": 50, "guidance": 5.0}
    if index.get("boundary_ratio") is not None:  # Wan 2.2 with two experts
        apart = {"guidance": 3.5} if _sees_images(folder) else {"guidance": 4.0, "guidance_2": 3.0}
        settings |= apart | {"steps": 40}
    if index.get("expand_timesteps"):  # Wan 2.2 5B
        settings |= {"size": "1280x704", "frames": 121, "fps": 24.0}
    return settings | {"cfg_zero": False} | _scheduler_settings(folder)


def check_images(folder: Path, first: Path | None, last: Path | None) -> None:
    """Refuse images that are not there or for a model that reads none, and none for one that begins with one."""
    if last is not None and first is None:
        raise ValueError(f"the last image {last} goes with a first; give both")
    if first is None and _sees_images(folder):
        raise ValueError(NO_IMAGE)
    begins = _sees_images(folder) or bool(read_json(folder / "model_index.json").get("expand_timesteps"))
    if first is not None and not begins:
        raise ValueError(PROMPTS_ALONE)
    for path, flag in ((first, "--image"), (last, "--last-image")):
        if path is not None and not path.is_file():
            raise ValueError(f"there is no file {path}; give another with {flag}")
        if path is not None:
            read_picture(path)  # a damaged one is said now
    if last is not None and not _sees_images(folder):
        raise ValueError("this model begins with an image and cannot be told the last; leave --last-image out")
    between = read_json(folder / "transformer" / "config.json").get("pos_embed_seq_len")
    if first is not None and last is None and between:
        raise ValueError("this model makes what lies between two images; give --last-image too")


def strides(folder: Path) -> tuple[int, int]:
    """Frames to a latent frame, and pixels to the side of a latent cell, by the VAE's config."""
    config = read_json(folder / "vae" / "config.json")
    time, space = config.get("scale_factor_temporal") or 4, config.get("scale_factor_spatial") or 8
    return int(str(time)), int(str(space))


def _scheduler_settings(folder: Path) -> dict[str, object]:
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    name = str(config.get("_class_name"))
    if name not in SAMPLER_OF:
        raise ValueError(f"{folder}: the scheduler is a {name}; what runs here is one of {', '.join(SAMPLER_OF)}")
    sampler, key = SAMPLER_OF[name]
    return {"sampler": sampler, "shift": float(str(config.get(key, 1.0)))}


def _sees_images(folder: Path) -> bool:
    """Whether the transformer has channels for an image beside the noise."""
    config = read_json(folder / "transformer" / "config.json")
    return config.get("in_channels") != (config.get("out_channels") or config.get("in_channels"))


def _write_json(path: Path, values: Index) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_defaults(folder: Path) -> SampleConfig:
    """A checkpoint's default settings, without loading it."""
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint folder: it has no model_index.json")
    return from_mapping(SampleConfig, default_settings(folder))


def pixel_stride(model: Path) -> int:
    """What width and height must be multiples of: the VAE's stride times the patch's side, from the configs."""
    return strides(model)[1] * max(known_patches(model)[0][1:])


def known_patches(folder: Path) -> list[Patch]:
    """The patch sizes of a checkpoint folder's transformer, the base first, from its config alone."""
    config = read_json(folder / "transformer" / "config.json")
    found = [config.get("patch_size"), *cast("list[object]", config.get("extra_patch_sizes", []))]
    if not all(isinstance(sides, list) and len(sides) == 3 for sides in found):
        raise ValueError(
            f"{folder / 'transformer'} has a config.json without patch_size; the checkpoint is not complete"
        )
    return [(int(t), int(h), int(w)) for t, h, w in cast("list[list[int]]", found)]
