"""The arguments of `sample.py`: a dataclass from which tyro derives the flags.

argv  ->  SampleArgs
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from videogen.cli.devices import check_device_name
from videogen.cli.prompts import read_seed
from videogen.config.sample import MINI, SampleConfig
from videogen.data.pictures import WHITE, check_background

SEED = tyro.constructors.PrimitiveConstructorSpec[int](
    nargs=1,
    metavar="INT|random",
    instance_from_str=lambda words: read_seed(words[0]),
    is_instance=lambda value: isinstance(value, int),
    str_from_instance=lambda seed: [str(seed)],
)


@dataclass(frozen=True, kw_only=True)
class SampleArgs:
    """What to make, from what, and where to put it."""

    prompt: tyro.conf.Positional[tuple[str, ...]] = ()
    """One or more prompts."""
    prompts: Path | None = None
    """A file of prompts: one a line, or .json / .jsonl / .csv with a column prompt and any of seed, steps, size, ..."""
    out: Path | None = None
    """A .mp4, .mov, .mkv, .webm, .gif or .png file for one clip, or a folder; default out/<prompt>-<seed>.mp4, and -2,
    -3, ... behind that where it exists. With --stream, - is standard output."""
    model: Path = MINI
    """Checkpoint folder, owner/name[@revision] of one on the Hugging Face Hub, or Wan's transformer in a file."""
    model_2: Path | None = None
    """For a --model that is a file, the first of two experts: the second, for low noise, in a file too."""
    vae: Path | None = None
    """For a --model that is a file: its VAE, a file or a folder."""
    text: Path | None = None
    """For a --model that is a file: its text encoder (UMT5), a file with its tokenizer beside it, or a folder."""
    image_encoder: Path | None = None
    """For a --model that is a file and sees images through CLIP (Wan 2.1): that CLIP, a file or a folder."""
    num: int = 1
    """Clips a prompt; their seeds follow on from --seed."""
    seed: Annotated[int, SEED] = 0
    """The clip's noise; random, or -1, draws one, which the file records."""
    seeds: str | None = None
    """Several seeds for every prompt, instead of --seed and --num: 0,1,2 or a range 0:9:10."""
    sweep: tuple[str, ...] = ()
    """Compare settings: axis=a,b,c or axis=start:stop:count for any of the settings below, or a grid.toml."""
    search: int | None = None
    """Let Optuna choose so many of the sweep's settings instead of running all."""
    score: str | None = None
    """For a sweep, module:function of your own: score(frames, prompt) -> numbers, higher is better, first counts."""
    reference: int | None = None
    """Steps of the runs that a sweep measures distance to, 0 for none; default four times the most on its axes."""
    from_clip: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Take prompt, seed and settings from a clip that this program wrote; flags override. A latent is decoded."""
    config: Path | None = None
    """A TOML file of settings; flags override."""
    image: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A picture that the clip shows: FILE[@first|@last|@SECONDS], by default its first frame; may be repeated."""
    video: Path | None = None
    """A clip to go on from (--extend, --join, --loop), to change in part (--mask) or in all (--strength)."""
    extend: float | None = None
    """Seconds to add behind --video; below 0, as --extend -2, before it."""
    join: Path | None = None
    """A clip to which what --extend adds leads."""
    loop: bool = False
    """Let what --extend adds lead back to the beginning of --video."""
    mask: Path | None = None
    """A picture or clip of the size of --video: white is made anew, black is kept."""
    storyboard: Path | None = None
    """A TOML file of scenes, each [[scene]] with its prompt, seconds and transition: cut, blend or continue."""
    fit: Literal["crop", "pad", "size"] = "crop"
    """Pictures of another shape than the clip: crop them, pad them with black, or give the clip the picture's size."""
    background: str = WHITE
    """The colour behind pictures that are transparent in places: a name, or #rrggbb."""
    lora: tuple[str, ...] = ()
    """LoRA files or folders, each with =SCALE behind it where that is not 1; of a model with two experts with high: or
    low: before it, for high or low noise."""
    sample: Annotated[SampleConfig, tyro.conf.arg(name="")] = field(default_factory=SampleConfig)
    """Settings."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda[:N]|mps|xpu")] = "auto"
    """Where to compute. auto: on the accelerator that there is, or else on the CPU, where the same command on the same
    machine writes the same bytes."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights. auto: bfloat16 for checkpoints trained here, on a CPU that has instructions for it, and
    float32 otherwise. A clip records the precision that it was made in."""
    offload: Literal["none", "model", "group"] = "none"
    """Keep what does not compute on the CPU: whole parts (model), or layer by layer (group), slower and smaller."""
    quantise: Literal["none", "fp8", "int8", "nf4"] = "none"
    """Transformer weights in fewer bits: fp8 needs nothing more, int8 torchao, nf4 bitsandbytes and CUDA."""
    gguf: tuple[Path, ...] = ()
    """A quantised Wan transformer in place of the folder's; of two experts one for each, high noise first."""
    exact: bool = True
    """On a CPU, make each clip alone, to the same bytes whatever is made beside it; --no-exact makes small clips side
    by side in one pack, a fifth faster and equal to rounding, as a GPU always does."""
    compile: bool = False
    """Compile the transformer's block, for GPUs: slow to start, and on a CPU no faster afterwards (0.94 times)."""
    save_latents: bool = False
    """Keep each latent as .safetensors beside its clip, before it is decoded; the same command, no sweep, resumes."""
    stream: bool = False
    """Let frames be seen while the rest of a clip is made: in a .mp4, .mov, .mkv or .webm that a player can open as it
    grows, or with --out - as an MP4 in a pipe. Such a file is two or three times as large."""
    codec: Literal["av1"] | None = None
    """Write a .mp4, .mkv or .webm in AV1: smaller, slower, and not all players know it."""
    draft: bool = False
    """A quick look: few steps, most of them in the model's coarsest patches; seed and layout are the clip's own."""
    dry_run: bool = False
    """Say sizes, tokens, memory and time; run nothing."""
    overwrite: bool = False
    """Replace files that exist."""
    quiet: bool = False
    """Show no bars."""
    json: bool = False
    """Print a JSON object a clip instead of text."""

    @property
    def needs_diffusers(self) -> bool:
        """True if a flag asks for what diffusers does: LoRA, offloading, quantised weights, compiling."""
        return bool(self.lora or self.gguf or self.compile) or self.quantise != "none" or self.offload != "none"

    @property
    def names_count_on(self) -> bool:
        """True if a clip whose name is taken gets a number; with latents the same name is the same clip, resumed."""
        return self.out is None and not self.save_latents and not self.overwrite

    def __post_init__(self) -> None:
        if self.background != WHITE:  # Pillow need not be imported for the default
            check_background(self.background)
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")
        if self.search is not None and (self.search < 1 or not self.sweep):
            raise ValueError("--search N chooses N >= 1 of the settings of --sweep axis=a,b,c; give both")
        check_device_name(self.device)
        if self.offload != "none" and self.device == "cpu":
            raise ValueError(
                f"--offload {self.offload} keeps on the CPU what does not compute on a GPU; "
                "leave it out with --device cpu"
            )
        if self.codec and (self.stream or self.sweep):
            flag = "--stream" if self.stream else "--sweep"
            raise ValueError(f"{flag} writes H.264, which browsers play; leave --codec {self.codec} out")
        if self.stream and (self.sweep or self.save_latents):
            other = (
                "a sweep looks at whole clips" if self.sweep else "--save-latents keeps all of a clip before any frame"
            )
            raise ValueError(f"{other}, and --stream shows frames before; leave one of them out")
        alone = [flag for flag in ("score", "reference") if getattr(self, flag) is not None and not self.sweep]
        if alone:
            raise ValueError(f"--{alone[0]} is for a sweep; add --sweep axis=a,b,c, or leave it out")
