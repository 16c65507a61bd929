"""Read what a checkpoint folder's JSON says, and convert a saved folder to diffusers' names; no weights are loaded.

    model_index.json, transformer/, vae/ and scheduler/ configs  ->  CheckpointInfo

A folder is one of ours or one of diffusers' Wan pipelines: 2.1 and 2.2, text- and image-to-video (Wan Team 2025). The
default settings of the latter are those of the model cards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

from videogen.config.parsing import from_mapping
from videogen.config.sample import SampleConfig
from videogen.config.sizes import fit_ratio, parse_ratio
from videogen.data.files import check_regular
from videogen.data.json_files import check_types, read_json_object
from videogen.packing.patch_schedule import Patch, coarsest_patch, latent_grid

Json = Mapping[str, object]
VIDEOGEN_PIPELINE = "VideoPipeline"
WAN_PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
# The class of a network by its name in model_index.json, and the module and class that run it here. Folders saved when
# the modules lay elsewhere keep opening: only the class name is looked up.
CLASSES = {
    "VideoDiT": ("videogen.models.dit", "VideoDiT"),
    "VideoVAE": ("videogen.models.vae", "VideoVAE"),
    "WanVAE": ("videogen.models.wan_vae", "WanVAE"),
    "WanTransformer3DModel": ("videogen.models.dit", "VideoDiT"),
    "AutoencoderKLWan": ("videogen.models.wan_vae", "WanVAE"),
}
# The classes of a folder that torch and tokenizers run alone (clip_sampler.py), and the tokenizers whose file says all.
PLAIN_CLASSES = {"transformer": "VideoDiT", "vae": "VideoVAE", "text_encoder": "BertModel"}
PLAIN_TOKENIZERS = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# Parts of the names of the DiT's weights that stay in float32 whatever the precision, and of those of the text encoder
# that nothing reads.
FLOAT32_PARTS = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "data_variance")
UNUSED_PARTS = ("pooler",)
DIFFUSERS_CLASSES = {"VideoDiT": "WanTransformer3DModel", "WanVAE": "AutoencoderKLWan"}
CONFIG_KEYS_DIFFUSERS_LACKS = ("prediction", "extra_patch_sizes", "num_facts", "nearby")
COMPONENTS = (
    "transformer", "transformer_2", "vae", "text_encoder", "tokenizer", "scheduler", "image_encoder", "image_processor",
)  # fmt: skip
NEEDED = ("vae", "text_encoder", "tokenizer")
# Without any of them transformers makes a tokenizer of no words.
VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
INDEX_TYPES = {"boundary_ratio": float | None, "expand_timesteps": bool, "defaults": dict[str, object] | None}
DIT_TYPES = {"patch_size": tuple[int, int, int], "extra_patch_sizes": tuple[tuple[int, int, int], ...]}
DIT_TYPES |= {"in_channels": int, "out_channels": int | None}
TEXT_TYPES = {"hidden_act": str, "position_embedding_type": str | None}
VAE_TYPES = {"scale_factor_temporal": int | None, "scale_factor_spatial": int | None}
VAE_TYPES |= {"width": int, "latent_channels": int}
NETWORKS = ("transformer", "transformer_2", "vae")
# The class of a scheduler, the sampler that runs it, and the key of its shift.
SAMPLER_OF = {
    "UniPCMultistepScheduler": ("unipc", "flow_shift"),
    "DEISMultistepScheduler": ("deis", "flow_shift"),
    "DPMSolverMultistepScheduler": ("dpmpp_multistep", "flow_shift"),
    "FlowMatchEulerDiscreteScheduler": ("flow_euler", "shift"),
    "FlowMatchHeunDiscreteScheduler": ("flow_heun", "shift"),
}
NO_IMAGE = "this model begins with an image; give one for every clip (--image)"
TEXT_ONLY = "this model makes clips from prompts alone, and other clips of a video (--strength); leave the image out"


NO_START = "strength below 1 begins with a video; give one with --video, or leave strength out"
ENDS_ALONE = "this model takes an image as its first frame, and may take another as its last; leave the rest out"


class ModelFiles(NamedTuple):
    """The files or folders of a model's parts."""

    transformer: Path
    vae: Path
    text: Path
    transformer_2: Path | None = None  # of two experts, that for low noise
    image_encoder: Path | None = None  # CLIP, of image-to-video by Wan 2.1
    model: Path = Path()  # as --model names them all


class CheckpointInfo(NamedTuple):
    """The facts of a checkpoint folder that its JSON holds: read once, handed down."""

    folder: Path
    components: Mapping[str, str]  # the class of each component by its name, those left empty not among them
    dit_config: Json
    vae_config: Json
    patches: tuple[Patch, ...]  # the base first
    time_stride: int  # frames a latent frame
    space_stride: int  # pixels a side of a latent cell
    needs_image: bool  # True if every clip begins with an image (image-to-video by more channels)
    takes_known: bool  # True if each token has a noise level of its own, so that any part of a clip may be given
    needs_last_image: bool
    defaults: SampleConfig
    files: ModelFiles | None = None  # of a model in single files, whose folder holds the configs alone

    @property
    def num_experts(self) -> int:
        """2 for Wan 2.2 A14B, whose second transformer takes over at low noise, else 1."""
        return sum(part.startswith("transformer") for part in self.components)

    @property
    def is_plain(self) -> bool:
        """True if torch and tokenizers run every component, without diffusers and transformers."""
        classes = dict(self.components)
        tokenizer, path = classes.pop("tokenizer", ""), self.folder / "tokenizer" / "tokenizer.json"
        if classes != PLAIN_CLASSES or tokenizer not in PLAIN_TOKENIZERS or not path.is_file():
            return False
        text = read_json(self.folder / "text_encoder" / "config.json")
        check_types(text, TEXT_TYPES, self.folder / "text_encoder" / "config.json")
        return text.get("hidden_act", "gelu") == "gelu" and text.get("position_embedding_type") in (None, "absolute")

    def latent_grid(self, config: SampleConfig) -> tuple[int, int, int]:
        """Compute (t, h, w) of a clip's latent; a ValueError where the strides or the patches forbid the clip."""
        return latent_grid(config, self.patches, time_stride=self.time_stride, space_stride=self.space_stride)

    def resolve_size(self, config: SampleConfig) -> SampleConfig:
        """Replace a shape, such as 9:16, by the size in pixels of that shape and about the area of the default size."""
        if (ratio := parse_ratio(config.size)) is None:
            return config
        multiple = self.space_stride * max(coarsest_patch(config, self.patches[0], self.patches[0])[1:])
        width, height = fit_ratio(ratio, area=self.defaults.width * self.defaults.height, multiple=multiple)
        return replace(config, size=f"{width}x{height}")

    def num_tokens(self, config: SampleConfig) -> int:
        """Count the video tokens of a clip in the base patch."""
        (t, h, w), (pt, ph, pw) = self.latent_grid(config), self.patches[0]
        return (t // pt) * (h // ph) * (w // pw)


def read_checkpoint_info(folder: Path) -> CheckpointInfo:
    """Read a checkpoint folder's configs; a ValueError where it is of another family or not complete."""
    if not (folder / "model_index.json").exists():
        raise ValueError(f"{folder} is not a checkpoint folder: it has no model_index.json")
    check_regular(folder, (".json", ".safetensors", ".txt", ".model"))
    index = read_json(folder / "model_index.json")
    check_family(index, folder)
    check_index(index, folder / "model_index.json")
    transformer = first_transformer(index)
    needed = (transformer, *NEEDED)
    if missing := [part for part in needed if part not in components_of(index)]:
        raise ValueError(f"{folder / 'model_index.json'} names no {missing[0]}; the checkpoint is not complete")
    dit_config, vae_config = (read_json(folder / part / "config.json") for part in (transformer, "vae"))
    check_types(dit_config, DIT_TYPES, folder / transformer / "config.json")
    check_types(vae_config, VAE_TYPES, folder / "vae" / "config.json")
    needs_image = has_image_channels(dit_config)
    return CheckpointInfo(
        folder=folder,
        components=components_of(index),
        dit_config=dit_config,
        vae_config=vae_config,
        patches=_patches_of(dit_config, folder),
        time_stride=int(str(vae_config.get("scale_factor_temporal") or 4)),
        space_stride=int(str(vae_config.get("scale_factor_spatial") or 8)),
        needs_image=needs_image,
        takes_known=index["_class_name"] == VIDEOGEN_PIPELINE or bool(index.get("expand_timesteps")),
        needs_last_image=bool(dit_config.get("pos_embed_seq_len")),
        defaults=read_defaults(index, folder),
    )


def check_vocabulary(folder: Path) -> None:
    """Refuse a checkpoint folder whose tokenizer has no vocabulary: transformers would make one of nothing."""
    if not any((folder / "tokenizer" / name).is_file() for name in VOCABULARIES):
        raise ValueError(f"{folder / 'tokenizer'} has no {VOCABULARIES[0]}; the checkpoint is not complete")


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; a ValueError where the file is missing or holds none."""
    if not path.exists():
        raise ValueError(f"{path.parent} has no {path.name}; the checkpoint is not complete")
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ValueError(f"{error}; download or save the checkpoint again") from None


def check_index(index: Json, path: Path) -> None:
    """Refuse a model_index.json whose values are of wrong types, naming the first."""
    pair = [part for part in COMPONENTS if part in index]
    check_types(index, {**dict.fromkeys(pair, tuple[str | None, str | None]), **INDEX_TYPES}, path)


def components_of(index: Json) -> dict[str, str]:
    """Look up the class of each component in a model_index.json, leaving out the empty ones."""
    entries = {part: entry for part, entry in index.items() if isinstance(entry, list | tuple) and len(entry) == 2}
    return {part: str(name) for part, (library, name) in entries.items() if library is not None}


def check_family(index: Json, where: object) -> None:
    """Refuse a pipeline of another family, naming it."""
    name = index.get("_class_name")
    if name not in (VIDEOGEN_PIPELINE, *WAN_PIPELINES):
        known = f"{VIDEOGEN_PIPELINE}, {' or '.join(WAN_PIPELINES)}"
        raise ValueError(f"{where} holds a {name}; what runs here is a {known}")
    for part, kind in components_of(index).items():
        if part in NETWORKS and kind not in CLASSES:
            raise ValueError(f"{where}: {part} is a {kind}; what runs here is one of {', '.join(CLASSES)}")


def with_videogen_classes(index: Json, folder: Path) -> dict[str, object]:
    """Replace diffusers' classes in a model_index.json by those that run here, and add the default settings."""
    check_family(index, folder)
    networks = {part: list(CLASSES[kind]) for part, kind in components_of(index).items() if part in NETWORKS}
    return {**index, **networks, "defaults": default_settings(index, folder)}


def convert_to_diffusers(folder: Path) -> None:
    """Rewrite a saved folder of Wan's networks so that diffusers opens it; its defaults stay as `_defaults`."""
    index = read_json(folder / "model_index.json")
    components = components_of(index)
    from_image = "image_encoder" in components or has_image_channels(read_dit_config(index, folder))
    for part in components.keys() & set(NETWORKS):
        class_name = DIFFUSERS_CLASSES[components[part]]
        index[part] = ["diffusers", class_name]
        path = folder / part / "config.json"
        config = {k: v for k, v in read_json(path).items() if k not in CONFIG_KEYS_DIFFUSERS_LACKS}
        _write_json(path, config | {"_class_name": class_name})
    index |= {"_class_name": WAN_PIPELINES[from_image], "_defaults": index.pop("defaults")}
    if not from_image:
        index = {key: value for key, value in index.items() if key not in ("image_encoder", "image_processor")}
    _write_json(folder / "model_index.json", index)


def default_settings(index: Json, folder: Path) -> dict[str, object]:
    """Look up a checkpoint's default settings: those saved in it, or for a folder of diffusers the model card's."""
    stored = index.get("defaults") or index.get("_defaults")
    if isinstance(stored, dict) or index["_class_name"] == VIDEOGEN_PIPELINE:
        return stored if isinstance(stored, dict) else {}
    settings: dict[str, object] = {"size": "832x480", "frames": 81, "fps": 16.0, "steps": 50, "guidance": 5.0}
    if index.get("boundary_ratio") is not None:  # Wan 2.2 with two experts
        from_image = has_image_channels(read_dit_config(index, folder))
        settings |= {"steps": 40} | ({"guidance": 3.5} if from_image else {"guidance": 4.0, "guidance_2": 3.0})
        if not {"transformer", "transformer_2"} <= components_of(index).keys():  # one of them alone, at its own scale
            second = settings.pop("guidance_2", settings["guidance"])
            settings["guidance"] = second if first_transformer(index) == "transformer_2" else settings["guidance"]
    if index.get("expand_timesteps"):  # Wan 2.2 5B
        settings |= {"size": "1280x704", "frames": 121, "fps": 24.0}
    return settings | {"cfg_zero": False, "adain": 0.0} | _scheduler_settings(folder)


def first_transformer(index: Json) -> str:
    """Name the first transformer of a checkpoint, which may be Wan 2.2's second expert alone."""
    alone = "transformer_2" in (components := components_of(index)) and "transformer" not in components
    return "transformer_2" if alone else "transformer"


def read_dit_config(index: Json, folder: Path) -> dict[str, object]:
    """Read the config of a checkpoint's first transformer."""
    return read_json(folder / first_transformer(index) / "config.json")


def read_defaults(index: Json, folder: Path) -> SampleConfig:
    """Read a checkpoint's default settings; a ValueError names the file whose settings are wrong."""
    try:
        return from_mapping(SampleConfig, default_settings(index, folder))
    except ValueError as error:
        raise ValueError(f"{folder / 'model_index.json'} has wrong defaults: {error}") from None


def has_image_channels(dit_config: Json) -> bool:
    """True if a transformer has input channels for an image besides those of the noised latent."""
    return dit_config.get("in_channels") != (dit_config.get("out_channels") or dit_config.get("in_channels"))


def _patches_of(dit_config: Json, folder: Path) -> tuple[Patch, ...]:
    sizes = [dit_config.get("patch_size"), *cast("list[object]", dit_config.get("extra_patch_sizes", []))]
    if not all(isinstance(sides, list) and len(sides) == 3 for sides in sizes):
        raise ValueError(
            f"{folder / 'transformer'} has a config.json without patch_size; the checkpoint is not complete"
        )
    return tuple((int(t), int(h), int(w)) for t, h, w in cast("list[list[int]]", sizes))


def _scheduler_settings(folder: Path) -> dict[str, object]:
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    return scheduler_settings(str(config.get("_class_name")), config, f"{folder}: the scheduler")


def scheduler_settings(class_name: str, config: Json, where: str) -> dict[str, object]:
    """Name the sampler that runs a scheduler of diffusers, and its shift; a ValueError where there is none."""
    if class_name not in SAMPLER_OF:
        raise ValueError(f"{where} is a {class_name}; what runs here is one of {', '.join(SAMPLER_OF)}")
    sampler, key = SAMPLER_OF[class_name]
    return {"sampler": sampler, "shift": float(str(config.get(key, 1.0)))}


def _write_json(path: Path, values: Json) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
