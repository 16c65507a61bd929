"""The clips that a call of the pipeline returns: tensors that a notebook shows and that write themselves to a file.

frames (t, h, w, 3) uint8, fps, settings  ->  Clip;  [Clip, ...]  ->  Clips, with diffusers' `.frames`
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from videogen.data.video_io import write_video

if TYPE_CHECKING:
    from PIL.Image import Image

OVERFLOWS = (
    "these pixels are whole numbers from 0 to 255, and 255 times as much overflows; give export_to_video the frames[i] "
    "of the call's result, or write the clip with clip.save('clip.mp4')"
)


class Pixels(np.ndarray):
    """Frames uint8 that refuse to be multiplied by 255, as export_to_video of diffusers does with every array."""

    def __mul__(self, other: object) -> np.ndarray:  # type: ignore[override]
        """Multiply; a ValueError where that would overflow all but the darkest pixels."""
        if self.dtype == np.uint8 and isinstance(other, int) and other == 255:
            raise ValueError(OVERFLOWS)
        return np.asarray(self) * other  # type: ignore[operator]

    __rmul__ = __mul__  # type: ignore[assignment]


class Clip(Tensor):
    """Frames (t, h, w, 3) uint8 of one clip; whatever is computed from it is a plain tensor."""

    __torch_function__: ClassVar = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    fps: float
    settings: Mapping[str, object]  # what it was made of, as far as the call says it

    @classmethod
    def of(cls, frames: Tensor, *, fps: float, settings: Mapping[str, object]) -> Clip:
        """Make a clip of frames (t, h, w, 3) uint8."""
        clip = frames.as_subclass(cls)
        clip.fps, clip.settings = fps, dict(settings)
        return clip

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        """Copy and pickle the frames with the rate and the settings."""
        return restore_clip, (self.as_subclass(Tensor), self.fps, self.settings)

    def __deepcopy__(self, memo: dict[int, object]) -> Clip:
        """Copy the frames too."""
        return Clip.of(self.as_subclass(Tensor).clone(), fps=self.fps, settings=self.settings)

    def save(
        self, path: str | Path, *, fps: float | None = None, overwrite: bool = False, codec: str | None = None
    ) -> Path:
        """Write an .mp4, .webm, .mov, .mkv or .gif, or of one frame a .png, with the settings; return its path."""
        frames = self.as_subclass(Tensor)
        write_video(Path(path), frames, fps=fps or self.fps, settings=self.settings, overwrite=overwrite, codec=codec)
        return Path(path)

    def numpy(self) -> Pixels:  # type: ignore[override]
        """Return the frames as an array (t, h, w, 3) uint8."""
        return self.as_subclass(Tensor).numpy().view(Pixels)

    def pil(self) -> list[Image]:
        """Return the frames as pictures, which export_to_video of diffusers takes."""
        from PIL import Image

        return [Image.fromarray(frame) for frame in self.as_subclass(Tensor).numpy()]

    def _repr_html_(self) -> str:
        """Show the clip in a notebook."""
        return show(self, self.fps)


class Clips(list[Clip]):
    """The clips of a call, one a prompt."""

    @property
    def frames(self) -> np.ndarray | list[np.ndarray]:
        """The clips as diffusers returns them: one array (b, t, h, w, 3) float32 in [0, 1], or a list of them."""
        arrays = [as_fractions(clip).numpy() for clip in self]
        return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays

    def _repr_html_(self) -> str:
        """Show the clips in a notebook, side by side."""
        return "\n".join(clip._repr_html_() for clip in self)


def restore_clip(frames: Tensor, fps: float, settings: Mapping[str, object]) -> Clip:
    """Make a clip again of what was pickled."""
    return Clip.of(frames, fps=fps, settings=settings)


def as_fractions(frames: Tensor) -> Tensor:
    """Convert frames uint8 to float32 in [0, 1], in steps of 1/255."""
    return frames.as_subclass(Tensor).float() / 255


def show(frames: Tensor, fps: float) -> str:
    """Write frames (t, h, w, 3) uint8 into an HTML element that holds the file itself."""
    is_image = len(frames) == 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("clip.png" if is_image else "clip.mp4")
        write_video(path, frames.as_subclass(Tensor), fps=fps)
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    if is_image:
        return f'<img src="data:image/png;base64,{data}">'
    return f'<video controls loop autoplay muted playsinline src="data:video/mp4;base64,{data}"></video>'


def stack_frames(clips: Sequence[Tensor], output_type: str) -> object:
    """Convert clips of one size to the frames that diffusers returns under an output_type."""
    if output_type == "pil":
        return [Clip.of(clip, fps=1.0, settings={}).pil() for clip in clips]
    video = as_fractions(torch.stack([clip.as_subclass(Tensor) for clip in clips]))
    return video.movedim(-1, 2) if output_type == "pt" else video.numpy()
