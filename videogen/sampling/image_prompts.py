"""Images as the image-to-video models of Wan take them: as extra channels (2.1, 2.2 A14B), and through CLIP (2.1).

    first image, last image or none, size  ->  extra channels (n, c·pt·ph·pw), CLIP's rows

All other models take what is known as tokens of noise level 0 (known_tokens.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange, repeat
from torch import Tensor

from videogen.models.checkpoint_config import ENDS_ALONE
from videogen.packing.packs import PackedText, PackedVideo, pack, pad_texts
from videogen.sampling.known import Known, fit_box, fit_frames, to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BaseImageProcessor, PreTrainedModel

    from videogen.models.wan_vae import WanVAE


def check_ends(pieces: Sequence[Known]) -> list[Known]:
    """Return the first image and the last, if there is one; a ValueError for anything else that is known."""
    ends = sorted(pieces, key=lambda piece: piece.seconds)
    is_image = all(len(piece.frames) == 1 and piece.free is None and piece.weight == 1 for piece in ends)
    if not is_image or [piece.seconds for piece in ends] not in ([0.0], [0.0, math.inf]):
        raise ValueError(ENDS_ALONE)
    return ends


def extra_channels_of(
    clips: Sequence[Sequence[Known]], vae: WanVAE, video: PackedVideo, frames: int, height: int, width: int
) -> Tensor:
    """Encode the images of a pack's clips as extra channels (n, c·pt·ph·pw)."""
    device = video.tokens.device
    encoded = {id(clip): encode_ends(clip, vae, frames, height, width, device) for clip in clips}  # once if shared
    return pack([encoded[id(clip)] for clip in clips], video.patch).tokens.to(device)


@torch.no_grad()
def encode_ends(
    images: Sequence[Known], vae: WanVAE, frames: int, height: int, width: int, device: torch.device
) -> Tensor:
    """Encode a clip of which only the given ends are seen, as (4 + c, t, h, w): which frames those are, and its latent.

    The other frames are grey. The mask has a latent frame's 4 frames as channels; the first frame stands for 4.
    """
    ends = [to_pixels(fit_frames(image.frames, width, height, image.fit)) for image in check_ends(images)]
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


@torch.no_grad()
def embed_images(
    clips: Sequence[Sequence[Known]],
    size: tuple[int, int],
    processor: BaseImageProcessor,
    encoder: PreTrainedModel,
    device: torch.device,
) -> PackedText:
    """Embed each clip's images by CLIP, as much of them as the clip shows: its rows before the last layer."""
    rows = []
    for images in clips:
        pictures = [as_shown(image, size) for image in check_ends(images)]
        pixels = processor(images=pictures, return_tensors="pt").pixel_values
        outputs = encoder(pixel_values=pixels.to(device, encoder.dtype), output_hidden_states=True)
        rows.append(rearrange(outputs.hidden_states[-2], "b m d -> (b m) d"))
    return pad_texts(rows, 0)


def as_shown(image: Known, size: tuple[int, int]) -> Image:
    """Return an image in its own pixels without what a clip of some size crops away."""
    from PIL import Image

    picture = Image.fromarray(image.frames[0].cpu().numpy())
    if image.fit != "crop":
        return picture
    box = fit_box(picture.width, picture.height, size)
    return picture.crop(tuple(map(round, box)))  # type: ignore[arg-type]
