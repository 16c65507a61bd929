"""Images as prompts, as Wan's image-to-video models take them.

    first image, last image or none, size  ->  what stands beside the noise in each token, what is known, CLIP's rows

Wan 2.1 and 2.2 A14B see the frames as more channels, and 2.1 through CLIP as well; of 2.2 5B the first frame is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from videogen.data.video_decode import read_picture
from videogen.models.wan_vae import WanVAE
from videogen.packing.noise import NoiseLevels, shared_level
from videogen.packing.packs import PackedText, PackedVideo, pack, pad_texts

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BaseImageProcessor, PreTrainedModel


class Images(NamedTuple):
    """The first image of a clip, and the last where one is given."""

    first: Image
    last: Image | None = None


def open_images(first: Path | None, last: Path | None) -> Images | None:
    """The images of a clip from their files, upright and in 8 bits; none where there is no first."""
    from PIL import Image

    if first is None:
        return None
    return Images(*(Image.fromarray(read_picture(path)[0]) for path in (first, last) if path is not None))


class Given(NamedTuple):
    """What the network is told of a pack beside its noise; without images, nothing."""

    beside: Tensor | None = None  # (n, c·pt·ph·pw) of more channels, behind the noised ones in each token
    known: Tensor | None = None  # (n, c·pt·ph·pw) clean tokens
    free: Tensor | None = None  # (n, 1) bool: those that are not known

    def tell(self, video: PackedVideo) -> PackedVideo:
        """The noised tokens as the network sees them."""
        tokens = self.impose(video.tokens)
        return video._replace(tokens=tokens if self.beside is None else torch.cat([tokens, self.beside], dim=1))

    def impose(self, tokens: Tensor) -> Tensor:
        """Known tokens in their places."""
        return tokens if self.known is None or self.free is None else torch.where(self.free, tokens, self.known)

    def levels(self, sigma: Tensor, num_tokens: int) -> NoiseLevels:
        """The noise level of every token: sigma (1,), and 0 where it is known."""
        if self.free is None:
            return shared_level(sigma, num_tokens)
        return NoiseLevels(torch.cat([sigma, torch.zeros_like(sigma)]), (~self.free[:, 0]).long())

    def twice(self) -> Given:
        """The same for the pack and itself again behind it."""
        return Given(*(None if part is None else torch.cat([part, part]) for part in self))


def to_pixels(image: Image, height: int, width: int) -> Tensor:
    """An image as one frame (3, 1, h, w) in [-1, 1], scaled to the size as diffusers does it."""
    import numpy as np
    from PIL.Image import Resampling

    resized = image.convert("RGB").resize((width, height), Resampling.LANCZOS)
    return rearrange(2 * (torch.from_numpy(np.array(resized)).float() / 255) - 1, "h w c -> c 1 h w")


@torch.no_grad()
def stand_beside(images: Images, vae: WanVAE, frames: int, height: int, width: int, device: torch.device) -> Tensor:
    """The 4 + c channels of a clip whose ends are seen: which frames those are, and the latent of them on grey.

    The mask has a latent frame's 4 frames as channels; the first frame stands for 4.
    """
    ends = [to_pixels(image, height, width) for image in images if image is not None]
    if frames < len(ends):
        raise ValueError(f"frames must be more than 1 to begin and end with an image, got {frames}")
    grey = torch.zeros(3, frames - len(ends), height, width)
    clip = torch.cat([ends[0], grey, *ends[1:]], dim=1)
    latent = vae.encode(clip[None].to(device, vae.dtype))[0].float()  # vae.device may not be where it computes
    seen = torch.zeros(frames)
    seen[0], seen[-1] = 1, 1 if len(ends) == 2 or frames == 1 else 0
    stretched = torch.cat([seen[:1].expand(vae.time_stride - 1), seen])
    mask = repeat(rearrange(stretched, "(t four) -> four t", four=vae.time_stride), "c t -> c t h w",
                  h=latent.shape[2], w=latent.shape[3])  # fmt: skip
    return torch.cat([mask.to(latent), latent])


@torch.no_grad()
def know_first(
    images: Images, vae: WanVAE, shape: Sequence[int], height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A latent (c, t, h, w) whose first frame is the image's, and (1, t, h, w) where it is free."""
    if images.last is not None:
        raise ValueError("this model begins with an image and cannot be told the last; leave the last image out")
    pixels = to_pixels(images.first, height, width)[None]
    known, free = torch.zeros(*shape), torch.ones(1, *shape[1:])
    known[:, :1] = vae.encode(pixels.to(device, vae.dtype))[0].float().cpu()
    free[:, 0] = 0
    return known, free


@torch.no_grad()
def view(
    images: Sequence[Images], processor: BaseImageProcessor, encoder: PreTrainedModel, device: torch.device
) -> PackedText:
    """CLIP's rows of each clip's images, before its last layer."""
    rows = []
    for clip in images:
        pixels = processor(images=[image for image in clip if image is not None], return_tensors="pt").pixel_values
        seen = encoder(pixel_values=pixels.to(device, encoder.dtype), output_hidden_states=True)
        rows.append(rearrange(seen.hidden_states[-2], "b m d -> (b m) d"))
    return pad_texts(rows, 0)


def give_beside(images: Sequence[Images], vae: WanVAE, video: PackedVideo, frames: int, h: int, w: int) -> Given:
    """What image-to-video by more channels is told of a pack."""
    device = video.tokens.device
    made = {id(clip): stand_beside(clip, vae, frames, h, w, device) for clip in images}  # once where clips share them
    return Given(beside=pack([made[id(clip)] for clip in images], video.patch).tokens.to(device))


def give_known(
    images: Sequence[Images], vae: WanVAE, video: PackedVideo, shape: Sequence[int], h: int, w: int
) -> Given:
    """What image-to-video by a known first frame is told of a pack."""
    made = [know_first(clip, vae, shape, h, w, video.tokens.device) for clip in images]
    known, free = (pack([part[i] for part in made], video.patch).tokens for i in range(2))
    return Given(known=known.to(video.tokens.device), free=free[:, :1].bool().to(video.tokens.device))
