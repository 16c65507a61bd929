"""Record what a clip was made of, read it from a clip for --from, and compare the two.

SampleArgs, SampleJob  ->  prompt, seed, settings, checkpoint, further files, versions  ->  SampleArgs
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from videogen import __version__
from videogen.cli.arguments import is_given
from videogen.cli.known_flags import parse_image
from videogen.cli.prompts import PromptRow
from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.sample_jobs import SampleJob
from videogen.config.parsing import from_mapping, to_mapping
from videogen.config.sample import SampleConfig
from videogen.data.files import content_id
from videogen.data.json_files import check_types
from videogen.data.pictures import WHITE
from videogen.data.saved_latents import is_same_setting, latent_settings
from videogen.data.video_io import read_settings
from videogen.models.hub import checkpoint_id
from videogen.sampling.lora_files import read_lora

FILES = ("video", "join", "mask", "storyboard")  # flags that name a file
PARTS = ("vae", "text", "model_2", "image_encoder")  # flags that name a part of a model in files
PLACES = ("extend", "loop", "fit")  # flags that say what is made of it
DIGEST = "_sha256"  # behind a flag's name: the hashes of its files
Texts = tuple[str, ...]
RECORDED_TYPES: dict[str, object] = {
    "prompt": str, "seed": int, "lora": Texts, "gguf": Texts, "last_image": str, "dtype": str, "quantise": str,
    "device": str, "codec": str, "checkpoint": dict[str, str], "background": str, "fit": str, "extend": float | None,
    "loop": bool,
    **dict.fromkeys(FILES, str), **{name + DIGEST: Texts for name in ("lora", "gguf", "image", *FILES)},
}  # fmt: skip


def settings_of(job: SampleJob | PromptRow, about: Mapping[str, object]) -> dict[str, object]:
    """Collect everything that decides a clip, for its metadata; about is the `provenance` of its command."""
    return {"prompt": job.prompt, "seed": job.seed, **to_mapping(job.config), **about}


def provenance(args: SampleArgs) -> dict[str, object]:
    """Collect what else decides the bytes of every clip of a command; files are identified by their content too."""
    versions = {"videogen": __version__, **{name: version(name) for name in ("torch", "diffusers")}}
    if find_spec("ftfy") is not None:  # it cleans the prompts of Wan's models, and is absent where someone removed it
        versions["ftfy"] = version("ftfy")
    flags: dict[str, object] = {"image": list(args.image)} if args.image else {}
    flags |= {name: str(path) for name in FILES if (path := getattr(args, name)) is not None}
    flags |= {name: getattr(args, name) for name in PLACES if getattr(args, name) != getattr(SampleArgs, name)}
    flags |= {"background": args.background} if args.background != WHITE else {}
    flags |= {name: str(path) for name in PARTS if (path := getattr(args, name)) is not None}
    flags |= {"lora": list(args.lora)} if args.lora else {}
    flags |= {"codec": args.codec} if args.codec else {}
    flags |= {"quantise": args.quantise} if args.quantise != "none" else {}
    flags |= {"gguf": [str(path) for path in args.gguf]} if args.gguf else {}
    about = {"checkpoint": checkpoint_id(args.model), "device": args.device, "dtype": args.dtype, "versions": versions}
    return about | flags | digests(args)


def digests(args: SampleArgs) -> dict[str, list[str]]:
    """Hash the files that a command names besides its checkpoint, for each flag that names some."""
    files = {
        "lora": [read_lora(text).path for text in args.lora],
        "gguf": list(args.gguf),
        "image": [parse_image(text).path for text in args.image],
        **{name: [path] for name in FILES if (path := getattr(args, name)) is not None},
    }
    for name, paths in files.items():
        for path in paths:
            if not path.exists():
                raise ValueError(f"there is no file {path}; give another with {flag_of(name)}")
    return {name + DIGEST: [content_id(path) for path in paths] for name, paths in files.items() if paths}


def flag_of(name: str) -> str:
    """Name the flag of a field: mag_cache -> --mag-cache."""
    return f"--{name.replace('_', '-')}"


def is_latent(path: str | Path) -> bool:
    """True if a file holds a latent, by its name."""
    return Path(path).suffix == ".safetensors"


def read_recorded_settings(path: Path) -> dict[str, object]:
    """Read the settings that a clip or a latent of this program carries; a ValueError where it carries none."""
    settings = latent_settings(path) if is_latent(path) else read_settings(path)
    if "prompt" not in settings or "seed" not in settings:
        raise ValueError(f"{path} does not say its prompt and seed; it was not written by sample.py")
    check_types(settings, RECORDED_TYPES, f"the settings in {path}")
    return settings


def apply_recorded_settings(base: SampleArgs, settings: Mapping[str, object]) -> SampleArgs:
    """Replace arguments by those that make a clip of recorded settings again."""
    known = {item.name for item in fields(SampleConfig)}
    stored = {key: value for key, value in settings.items() if key in known}
    clips = {name: Path(str(settings[name])) for name in FILES if name in settings}
    places = {name: settings[name] for name in PLACES if name in settings}
    files = {name: tuple(map(str, cast("list[object]", settings.get(name, [])))) for name in ("lora", "gguf")}
    precision = {name: settings[name] for name in ("dtype", "quantise", "background", "codec") if name in settings}
    return replace(
        base,
        prompt=(str(settings["prompt"]),),
        seed=int(str(settings["seed"])),
        sample=from_mapping(SampleConfig, to_mapping(base.sample) | {"adain": 0.0} | stored),  # earlier clips had none
        lora=files["lora"],
        gguf=tuple(map(Path, files["gguf"])),
        image=tuple(recorded_images(settings)),
        **clips,
        **places,  # type: ignore[arg-type]
        **precision,  # type: ignore[arg-type]
    )


def recorded_images(settings: Mapping[str, object]) -> list[str]:
    """List recorded images as --image takes them; earlier versions recorded the first and the last by themselves."""
    images = settings.get("image", [])
    last = [f"{settings['last_image']}@last"] if "last_image" in settings else []
    return [*map(str, images if isinstance(images, list) else [images]), *last]


def check_recorded_files(path: Path, settings: Mapping[str, object], args: SampleArgs, argv: Sequence[str]) -> None:
    """Refuse another checkpoint or other files than a clip was made of; where a flag names them, only note it."""
    was, now = settings.get("checkpoint"), checkpoint_id(args.model)
    if not is_same_setting(was, now):
        if not is_given(argv, "--model"):
            raise ValueError(
                f"{path} was made by checkpoint {was}, which {args.model} is not; give its folder with --model"
            )
        print(f"note: {path} was made by checkpoint {was}, not {now}", file=sys.stderr)
    if (was := settings.get("device", args.device)) != args.device:
        print(f"note: {path} was made on {was}, and {args.device} rounds otherwise; --device {was}", file=sys.stderr)
    if int(str(settings.get("pack", 1))) > 1:
        others = f"{settings['pack']} clips in one pack (--no-exact)"
        print(f"note: {path} was made among {others}; alone it is the same to rounding", file=sys.stderr)
    for key, current in digests(args).items():
        name = key.removesuffix(DIGEST)
        was, flag = settings.get(key), flag_of(name)
        if was is None or was == current:  # None: the clip had no such file, or an earlier version recorded no hash
            continue
        if not is_given(argv, flag):
            raise ValueError(
                f"{path} was made with {name} {settings[name]} of {was}, and what lies there now is {current}; "
                f"give the same with {flag}"
            )
        print(f"note: {path} was made with {name} {settings[name]} of {was}, not {current}", file=sys.stderr)
