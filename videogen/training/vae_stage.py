"""The VAE's training: crops around what is busy, and whole clips at the end.

TrainConfig  ->  VaeStage, with a model, batches, a loss, measures and samples
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from videogen.config.sizes import TIME_STRIDE
from videogen.config.train import TrainConfig
from videogen.data.files import whole_folder
from videogen.data.folder import VideoFolder, epoch_order
from videogen.data.prefetch import ahead, count_workers
from videogen.data.video_io import write_video
from videogen.models.streaming import to_uint8
from videogen.models.vae import VideoVAE, to_patches
from videogen.packing.noise import step_generator
from videogen.toybox.dataset import DrawnClips
from videogen.training.pack_plan import open_clips
from videogen.training.run_checkpoints import saved_steps
from videogen.training.vae_loss import busyness, psnr, vae_loss


class Crops(NamedTuple):
    """A step of the VAE: clips (3, t, h, w) in [-1, 1], of several shapes."""

    clips: list[Tensor]


class Cut(NamedTuple):
    """The crops of a step, or whole clips, and the clips that cannot be read, with the reason."""

    clips: list[np.ndarray]
    failed: list[tuple[int, str]]


class Cutter:
    """What reading and cropping takes: light enough to go to another process."""

    def __init__(self, config: TrainConfig, folder: VideoFolder | DrawnClips, train: list[int]) -> None:
        self.config, self.folder, self.train = config, folder, train
        self.orders: dict[int, list[int]] = {}
        self.whole_from = round(config.run.steps * (1 - config.vae.whole_share)) if config.vae.crop else 0

    def cut(self, step: int) -> Cut:
        """Crops for most of the run; whole clips for the last share of it."""
        vae, generator = self.config.vae, step_generator(self.config.run.seed, step)
        made, failed = list[np.ndarray](), list[tuple[int, str]]()
        for place, (epoch, index) in enumerate(self.clips_from(step)):
            if place >= vae.batch_clips and (made or place >= vae.batch_clips + len(self.train)):
                break  # the next ones stand in where none of a step can be read
            try:
                video = self.folder.read(index, epoch).video
            except (ValueError, OSError) as error:
                failed.append((index, str(error)))
                continue
            if step >= self.whole_from:
                made.append(video.contiguous().numpy())
                continue
            busy = busyness(rearrange(video, "c t h w -> 1 c t h w"))[0, 0]
            crops = busy_crops(video, busy, side=vae.crop, frames=vae.crop_frames, num=vae.crops, generator=generator)
            made += [crop.contiguous().numpy() for crop in crops]
        return Cut(made, failed)

    def clips_from(self, step: int) -> Iterator[tuple[int, int]]:
        """Epoch and index of the clips from a step on: batch_clips a step of the endless run of epochs."""
        for place in count(step * self.config.vae.batch_clips):
            epoch, i = divmod(place, len(self.train))
            yield epoch, self.order(epoch)[i]

    def order(self, epoch: int) -> list[int]:
        """The order of an epoch, drawn once."""
        if epoch not in self.orders:
            self.orders = {epoch: epoch_order(self.train, self.config.run.seed, epoch)}
        return self.orders[epoch]


class VaeStage:
    """Reconstruct crops around what is busy, and whole clips at the end."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.folder = open_clips(config.data, config.dit.patch_size, config.run.seed)  # sizes as the DiT's
        self.train, self.val = self.folder.split()
        self.cutter = Cutter(config, self.folder, self.train)
        torch.manual_seed(config.run.seed)  # the first weights; everything later draws from its own generators
        self.model = VideoVAE(config.vae.channels, config.vae.width, linear_encoder=config.vae.linear_encoder)
        if not saved_steps(config.run.dir):  # a resumed run has its weights already
            self.model.init_weights(self.sample_patches())
        # 768 correlated inputs: a learning rate that suits the convolutions throws the linear transforms off at once.
        self.model.encoder.linear.requires_grad_(False)
        self.model.decoder.linear.requires_grad_(False)

    def place(self, device: torch.device) -> None:
        """The VAE works alone."""

    def sample_patches(self, num_clips: int = 400, most: int = 20_000) -> Tensor:
        """Patches (n, 768) of some training clips, each first frame standing for four, as the model sees it."""
        generator = step_generator(self.config.run.seed, -2)
        found, lots = torch.empty(0, 768), torch.empty(0)
        for clip in self.videos(epoch_order(self.train, self.config.run.seed, 0)[:num_clips]):
            video = rearrange(clip, "c t h w -> 1 t c h w")
            padded = torch.cat([video[:, :1].expand(-1, 3, -1, -1, -1), video], dim=1)
            patches = rearrange(to_patches(padded), "1 t p h w -> (t h w) p")
            found, lots = torch.cat([found, patches]), torch.cat([lots, torch.rand(len(patches), generator=generator)])
            if len(found) > 2 * most:  # as many as are asked for, of the least lots: every patch has the same chance
                found, lots = (part[lots.argsort()[:most]] for part in (found, lots))
        return found[lots.argsort()[:most]]

    def batches(self, start: int, every: int = 1) -> Iterator[Crops]:
        """The crops of the steps start, start + every, ...; a clip that fails to decode is left out and named."""
        num_workers = count_workers(self.config.data.workers, next(self.model.parameters()).device)
        for made in ahead(self.cutter.cut, count(start, every), num_workers):
            for index, reason in made.failed:
                self.folder.report(index, reason)
            if not made.clips:
                raise ValueError(f"no clip of {self.config.data.folder} can be read any more")
            yield Crops(list(map(torch.from_numpy, made.clips)))

    def videos(self, indices: list[int]) -> Iterator[Tensor]:
        """Some clips (3, t, h, w); one that fails to decode is left out and named."""
        for index in indices:
            try:
                yield self.folder.read(index).video
            except (ValueError, OSError) as error:
                self.folder.report(index, str(error))

    def loss(self, model: nn.Module, batch: Crops, step: int) -> dict[str, Tensor]:
        """The mean of the losses of equally shaped clips, weighted by their pixels."""
        generator = step_generator(self.config.run.seed + 1, step)
        total = sum(clip.numel() for clip in batch.clips)
        sums: dict[str, Tensor] = {"tokens": torch.tensor(total / 768 / 4)}
        for shape in sorted({clip.shape for clip in batch.clips}):
            group = torch.stack([clip for clip in batch.clips if clip.shape == shape])
            terms = vae_loss(self.model, group.to(self.model.device), self.config.vae, generator)
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros(())) + term * (group.numel() / total)
        return sums

    def losses(self, model: nn.Module, batch: Crops, step: int, most_tokens: int) -> Iterator[dict[str, Tensor]]:
        """The VAE's crops are a choice of their own: fewer of them take less memory."""
        vae = self.config.vae
        given = f"vae.batch_clips = {vae.batch_clips} and vae.crops = {vae.crops}"
        raise ValueError(f"out of memory with {given}; the last checkpoint is whole: lower one of them and go on")

    def longest(self, batch: Crops) -> int:
        """Crops are computed together or not at all, as losses says."""
        return 0

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR in dB, whole clips and their busy pixels alone."""
        whole, busy = [], []
        for clip in self.videos(self.val[:32]):
            video = rearrange(clip, "c t h w -> 1 c t h w").to(self.model.device)
            rebuilt = self.model.reconstruct(self.model.posterior(video).mean)
            mask = busyness(video).expand_as(video) > 0.25
            whole.append(psnr(rebuilt, video))
            if mask.any():
                busy.append(psnr(rebuilt[mask], video[mask]))
        means = {"psnr": whole, "psnr_busy": busy}
        return {name: sum(values) / len(values) for name, values in means.items() if values}

    @torch.no_grad()
    def preview(self, step: int, out_dir: Path) -> None:
        """Held-out clips above their reconstructions: an MP4 each and a sheet of middle frames."""
        sheet = []
        for number, clip in enumerate(self.videos((self.val or self.train)[:8])):
            video = clip.to(self.model.device)
            rebuilt = self.model.reconstruct(self.model.posterior(video[None]).mean)[0]
            both = torch.cat([video, rebuilt], dim=2)
            path = out_dir / f"step_{step:06d}" / f"{number}.mp4"
            write_video(path, to_uint8(both), fps=self.config.data.fps, overwrite=True)
            sheet.append(both[:, both.shape[1] // 2])
        tall, wide = (max(frame.shape[side] for frame in sheet) for side in (1, 2))
        padded = [nn.functional.pad(f, (0, wide - f.shape[2], 0, tall - f.shape[1]), value=-1.0) for f in sheet]
        row = rearrange(torch.stack(padded), "n c h w -> c 1 h (n w)")
        write_video(out_dir / f"step_{step:06d}.png", to_uint8(row), fps=1, overwrite=True)

    @torch.no_grad()
    def export(self, out_dir: Path) -> None:
        """Measure the latents' mean and their common deviation on training clips and save the VAE with them."""
        latents = []
        for clip in self.videos(epoch_order(self.train, self.config.run.seed, 0)[:200]):
            video = clip[None].to(self.model.device)
            latents.append(rearrange(self.model.posterior(video).mean, "1 c t h w -> c (t h w)"))
        values = torch.cat(latents, dim=1)
        self.model.register_to_config(
            latents_mean=[round(v, 6) for v in values.mean(1).tolist()],
            latents_std=[round(values.var(1).mean().sqrt().item(), 6)]
            * len(values),  # channels stay as unlike as they are
        )
        with whole_folder(out_dir / "vae") as part:
            self.model.save_pretrained(part)


def busy_crops(
    video: Tensor, busy: Tensor, *, side: int, frames: int, num: int, generator: Generator
) -> Iterator[Tensor]:
    """Cut num crops (3, frames, side, side) of a clip, where it is busy more often than where it is calm.

    busy (t, h, w) is how much happens at each pixel; a crop's centre is drawn in proportion to it.
    """
    _, t, h, w = video.shape
    frames, rows, columns = min(frames, t), min(side, h), min(side, w)
    frames = 1 + (frames - 1) // TIME_STRIDE * TIME_STRIDE
    weight = busy.mean(0).flatten() + 0.02
    for _ in range(num):
        centre = int(torch.multinomial(weight, 1, generator=generator))
        top = min(max(centre // w - rows // 2, 0), h - rows)
        left = min(max(centre % w - columns // 2, 0), w - columns)
        first = int(torch.randint(0, t - frames + 1, (), generator=generator))
        yield video[:, first : first + frames, top : top + rows, left : left + columns]
