"""Find the parts of a folder of Wan's own code, as its authors publish it.

    diffusion_pytorch_model*.safetensors or high_noise_model/, Wan2.1_VAE.pth, models_t5_*.pth, ...  ->  their paths

Those that are pickles are refused by whoever opens them; a .safetensors of the same name beside one is taken instead.
"""

from __future__ import annotations

from pathlib import Path

from videogen.data.json_files import read_json_object

SHARDS = "diffusion_pytorch_model*.safetensors"
EXPERTS = ("high_noise_model", "low_noise_model")
PARTS = {"vae": "Wan2.*_VAE", "text": "models_t5_*", "image_encoder": "models_clip_*"}  # names without their suffix


def is_original_folder(folder: Path) -> bool:
    """True for a folder of a transformer in Wan's own code, or of two experts."""
    return any(is_transformer(path) for path in (folder, folder / EXPERTS[0]))


def is_transformer(folder: Path) -> bool:
    """True for a folder whose config is that of Wan's own class."""
    config = folder / "config.json"
    return config.is_file() and read_json_object(config).get("_class_name") == "WanModel" and bool(list_shards(folder))


def list_shards(path: Path) -> list[Path]:
    """List the files over which a transformer is spread: one, or those of its folder."""
    return sorted(path.glob(SHARDS)) if path.is_dir() else [path]


def find_parts(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Find the first transformer of an original folder, and by name its other parts."""
    experts = [folder / name for name in EXPERTS if is_transformer(folder / name)]
    parts = {"transformer_2": experts[1]} if len(experts) > 1 else {}
    for part, name in PARTS.items():
        found = sorted(folder.glob(f"{name}.safetensors")) or sorted(folder.glob(f"{name}.pth"))
        if found:
            parts[part] = found[0]
    return (experts or [folder])[0], parts
