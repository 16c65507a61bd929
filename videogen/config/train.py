"""The options of training, as frozen dataclasses read from TOML and overridden by flags.

    configs/x.toml + flags  ->  TrainConfig

Units are in the names, the meaning is under each field; an impossible value is refused when the object is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from videogen.config.clip_sets import ClipSet
from videogen.config.sample import MINI, SampleConfig
from videogen.config.sizes import check_frames, check_size, parse_patch, parse_size, require_positive

BaseDtype = Literal["float32", "fp8", "nf4"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which clips are read from a folder, and at which size."""

    folder: Path = Path("data")
    """A folder of videos: metadata.csv / .jsonl / .parquet with file_name and text, or a clip.txt beside clip.mp4; or a
    dataset.toml that names several folders."""
    sets: tyro.conf.Suppress[tuple[ClipSet, ...]] = ()
    """Several folders instead of one, each [[data.sets]] with folder, repeats, fps, size and frames."""
    follow_links: bool = False
    """Read what links in the folder lead to where that lies outside of it."""
    toybox: int = 0
    """Render this many clips of the toybox instead of reading a folder."""
    toybox_sizes: tuple[str, ...] = ()
    """Sizes WxH of those clips, the first of them for six in ten; none takes all of the toybox's."""
    toybox_lengths: tuple[int, ...] = ()
    """Numbers of frames of those clips, the first of them for six in ten; none takes all of the toybox's."""
    toybox_captions: int = 1
    """Captions of each of those clips; the epochs read them in turn."""
    toybox_free: float = 0.0
    """Share of those captions in free English, instead of the plain sentences that the judge reads."""
    captions: Literal["needed", "optional"] = "needed"
    """optional: a file without a caption is trained without words, instead of being left out."""
    decoded: Path | None = None
    """Folder that keeps every clip as it is trained, so that its file is decoded once; none decodes it each time."""
    cache_gb: float | None = None
    """Most gigabytes of latents that a run may keep; one that needs more is refused. None asks for no limit."""
    fps: float = 8.0
    """Frame rate at which clips are read."""
    max_seconds: float = 4.2
    """Longest clip in seconds; of a longer file, each epoch reads another stretch of this length."""
    windows: int = 4
    """Number of stretches of a file longer than max_seconds; the epochs read them in turn."""
    scenes_over: float | None = None
    """Files of more seconds are looked at frame by frame, and each of their scenes is a clip; none looks at no file."""
    max_size: str | None = None
    """Largest area of a clip, as WIDTHxHEIGHT; a larger one is scaled down to it and keeps its shape."""
    max_tokens: int = 400
    """Most video tokens of one clip; a larger clip is scaled down, keeping its shape."""
    token_budget: int = 2560
    """Most video tokens in one step, all clips together."""
    repeats: int = 1
    """How often each clip is trained in one epoch, each time with other noise: fills the packs of a small folder."""
    workers: int | None = None
    """Processes that prefetch clips; none is one a core where a GPU trains, and 0 on a CPU."""
    val_clips: int = 64
    """Most clips held out of training for the validation loss: at most a tenth, one of five to ten, of fewer none."""

    def __post_init__(self) -> None:
        require_positive(
            self, "fps", "max_seconds", "windows", "max_tokens", "token_budget", "repeats", "toybox_captions"
        )
        if not 0 <= self.toybox_free <= 1:
            raise ValueError(f"data.toybox_free must be a share, 0 to 1, got {self.toybox_free:g}")
        for name in ("toybox", "val_clips", "workers", "cache_gb"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"data.{name} must be 0 or more, got {value}")
        if self.max_size is not None:
            parse_size(self.max_size)
        if self.sets and (self.toybox or self.folder != Path("data")):
            raise ValueError("data.sets names the folders; leave data.folder and data.toybox out, or data.sets")
        if self.toybox and self.folder != Path("data"):
            raise ValueError(
                f"data.toybox = {self.toybox} draws clips instead of reading {self.folder}; "
                "give --data.toybox 0 to read the folder, or a recipe for folders (configs/folder-vae.toml)"
            )
        for size in self.toybox_sizes:
            check_size(*parse_size(size), 16)
        for frames in self.toybox_lengths:
            check_frames(frames, 4)


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """The size of a new VideoVAE and the weights of its losses (see training/vae_loss.py)."""

    channels: int = 16
    """Latent channels."""
    width: int = 64
    """Channels of the finest convolutions; the coarser ones have 1.5 and 2 times as many."""
    linear_encoder: bool = False
    """Encode by the linear transform alone, fixed before training, so that a DiT need not wait for the decoder."""
    crop: int = 32
    """Side of the square training crops in pixels, taken where most changes; 0 trains on whole clips."""
    crop_frames: int = 9
    """Length of the training crops."""
    batch_clips: int = 4
    """Clips read in one step."""
    crops: int = 4
    """Crops of each clip; whole clips are taken once."""
    whole_share: float = 0.15
    """Share of the run, at its end, that trains on whole clips, so that their borders are learned too."""
    foreground: float = 3.0
    """Weight of the busiest pixels against the calmest."""
    pyramid: float = 0.5
    """Weight of the L1 loss on three coarser scales."""
    motion: float = 0.5
    """Weight of the L1 loss on differences between frames."""
    kl: float = 1e-6
    """Weight of the Kullback-Leibler term, per latent value."""
    local_correlation: float = 0.005
    """Weight of the hinge on correlation of neighbouring latents (SSVAE, LCR)."""
    scale_equivariance: float = 0.25
    """Weight of decoding the half-size latent to the half-size clip (Skorokhodov et al. 2025)."""
    mask_latents: bool = True
    """Replace a random share of latent positions by a learned token before decoding (SSVAE, LMR)."""
    latent_noise: float = 0.2
    """Largest noise added to half of the latents before decoding, in their own standard deviations (LTX-Video)."""

    def __post_init__(self) -> None:
        require_positive(self, "channels", "width", "crop_frames", "batch_clips", "crops")
        if self.crop % 8 or self.crop < 0:
            raise ValueError(f"crop must be a multiple of 8, or 0 for whole clips, got {self.crop}")


@dataclass(frozen=True, kw_only=True)
class DitConfig:
    """The size of a new VideoDiT, and how it is trained."""

    vae: Path = MINI
    """Checkpoint folder whose VAE is used."""
    text: Path = MINI
    """Checkpoint folder whose text encoder and tokenizer are used."""
    init: Path | None = None
    """Checkpoint folder to take the first weights from; none begins at random."""
    widen: bool = False
    """Widen the network of dit.init to num_attention_heads and ffn_dim; its first predictions are those of dit.init."""
    lora_rank: int = 0
    """Train a LoRA of this rank on the weights of dit.init, which may be a folder of Wan's; 0 trains all weights."""
    lora_alpha: float | None = None
    """The LoRA is scaled by alpha / rank while it trains; none is the rank, a scale of 1."""
    lora_trigger: str = ""
    """Words of the captions that call the LoRA: they are written into its file, where galleries show them."""
    base_dtype: BaseDtype = "float32"
    """How the matrices below a LoRA are kept: in 4 bytes, 8 bits or 4 bits a value (nf4 needs bitsandbytes). In fewer
    bits the text encoder waits on the host, in bf16 where the run computes in it."""
    lora_layers: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    """The layers that the LoRA adapts, by the ends of their names."""
    num_layers: int = 8
    """Blocks."""
    num_attention_heads: int = 4
    """Heads a block."""
    attention_head_dim: int = 64
    """Channels a head; the model's width is heads x this."""
    ffn_dim: int = 1024
    """Hidden width of the feed-forward layers."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Frames, rows and columns of latent cells in one token."""
    nearby: bool = False
    """Add a depthwise 3x3 convolution over each frame's tokens before every feed-forward layer, which Wan lacks."""
    patches: dict[str, float] = field(default_factory=dict)
    """More patch sizes and their shares of the steps, as 1x4x4 = 0.3; patch_size has the rest (FlexiDiT)."""
    patch_levels: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Lowest and highest noise level that a patch size is trained at, as 1x4x4 = [0.7, 1]; all by default."""
    patch_tokens: dict[str, int] = field(default_factory=dict)
    """base_tokens of a patch size, counted in its tokens; by default base_tokens in proportion to its cells."""
    prediction: Literal["preconditioned", "clean", "velocity"] = "preconditioned"
    """What the network predicts: what the variance leaves open, the clean value (Li & He 2025), or the velocity."""
    caption_dropout: float = 0.1
    """Share of clips trained without their caption, for guidance."""
    base_tokens: int = 80
    """Clip length in tokens up to which noise levels are not shifted; four times as long shifts them by 2."""
    facts: float = 0.0
    """Weight of the auxiliary loss half way up: the kind, colour and direction that each token shows (toybox only)."""
    facts_until: float = 0.4
    """Share of the run in which the auxiliary loss counts: late it would hold the network back (HASTE)."""
    gradient_checkpointing: bool = False
    """Compute the blocks twice instead of keeping their activations."""
    uniform_sigmas: float = 0.1
    """Share of clips whose noise level is uniform instead of logit-normal."""
    known: dict[str, float] = field(default_factory=lambda: {"nothing": 1.0})
    """Mixture of conditioning masks: nothing, first_frame, extend, extend_back, join, keyframes, per_frame, box."""
    given_noise: float = 0.0
    """Share of clips whose known tokens have a little noise that the network is not told of, as Wan 2.2's have."""

    def __post_init__(self) -> None:
        require_positive(self, "num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "base_tokens")
        if self.lora_rank < 0 or (self.lora_rank and self.init is None):
            raise ValueError(f"dit.lora_rank = {self.lora_rank} needs weights to adapt; give dit.init, or set it to 0")
        if self.widen and self.init is None:
            raise ValueError("dit.widen makes the network of dit.init wider; give dit.init, or leave it out")
        more = [f"dit.{name}" for name in ("patches", "nearby", "facts", "widen") if getattr(self, name)]
        if self.lora_alpha is not None and not (self.lora_rank and 0 < self.lora_alpha < math.inf):
            raise ValueError(
                f"dit.lora_alpha = {self.lora_alpha:g} scales a LoRA and must be above 0; give dit.lora_rank too"
            )
        if self.lora_trigger and not self.lora_rank:
            raise ValueError(f"dit.lora_trigger = {self.lora_trigger!r} is that of a LoRA; give dit.lora_rank too")
        if self.base_dtype != "float32" and not self.lora_rank:
            raise ValueError(
                f"dit.base_dtype = {self.base_dtype!r} keeps weights that are not trained; give dit.lora_rank and "
                "dit.init, or leave it out"
            )
        if self.lora_rank and more:
            raise ValueError(
                f"dit.lora_rank trains an adapter on the unchanged model, so {', '.join(more)} cannot be set; "
                "remove it, or set dit.lora_rank to 0"
            )
        self._check_patches()
        if self.attention_head_dim % 2:
            raise ValueError(f"attention_head_dim must be even, got {self.attention_head_dim}")
        if not 0 <= self.facts < math.inf:
            raise ValueError(f"facts must be 0 or more, got {self.facts:g}")
        for name in ("caption_dropout", "uniform_sigmas", "facts_until", "given_noise"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} must be a share, 0 to 1, got {value:g}")

    def _check_patches(self) -> None:
        _, *extra = map(parse_patch, ("x".join(map(str, self.patch_size)), *self.patches))
        if self.patch_size in extra or len(set(extra)) < len(extra):
            raise ValueError(f"dit.patches names sizes beside dit.patch_size, each once, got {', '.join(self.patches)}")
        if min(self.patches.values(), default=0) < 0 or sum(self.patches.values()) > 1 + 1e-6:
            raise ValueError(f"dit.patches must be shares of 0 or more and at most 1 in all, got {self.patches}")
        for name in (*self.patch_levels, *self.patch_tokens):
            if parse_patch(name) not in (self.patch_size, *extra):
                raise ValueError(f"{name} is no patch size of this recipe; give it a share in dit.patches")
        for name, (least, most) in self.patch_levels.items():
            if not 0 <= least < most <= 1:
                raise ValueError(f"dit.patch_levels must rise within 0..1, got {name} = {least:g}, {most:g}")
        for name, tokens in self.patch_tokens.items():
            if tokens < 1:
                raise ValueError(f"dit.patch_tokens must be 1 or more, got {name} = {tokens}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, with warm-up, a constant phase and a linear decay to zero."""

    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """Optimizer; muon updates the matrices of the DiT's blocks, and AdamW the rest (needs products in bf16). adamw8bit
    keeps AdamW's moments in a byte each (needs bitsandbytes)."""
    lr: float = 5e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's two decays."""
    weight_decay: float = 0.01
    """On matrices only."""
    warmup_steps: int = 300
    """Steps of linear rise."""
    decay_share: float = 0.2
    """Share of the run, at its end, in which the learning rate falls to zero."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    accumulate: int = 1
    """Packs that each process trains in one step, one after another; their gradient is that of one large pack."""
    ema: tuple[float, float] = (0.05, 0.10)
    """Relative widths of the two power-function averages of the weights (Karras et al. 2024)."""

    def __post_init__(self) -> None:
        require_positive(self, "lr", "grad_clip", "accumulate")
        if not all(0 < width < 0.28 for width in self.ema):
            raise ValueError(f"ema must be widths between 0 and 0.28, got {self.ema}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long a run is and what it leaves behind."""

    dir: Path = Path("runs/run")
    """Folder of the run; the same folder again resumes it."""
    seed: int = 0
    """Decides every random draw of the run."""
    steps: int = 1000
    """Optimiser steps in all."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """bf16 computes matrix products in half the bits; weights stay float32. auto: bf16 on GPUs and CPUs that have
    instructions for it, no elsewhere; config.json keeps what was chosen."""
    compile: bool = False
    """Compile the DiT's blocks with torch.compile, which pays after a minute on a GPU."""
    minutes: float | None = None
    """Wall-clock limit of this call: the run saves and stops, and the same command resumes it."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """How many step folders are kept, the newest; 0 keeps all."""
    resume: str = "latest"
    """Where a run goes on: latest, at a step that was saved, such as 500, or none, which begins it anew. The steps
    behind that are set aside, not deleted."""
    report_to: str = "auto"
    """Trackers beside log.jsonl, as names with commas between: tensorboard, wandb, trackio, mlflow, ..., or none. auto:
    TensorBoard where it is installed."""
    val_every: int = 500
    """Steps between validation losses."""
    sample_every: int = 1000
    """Steps between sample grids; 0 makes none."""
    skip_bad_steps: int = 0
    """How many steps whose loss or gradient is not finite the run may skip; one more stops it, unsaved."""
    sample_rarer: bool = False
    """Make sample grids ever rarer: after sample_every steps, twice as many, four times as many, ..."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the sample grids, with seeds 0, 1, 2, ..."""

    def __post_init__(self) -> None:
        require_positive(self, "steps", "save_every", "val_every")
        if self.keep < 0:
            raise ValueError(f"run.keep must be 0 or more, got {self.keep}; 0 keeps every step folder")
        if self.resume not in ("latest", "none") and not (self.resume.isascii() and self.resume.isdigit()):
            raise ValueError(f"run.resume must be latest, none or the number of a step, got {self.resume!r}")
        if self.skip_bad_steps < 0:
            raise ValueError(f"run.skip_bad_steps must be 0 or more, got {self.skip_bad_steps}")
        if self.minutes is not None:
            require_positive(self, "minutes")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A recipe: what train.py reads from configs/x.toml."""

    stage: Literal["vae", "dit"] = "dit"
    """What is trained."""
    data: DataConfig = field(default_factory=DataConfig)
    """Clips."""
    vae: VaeConfig = field(default_factory=VaeConfig)
    """The VAE stage."""
    dit: DitConfig = field(default_factory=DitConfig)
    """The DiT stage."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser."""
    run: RunConfig = field(default_factory=RunConfig)
    """Run."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Settings of the sample grids; saved as the checkpoint's defaults."""

    def __post_init__(self) -> None:
        if self.stage == "vae" and self.optim.optimizer == "adamw8bit":
            raise ValueError("optim.optimizer = 'adamw8bit' is for the DiT; the VAE is small, and takes 'adamw'")
