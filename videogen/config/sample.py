"""The settings of sampling: everything that decides what a clip looks like, but its prompt and its seed.

checkpoint defaults + TOML + flags  ->  SampleConfig
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from videogen.config.assets import ASSETS
from videogen.config.parsing import check_text
from videogen.config.sizes import parse_ratio, parse_size, require_positive

MINI = ASSETS / "mini"  # the default checkpoint
SAMPLER_NAMES = (  # see sampling/solvers.py
    "euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "deis", "dpmpp_multistep", "flow_euler", "flow_heun",
)  # fmt: skip
POSITION_SCALINGS = ("none", "interpolate", "ntk", "riflex")  # see models/rope.py


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Everything that decides what a clip looks like, but its prompt and its seed."""

    size: str = "64x64"
    """Width x height in pixels, any multiple of the model's stride; or a shape, 9:16, of the default's area."""
    frames: int = 17
    """Length in frames, 1 + a multiple of the VAE's temporal stride; 1 is an image."""
    seconds: float | None = None
    """Length in seconds, rounded to the nearest possible number of frames; overrides frames."""
    fps: float = 8.0
    """Frames a second."""
    steps: int = 20
    """Solver steps; heun evaluates the network twice in each."""
    sampler: str = "dpmpp_2m"
    """How the noise is removed: euler, heun, dpmpp_2m, dpmpp_2m_sde, or one of diffusers' (unipc, deis, ...)."""
    guidance: float = 4.0
    """How strongly the prompt is followed; 1 evaluates the network once a step and ignores the negative prompt."""
    guidance_2: float | None = None
    """Guidance of the second expert of Wan 2.2, which takes over at low noise; none is the same as guidance."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The noise levels between which guidance is on (Kynkäänniemi et al. 2024)."""
    cfg_zero: bool = True
    """Scale the unguided prediction to fit the guided one first (CFG-Zero*, Fan et al. 2025)."""
    negative: str = ""
    """What the clip should not show."""
    shift: float = 2.0
    """Above 1, more of the steps are spent at high noise, where layout and motion are decided."""
    patch: str = ""
    """Patch sizes from high noise to low, with their shares of the steps, as 1x4x4:0.4,1x2x2; none is the base size."""
    strength: float = 1.0
    """How far a given video may be left behind: small changes little, 1 begins at noise and keeps what is held."""
    position_scaling: str = "none"
    """RoPE of clips longer or larger than the checkpoint's default: none, interpolate, ntk, or riflex (time)."""
    adain: float = 0.75
    """How far the later windows of a long clip take on the statistics of the first, channel by channel, which keeps
    contrast and colour from drifting: 1 wholly, 0 not at all (AdaIN, Huang and Belongie 2017)."""
    first_block_cache: float = 0.0
    """Approximate: reuse the last step's blocks where the first changes by less than this, such as 0.1; 0 is exact."""
    mag_cache: float = 0.0
    """Approximate: reuse the last step's blocks while the expected error is below this, such as 0.1; 0 is exact."""

    def __post_init__(self) -> None:
        if parse_ratio(self.size) is None:  # which a checkpoint gives its area (CheckpointInfo.resolve_size)
            parse_size(self.size)
        check_text(self.negative, "negative")
        require_positive(self, "frames", "steps", "fps", "shift")
        if self.seconds is not None:
            require_positive(self, "seconds")
        for name in ("guidance", "guidance_2"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {value:g}; 1 is no guidance")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {self.strength:g}; 1 is a clip of its own")
        if self.first_step == self.steps:
            raise ValueError(
                f"strength {self.strength:g} leaves none of {self.steps} steps; "
                f"give at least {math.ceil(100 / self.steps) / 100:g}, or more steps"
            )
        if not 0 <= self.adain <= 1:
            raise ValueError(f"adain must be between 0 and 1, got {self.adain:g}; 0 leaves all windows as they come")
        if self.position_scaling not in POSITION_SCALINGS:
            raise ValueError(
                f"position_scaling must be one of {', '.join(POSITION_SCALINGS)}, got {self.position_scaling!r}"
            )
        for name in ("first_block_cache", "mag_cache"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {value:g}; 0 computes everything")
        if self.first_block_cache and self.mag_cache:
            raise ValueError("first_block_cache and mag_cache exclude each other; set one of them to 0")
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval must be two rising noise levels in 0..1, got {low:g} and {high:g}")
        object.__setattr__(self, "guidance_interval", (float(low), float(high)))  # JSON and TOML give lists

    @property
    def reuses_blocks(self) -> bool:
        """True if one of the approximate caches is on, under which a clip's evaluations depend on those before them."""
        return self.first_block_cache > 0 or self.mag_cache > 0

    @property
    def first_step(self) -> int:
        """The steps that are left out at the noisy end, counted as diffusers' video-to-video pipelines do."""
        return max(0, self.steps - int(self.steps * self.strength))

    @property
    def width(self) -> int:
        """Width in pixels."""
        return parse_size(self.size)[0]

    @property
    def height(self) -> int:
        """Height in pixels."""
        return parse_size(self.size)[1]


def check_sampler(name: str) -> None:
    """Refuse a sampler that is neither ours nor one of diffusers' for flows."""
    if name not in SAMPLER_NAMES:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLER_NAMES)}, got {name!r}")


def resolve_frames(config: SampleConfig, stride: int) -> int:
    """Compute the length in frames: as given, or the possible one nearest to the seconds asked for."""
    if config.seconds is None:
        return config.frames
    return 1 + stride * max(0, round((config.seconds * config.fps - 1) / stride))
