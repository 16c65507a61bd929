"""The kinds of damage that `videogen bench damage` does: a whole folder in, a damaged one and its command out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from videogen.config.sample import MINI

Words = Sequence[str]


class Shop:
    """Whole things to damage, made once."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @cached_property
    def clip(self) -> Path:
        """A clip that sample.py wrote."""
        from videogen.cli.main import main

        path = self.place / "clip.mp4"
        assert main(["sample", "a red circle", "--out", str(path), *QUICK]) == 0
        return path

    @cached_property
    def run(self) -> Path:
        """A run of four steps on drawn clips, saved after two and four."""
        from videogen.cli.main import main

        path = self.place / "run"
        assert main(train_words(path)) == 0
        return path


class Kind(NamedTuple):
    """A kind of damage: how it is done, and the word by which a command that goes on names it."""

    name: str
    damage: Callable[[Shop, Path], Words]
    says: str = ""
    is_harmless: bool = False


QUICK = ("--size", "32x32", "--frames", "1", "--steps", "1")
RECIPE = Path(__file__).parents[2] / "configs" / "toybox-dit.toml"
TINY = (
    "--dit.num-layers 1 --dit.num-attention-heads 1 --dit.attention-head-dim 12 --dit.ffn-dim 16 --dit.facts 0 "
    "--data.toybox 12 --data.val-clips 1 --data.token-budget 2560 --run.steps 4 --run.save-every 2 --run.val-every 100 "
    "--run.sample-every 0 --run.mixed-precision no"
)


def train_words(run: Path, *more: str) -> list[str]:
    """Return the command of a tiny training run."""
    folders = ["--dit.vae", str(MINI), "--dit.text", str(MINI), "--run.dir", str(run)]
    return ["train", str(RECIPE), *folders, *TINY.split(), *more]


# --- checkpoints


def checkpoint_with(damage: Callable[[Path], object]) -> Callable[[Shop, Path], Words]:
    """Damage a checkpoint folder and sample from it."""

    def do(shop: Shop, folder: Path) -> Words:
        shutil.copytree(MINI, folder, copy_function=os.link)
        damage(folder)
        return ["sample", "a red circle", "--model", str(folder), "--out", f"{folder}.mp4", *QUICK]

    return do


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in place of a link to one that must stay whole."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    """Change keys of a JSON file."""

    def do(folder: Path) -> None:
        path = folder / name
        replace_file(path, json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes).encode())

    return do


def content(name: str, data: bytes) -> Callable[[Path], None]:
    """Replace the content of a file."""
    return lambda folder: replace_file(folder / name, data)


def cut(name: str, share: float) -> Callable[[Path], None]:
    """Keep the first share of a file."""

    def do(folder: Path) -> None:
        data = (folder / name).read_bytes()
        replace_file(folder / name, data[: round(len(data) * share)])

    return do


def fifo(name: str) -> Callable[[Path], None]:
    """Put a fifo in place of a file: whoever opens it waits for ever."""

    def do(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return do


def directory(name: str) -> Callable[[Path], None]:
    """Put a folder in place of a file."""

    def do(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return do


def device(name: str) -> Callable[[Path], None]:
    """Put a link to an endless device in place of a file."""

    def do(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return do


DIT, VAE, TEXT, INDEX = (
    "transformer/config.json", "vae/config.json", "text_encoder/config.json", "model_index.json",
)  # fmt: skip
WEIGHTS = (
    "transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)  # fmt: skip
TOKENIZER = "tokenizer/tokenizer.json"
DEEP = b"[" * 100_000 + b"]" * 100_000
WRONG = {
    DIT: [
        {"num_layers": "eight"}, {"num_layers": 8.5}, {"num_layers": None}, {"num_layers": [8]}, {"num_layers": -1},
        {"num_layers": 20_000}, {"num_attention_heads": 10**9}, {"ffn_dim": 10**12}, {"attention_head_dim": "64"},
        {"patch_size": 2}, {"patch_size": ["a", 2, 2]}, {"patch_size": [1, 2]}, {"patch_size": [0, 0, 0]},
        {"patch_size": [1, 10**9, 2]}, {"extra_patch_sizes": 3}, {"extra_patch_sizes": [[1, 1]]}, {"in_channels": "x"},
        {"in_channels": {}}, {"text_dim": 10**10}, {"prediction": 7}, {"prediction": "noise"}, {"nearby": "yes"},
        {"num_facts": "many"}, {"eps": "small"}, {"freq_dim": 10**11}, {"qk_norm": 5},
    ],
    VAE: [
        {"latent_channels": "many"}, {"latent_channels": 10**9}, {"width": None}, {"latents_mean": "zero"},
        {"latents_mean": [0.0]}, {"latents_std": {}}, {"latents_std": [0.0] * 96}, {"scale_factor_temporal": "four"},
    ],
    TEXT: [
        {"num_hidden_layers": "six"}, {"num_hidden_layers": 20_000}, {"hidden_size": 10**9}, {"vocab_size": "many"},
        {"num_attention_heads": 0}, {"max_position_embeddings": "long"}, {"hidden_act": 3},
        {"max_position_embeddings": 10**12}, {"layer_norm_eps": "x"},
    ],
    INDEX: [
        {"_class_name": 5}, {"_class_name": None}, {"vae": "VideoVAE"}, {"vae": 7}, {"vae": [1, 2]},
        {"vae": ["diffusers"]}, {"transformer": {}}, {"transformer": ["os", "system"]}, {"text_encoder": [None, None]},
        {"defaults": 3}, {"defaults": {"steps": "many"}}, {"defaults": {"size": 64}}, {"defaults": {"colour": 1}},
        {"defaults": {"guidance_interval": 3}}, {"expand_timesteps": "x"},
        {"boundary_ratio": "x"},
    ],
}  # fmt: skip


def list_checkpoint_kinds() -> list[Kind]:
    """List what is done to checkpoint folders."""
    kinds: list[tuple[str, Callable[[Path], object]]] = []
    for name, changes in WRONG.items():
        kinds += [(f"{name} with {json.dumps(change)[:60]}", edit(name, **change)) for change in changes]
    for name in (DIT, VAE, TEXT, INDEX):
        kinds += [
            (f"{name} cut in half", cut(name, 0.5)), (f"{name} empty", content(name, b"")),
            (f"{name} a list", content(name, b"[]")), (f"{name} JSON nested 100,000 deep", content(name, DEEP)),
            (f"{name} JSON of 300 MB", lambda folder, name=name: big_json(folder / name)),
            (f"{name} no UTF-8", content(name, b'{"a": "\xff\xfe"}')), (f"{name} a fifo", fifo(name)),
            (f"{name} a folder", directory(name)), (f"{name} an endless device", device(name)),
            (f"{name} missing", lambda folder, name=name: (folder / name).unlink()),
            (f"{name} with NaN for a number", content(name, b'{"num_layers": NaN, "latent_channels": NaN}')),
        ]  # fmt: skip
    for name in (*WEIGHTS, TOKENIZER):
        kinds += [
            (f"{name} cut in half", cut(name, 0.5)), (f"{name} empty", content(name, b"")),
            (f"{name} a fifo", fifo(name)), (f"{name} a folder", directory(name)),
            (f"{name} an endless device", device(name)),
            (f"{name} missing", lambda folder, name=name: (folder / name).unlink()),
            (f"{name} text", content(name, b"version https://git-lfs.github.com/spec/v1\n")),
        ]  # fmt: skip
    return [Kind(f"checkpoint: {name}", checkpoint_with(damage)) for name, damage in kinds]


def big_json(path: Path) -> None:
    """Write a JSON object of 300 MB."""
    path.unlink()
    with path.open("w", encoding="utf-8") as file:
        file.write('{"num_layers": [')
        for _ in range(300):
            file.write("1," * 500_000)
        file.write("1]}")


# --- prompts, names, and the settings that a clip carries


def sample_words(folder: Path, *more: str) -> list[str]:
    """Return the command of a small clip."""
    return ["sample", "a red circle", "--out", f"{folder}.mp4", *QUICK, *more]


def with_prompt(prompt: str) -> Callable[[Shop, Path], Words]:
    """Sample a prompt."""
    return lambda shop, folder: ["sample", prompt, "--out", f"{folder}.mp4", *QUICK]


def with_prompts_file(name: str, data: bytes) -> Callable[[Shop, Path], Words]:
    """Sample the rows of a prompts file."""

    def do(shop: Shop, folder: Path) -> Words:
        folder.mkdir()
        (folder / name).write_bytes(data)
        return ["sample", "--prompts", str(folder / name), "--out", str(folder / "out"), *QUICK]

    return do


def with_fifo(flag: str, name: str) -> Callable[[Shop, Path], Words]:
    """Give a flag a fifo in place of a file."""

    def do(shop: Shop, folder: Path) -> Words:
        folder.mkdir()
        os.mkfifo(folder / name)
        return sample_words(folder, flag, str(folder / name))

    return do


def from_clip_with(**changes: object) -> Callable[[Shop, Path], Words]:
    """Make a clip again whose recorded settings are changed."""

    def do(shop: Shop, folder: Path) -> Words:
        import torch

        from videogen.data.video_io import read_settings, write_video

        settings = read_settings(shop.clip) | changes
        write_video(folder / "from.mp4", torch.zeros(1, 32, 32, 3, dtype=torch.uint8), fps=8, settings=settings)
        return ["sample", "--from", str(folder / "from.mp4"), "--out", str(folder / "again.mp4")]

    return do


RECORDED = [
    {"seed": "x"}, {"seed": None}, {"seed": 1.5}, {"seed": [1]}, {"prompt": 5}, {"prompt": None}, {"steps": "many"},
    {"size": 3}, {"checkpoint": "mini"}, {"checkpoint": 3}, {"lora": "style"}, {"lora": 3}, {"lora": [3]}, {"gguf": 7},
    {"dtype": 16}, {"quantise": 8}, {"image": 3}, {"device": 4}, {"guidance_interval": "all"}, {"lora_sha256": 3},
]  # fmt: skip
INPUTS = [
    Kind("prompt of 10 MB", with_prompt("a red circle " * 800_000)),
    Kind("prompt of 150 KB", with_prompt("a red circle " * 12_000)),
    Kind("prompt of 150 KB of emoji", with_prompt("\N{LARGE RED CIRCLE}" * 40_000)),
    Kind("prompt with a zero byte", with_prompt("a red\0circle"), is_harmless=True),
    Kind("prompt with half a surrogate", with_prompt("a red \udcff circle")),
    Kind("--out of 5,000 characters", lambda shop, folder: [*sample_words(folder), "--out", "x" * 5000 + ".mp4"]),
    Kind("--model of 5,000 characters", lambda shop, folder: sample_words(folder, "--model", "x" * 5000)),
    Kind("--lora of 5,000 characters", lambda shop, folder: sample_words(folder, "--lora", "x" * 5000)),
    Kind("--config of 5,000 characters", lambda shop, folder: sample_words(folder, "--config", "x" * 5000)),
    Kind("--from of 5,000 characters", lambda shop, folder: sample_words(folder, "--from", "x" * 5000 + ".mp4")),
    *(Kind(f"{flag} a fifo named {name}", with_fifo(flag, name)) for flag, name in (
        ("--lora", "a.safetensors"), ("--config", "a.toml"), ("--from", "a.mp4"), ("--image", "a.png"),
        ("--prompts", "a.txt"), ("--from", "a.safetensors"), ("--sweep", "a.toml"), ("--model", "model"),
    )),
    Kind("prompts JSONL nested 100,000 deep", with_prompts_file("a.jsonl", DEEP)),
    Kind("prompts JSONL with numbers for rows", with_prompts_file("a.jsonl", b"3\n4\n")),
    Kind("prompts JSONL with a number for a prompt", with_prompts_file("a.jsonl", b'{"prompt": 3}\n')),
    Kind("prompts JSONL with a list for a seed", with_prompts_file("a.jsonl", b'{"prompt": "a", "seed": [1]}\n')),
    Kind("prompts CSV with a cell of 200 KB", with_prompts_file("a.csv", b"prompt\n" + b"a red circle " * 15_000)),
    Kind("prompts CSV with a zero byte", with_prompts_file("a.csv", b"prompt\na\0b\n"), is_harmless=True),
    Kind("prompts CSV in UTF-16", with_prompts_file("a.csv", "prompt\na cat\n".encode("utf-16")), is_harmless=True),
    Kind("prompts Parquet that is text", with_prompts_file("a.parquet", b"prompt\n")),
    Kind("prompts empty", with_prompts_file("a.txt", b"")),
    *(Kind(f"--from a clip with {json.dumps(changes)}", from_clip_with(**changes)) for changes in RECORDED),
]  # fmt: skip


# --- run folders


def run_with(damage: Callable[[Path], object], *more: str) -> Callable[[Shop, Path], Words]:
    """Damage a run folder and go on with the run."""

    def do(shop: Shop, folder: Path) -> Words:
        shutil.copytree(shop.run, folder)
        damage(folder)
        return train_words(folder, "--run.steps", "5", *more)

    return do


def flip(name: str) -> Callable[[Path], None]:
    """Flip one bit in the middle of a file."""

    def do(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 16
        replace_file(folder / name, bytes(data))

    return do


def checkpoint_of_run(damage: Callable[[Path], object]) -> Callable[[Shop, Path], Words]:
    """Damage the checkpoint of a run, whose files are hashed, and sample from it."""

    def do(shop: Shop, folder: Path) -> Words:
        shutil.copytree(shop.run / "checkpoint", folder)
        damage(folder)
        return sample_words(folder, "--model", str(folder))

    return do


STEPS = ("step_000002", LAST := "step_000004")
STEP_FILES = ("model.safetensors", "ema_0.safetensors", "optimizer.safetensors", "progress.json", "manifest.json")


def remove(name: str) -> Callable[[Path], None]:
    """Remove a file or a folder."""
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def damage_all(*damages: Callable[[Path], object]) -> Callable[[Path], None]:
    """Do several kinds of damage."""

    def do(folder: Path) -> None:
        for damage in damages:
            damage(folder)

    return do


def first_file(pattern: str, damage: Callable[[str], Callable[[Path], None]]) -> Callable[[Path], None]:
    """Damage the first file of a pattern."""
    return lambda folder: damage(sorted(folder.glob(pattern))[0].relative_to(folder).as_posix())(folder)


RUNS = [
    *(Kind(f"run: {LAST}/{name} {what}", run_with(damage(f"{LAST}/{name}")), says=LAST)
      for name in STEP_FILES
      for what, damage in (("with one bit flipped", flip), ("cut in half", lambda n: cut(n, 0.5)),
                           ("empty", lambda n: content(n, b"")), ("a fifo", fifo), ("missing", remove))
      if (name, what) != ("manifest.json", "missing")),
    Kind("run: both steps damaged", run_with(damage_all(*(flip(f"{step}/ema_1.safetensors") for step in STEPS)))),
    Kind("run: an empty step folder", run_with(lambda folder: (folder / "step_000009").mkdir()), says="step_000009"),
    Kind("run: a step that is a file", run_with(lambda folder: (folder / "step_000009").touch()), is_harmless=True),
    Kind("run: the newest step removed", run_with(remove(LAST)), is_harmless=True),
    Kind("run: config.json cut in half", run_with(cut("config.json", 0.5))),
    Kind("run: config.json nested 100,000 deep", run_with(content("config.json", DEEP))),
    Kind("run: config.json a list", run_with(content("config.json", b"[3]"))),
    Kind("run: config.json a fifo", run_with(fifo("config.json"))),
    Kind("run: config.json missing", run_with(remove("config.json")), is_harmless=True),
    Kind("run: clips.json cut in half", run_with(cut("clips.json", 0.5))),
    Kind("run: clips.json a fifo", run_with(fifo("clips.json"))),
    Kind("run: clips.json missing", run_with(remove("clips.json")), is_harmless=True),
    Kind("run: log.jsonl with half a row", run_with(lambda folder: cut("log.jsonl", 0.5)(folder)), is_harmless=True),
    Kind("run: log.jsonl of zeros", run_with(content("log.jsonl", bytes(4096))), is_harmless=True),
    Kind("run: log.jsonl a fifo", run_with(fifo("log.jsonl"))),
    *(Kind(f"run: {name} {what}", run_with(first_file(pattern, damage)), says=says, is_harmless=not says)
      for name, pattern, says in (("latents", "latents/*.shard", ""), ("their index", "latents/*.sqlite", "made again"))
      for what, damage in (("cut in half", lambda n: cut(n, 0.5)), ("empty", lambda n: content(n, b"")),
                           ("of zeros", lambda n: content(n, bytes(4096))), ("a fifo", fifo))),
    Kind("run: latents with one bit flipped", run_with(first_file("latents/*.shard", flip)), is_harmless=True),
    Kind("run: the index of latents missing", run_with(remove("latents/index.sqlite")), is_harmless=True),
    Kind("run: texts with one bit flipped", run_with(first_file("texts/*", flip)), is_harmless=True),
    Kind("run: texts a fifo", run_with(first_file("texts/*", fifo)), is_harmless=True),
    Kind("run: another model", run_with(lambda folder: None, "--dit.num-layers", "2")),
    Kind("run: other data", run_with(lambda folder: None, "--data.toybox", "13")),
    Kind("run: another seed", run_with(lambda folder: None, "--run.seed", "8")),
    Kind("run: the folder is a file", lambda shop, folder: (folder.touch(), train_words(folder))[1]),
    *(Kind(f"run: its checkpoint with {name} {what}", checkpoint_of_run(damage(name)))
      for name in (DIT, *WEIGHTS, TOKENIZER, INDEX)
      for what, damage in (("one bit flipped", flip), ("cut in half", lambda n: cut(n, 0.5)))),
]  # fmt: skip
KINDS = [*list_checkpoint_kinds(), *INPUTS, *RUNS]
