"""Images as prompts, as Wan's image-to-video models take them.

    first image, last image or none, size  ->  ImageCondition (extra channels or clean tokens), CLIP's rows

Wan 2.1 and 2.2 A14B see the images as extra channels, and 2.1 through CLIP as well; for 2.2 5B the first latent frame
is clean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from videogen.data.pictures import WHITE, read_image_file
from videogen.packing.noise import NoiseLevels, shared_level
from videogen.packing.packs import Lengths, PackedText, PackedVideo, pack, pad_texts

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BaseImageProcessor, PreTrainedModel

    from videogen.models.wan_vae import WanVAE


class Images(NamedTuple):
    """The first image of a clip, and the last where one is given."""

    first: Image
    last: Image | None = None


def open_images(first: Path | None, last: Path | None, background: str = WHITE) -> Images | None:
    """Open the images of a clip, upright, in 8 bits, on a background; None where there is no first."""
    from PIL import Image

    if first is None:
        return None
    return Images(
        *(Image.fromarray(read_image_file(path, background)[0]) for path in (first, last) if path is not None)
    )


class ImageCondition(NamedTuple):
    """Image conditioning of a pack; all fields are None for text-to-video."""

    extra_channels: Tensor | None = (
        None  # (n, c·pt·ph·pw) mask and image latent, behind the noised values in each token
    )
    clean_tokens: Tensor | None = None  # (n, c·pt·ph·pw) tokens of the first frame (Wan 2.2 5B)
    is_free: Tensor | None = None  # (n, 1) bool: False where a token is conditioning

    def condition(self, video: PackedVideo) -> PackedVideo:
        """Add the conditioning to noised tokens, as the network expects them."""
        tokens = self.restore_known(video.tokens)
        extra = self.extra_channels
        return video._replace(tokens=tokens if extra is None else torch.cat([tokens, extra], dim=1))

    def restore_known(self, tokens: Tensor) -> Tensor:
        """Put the clean tokens in their places."""
        if self.clean_tokens is None or self.is_free is None:
            return tokens
        return torch.where(self.is_free, tokens, self.clean_tokens)

    def noise_levels(self, sigma: Tensor, num_tokens: int) -> NoiseLevels:
        """Assign every token its noise level: sigma (1,), and 0 where it is conditioning."""
        if self.is_free is None:
            return shared_level(sigma, num_tokens)
        return NoiseLevels(torch.cat([sigma, torch.zeros_like(sigma)]), (~self.is_free[:, 0]).long())

    def take(self, clips: Sequence[int], lengths: Lengths) -> ImageCondition:
        """Select the conditioning of clips of the pack, whose lengths are given, in any order and repetition."""
        parts = [None if x is None else [x.split(lengths)[clip] for clip in clips] for x in self]
        return ImageCondition(*(None if part is None else torch.cat(part) for part in parts))


NO_CONDITION = ImageCondition()


def to_pixels(image: Image, height: int, width: int) -> Tensor:
    """Convert an image to one frame (3, 1, h, w) in [-1, 1], resized as diffusers does it."""
    import numpy as np
    from PIL.Image import Resampling

    resized = image.convert("RGB").resize((width, height), Resampling.LANCZOS)
    return rearrange(2 * (torch.from_numpy(np.array(resized)).float() / 255) - 1, "h w c -> c 1 h w")


def extra_channels_condition(
    images: Sequence[Images], vae: WanVAE, video: PackedVideo, frames: int, height: int, width: int
) -> ImageCondition:
    """Encode the images of a pack's clips as extra channels (Wan 2.1, 2.2 A14B)."""
    device = video.tokens.device
    encoded = {id(clip): encode_ends(clip, vae, frames, height, width, device) for clip in images}  # once if shared
    return ImageCondition(extra_channels=pack([encoded[id(clip)] for clip in images], video.patch).tokens.to(device))


@torch.no_grad()
def encode_ends(images: Images, vae: WanVAE, frames: int, height: int, width: int, device: torch.device) -> Tensor:
    """Encode a clip of which only the given ends are seen, as (4 + c, t, h, w): which frames those are, and its latent.

    The other frames are grey. The mask has a latent frame's 4 frames as channels; the first frame stands for 4.
    """
    ends = [to_pixels(image, height, width) for image in images if image is not None]
    if frames < len(ends):
        raise ValueError(f"frames must be more than 1 to begin and end with an image, got {frames}")
    grey = torch.zeros(3, frames - len(ends), height, width)
    clip = torch.cat([ends[0], grey, *ends[1:]], dim=1)
    latent = vae.encode(clip[None].to(device, vae.dtype))[0].float()  # with offloading vae.device is another one
    is_seen = torch.zeros(frames)
    is_seen[0], is_seen[-1] = 1, 1 if len(ends) == 2 or frames == 1 else 0
    stretched = torch.cat([is_seen[:1].expand(vae.time_stride - 1), is_seen])
    mask = repeat(rearrange(stretched, "(t four) -> four t", four=vae.time_stride), "c t -> c t h w",
                  h=latent.shape[2], w=latent.shape[3])  # fmt: skip
    return torch.cat([mask.to(latent), latent])


def clean_frame_condition(
    images: Sequence[Images], vae: WanVAE, video: PackedVideo, shape: Sequence[int], height: int, width: int
) -> ImageCondition:
    """Encode the first images of a pack's clips as clean first latent frames (Wan 2.2 5B)."""
    device = video.tokens.device
    encoded = [encode_first_frame(clip, vae, shape, height, width, device) for clip in images]
    clean, is_free = (pack([latents[i] for latents in encoded], video.patch).tokens for i in range(2))
    return ImageCondition(clean_tokens=clean.to(device), is_free=is_free[:, :1].bool().to(device))


@torch.no_grad()
def encode_first_frame(
    images: Images, vae: WanVAE, shape: Sequence[int], height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Encode an image as the first frame of a latent (c, t, h, w), and mark with 1 what is free of it (1, t, h, w)."""
    if images.last is not None:
        raise ValueError("this model begins with an image and cannot be told the last; leave the last image out")
    pixels = to_pixels(images.first, height, width)[None]
    clean, is_free = torch.zeros(*shape), torch.ones(1, *shape[1:])
    clean[:, :1] = vae.encode(pixels.to(device, vae.dtype))[0].float().cpu()
    is_free[:, 0] = 0
    return clean, is_free


@torch.no_grad()
def embed_images(
    images: Sequence[Images], processor: BaseImageProcessor, encoder: PreTrainedModel, device: torch.device
) -> PackedText:
    """Embed each clip's images by CLIP: its rows before the last layer."""
    rows = []
    for clip in images:
        pixels = processor(images=[image for image in clip if image is not None], return_tensors="pt").pixel_values
        outputs = encoder(pixel_values=pixels.to(device, encoder.dtype), output_hidden_states=True)
        rows.append(rearrange(outputs.hidden_states[-2], "b m d -> (b m) d"))
    return pad_texts(rows, 0)
