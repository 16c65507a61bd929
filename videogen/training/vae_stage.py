"""Train the VAE on crops around busy pixels, and on whole clips in the last share of the run.

TrainConfig  ->  VaeStage: model, batches, loss, validation, reconstructions, checkpoint
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from videogen.config.sizes import TIME_STRIDE
from videogen.config.train import TrainConfig
from videogen.data.files import atomic_folder
from videogen.data.folder import VideoFolder, epoch_order
from videogen.data.manifest import write_manifest
from videogen.data.prefetch import count_workers, prefetch
from videogen.data.video_io import write_video
from videogen.models.streaming import to_uint8
from videogen.models.vae import VideoVAE
from videogen.models.vae_network import frames_to_patches
from videogen.packing.noise import step_generator
from videogen.toybox.dataset import ToyboxClips
from videogen.training.model_card import write_card
from videogen.training.pack_plan import open_clips, split_folder
from videogen.training.run_checkpoints import Stretch, count_packs, count_steps, saved_steps
from videogen.training.vae_loss import VaeObjective, busyness, psnr


class LoadedCrops(NamedTuple):
    """The crops or whole clips of a step as a worker hands them over, and the clips that it could not read."""

    crops: list[np.ndarray]
    failures: list[tuple[int, str]]  # index of a clip, and the reason


class CropRequest(NamedTuple):
    """The crops of a batch, before they are read."""

    number: int  # of the batch: it decides its clips and seeds its crops
    whole: bool = False  # True if the clips are not cropped


class CropLoader:
    """Read the clips of a batch and crop them; light enough to be sent to a worker process."""

    def __init__(self, config: TrainConfig, folder: VideoFolder | ToyboxClips, train_indices: list[int]) -> None:
        self.config, self.folder, self.train_indices = config, folder, train_indices
        self.orders: dict[int, list[int]] = {}

    def load(self, request: CropRequest) -> LoadedCrops:
        """Load the crops of a batch, or its whole clips."""
        vae, generator = self.config.vae, step_generator(self.config.run.seed, request.number)
        crops, failures = list[np.ndarray](), list[tuple[int, str]]()
        for number, (epoch, index) in enumerate(self.clips_from(request.number)):
            if number >= vae.batch_clips and (crops or number >= vae.batch_clips + len(self.train_indices)):
                break  # the clips after those of the batch are read only where none of the batch can be
            try:
                video = self.folder.read(index, epoch).video
            except (ValueError, OSError) as error:
                failures.append((index, str(error)))
                continue
            samples = [video]
            if not request.whole:
                busy = busyness(rearrange(video, "c t h w -> 1 c t h w"))[0, 0]
                size = {"side": vae.crop, "frames": vae.crop_frames}
                samples = sample_crops(video, busy, **size, num=vae.crops, generator=generator)
            crops += [crop.contiguous().numpy() for crop in samples]
        return LoadedCrops(crops, failures)

    def clips_from(self, batch_number: int) -> Iterator[tuple[int, int]]:
        """Yield epoch and index of the clips from a batch on: batch_clips a batch, epoch after epoch without end."""
        for position in count(batch_number * self.config.vae.batch_clips):
            epoch, i = divmod(position, len(self.train_indices))
            if epoch not in self.orders:  # only the current epoch's order is kept
                self.orders = {epoch: epoch_order(self.train_indices, self.config.run.seed, epoch)}
            yield epoch, self.orders[epoch][i]


class VaeStage:
    """The VAE's training: reconstruction of crops around busy pixels, and of whole clips at the end."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.folder = open_clips(config.data, config.dit.patch_size, config.run.seed)  # sized as for the DiT
        self.clip_split = split_folder(self.folder, config)
        self.train_indices, self.val_indices = self.clip_split.train, self.clip_split.val
        self.cache_bytes = 0
        self.crop_loader = CropLoader(config, self.folder, self.train_indices)
        torch.manual_seed(config.run.seed)  # for the first weights; everything later samples from its own generators
        self.model = VideoVAE(config.vae.channels, config.vae.width, linear_encoder=config.vae.linear_encoder)
        if not saved_steps(config.run.dir):  # a resumed run loads its weights
            self.model.init_weights(self.sample_patches())
        # They have 768 correlated inputs: at a learning rate that suits the convolutions they diverge at once.
        self.model.encoder.linear.requires_grad_(False)
        self.model.decoder.linear.requires_grad_(False)
        self.objective = VaeObjective(self.model, config.vae)

    def to_device(self, device: torch.device) -> None:
        """Do nothing: no frozen model is used beside the VAE."""

    def sample_patches(self, num_clips: int = 400, num_patches: int = 20_000) -> Tensor:
        """Sample patches (n, 768) of training clips, whose first frames are repeated four times as in the model."""
        generator = step_generator(self.config.run.seed, -2)
        patches, keys = torch.empty(0, 768), torch.empty(0)
        for clip in self.load_videos(epoch_order(self.train_indices, self.config.run.seed, 0)[:num_clips]):
            rows = clip_patches(clip)
            patches, keys = torch.cat([patches, rows]), torch.cat([keys, torch.rand(len(rows), generator=generator)])
            if len(patches) > 2 * num_patches:  # those with the least keys stay: every patch has the same chance
                patches, keys = (values[keys.argsort()[:num_patches]] for values in (patches, keys))
        return patches[keys.argsort()[:num_patches]]

    def batches(self, start: int, every: int = 1, earlier: Sequence[Stretch] = ()) -> Iterator[list[Tensor]]:
        """Yield the batches start, start + every, ... after earlier ones; report and skip clips that fail to decode."""
        num_workers = count_workers(self.config.data.workers, next(self.model.parameters()).device)
        requests = self.crop_requests(start, every, earlier)
        for loaded in prefetch(self.crop_loader.load, requests, num_workers):
            for index, reason in loaded.failures:
                self.folder.report(index, reason)
            if not loaded.crops:
                raise ValueError(f"no clip of {self.config.data.folder} can be read any more")
            yield list(map(torch.from_numpy, loaded.crops))

    def crop_requests(self, start: int, every: int, earlier: Sequence[Stretch] = ()) -> Iterator[CropRequest]:
        """Yield requests start, start + every, ... after earlier ones; the last share of the steps has whole clips."""
        steps, vae = self.config.run.steps, self.config.vae
        whole_from = round(steps * (1 - vae.whole_share)) if vae.crop else 0
        accumulate = self.config.optim.accumulate
        first_step = count_steps(earlier) + start // (every * accumulate)
        for place, number in enumerate(count(count_packs(earlier) + start, every)):  # endless
            yield CropRequest(number, first_step + place // accumulate >= whole_from)

    def load_videos(self, indices: list[int]) -> Iterator[Tensor]:
        """Yield clips (3, t, h, w); report and skip those that fail to decode."""
        for index in indices:
            try:
                yield self.folder.read(index).video
            except (ValueError, OSError) as error:
                self.folder.report(index, str(error))

    def split(self, batch: list[Tensor], max_tokens: int) -> Iterator[list[Tensor]]:
        """Yield the batch as it is; raise ValueError after out-of-memory: the recipe decides how many crops it has."""
        vae = self.config.vae
        if max_tokens < self.config.data.token_budget:  # the trainer lowers it when memory runs out
            settings = f"vae.batch_clips = {vae.batch_clips} and vae.crops = {vae.crops}"
            raise ValueError(
                f"out of memory with {settings}; the last checkpoint is whole: lower one of them and "
                "resume with --accept-changes"
            )
        yield batch

    def longest_clip(self, batch: list[Tensor]) -> int:
        """Return 0: `split` does not divide a batch of crops."""
        return 0

    def clip_names(self, batch: list[Tensor], batch_number: int) -> list[str]:
        """Name the clips of a batch, of which some may have been cropped more than once."""
        names, clips = self.folder.names(), self.crop_loader.clips_from(batch_number)
        return [names[index] for _, index in islice(clips, self.config.vae.batch_clips)]

    def loss(self, model: nn.Module, micro_batch: list[Tensor], batch_number: int) -> dict[str, Tensor]:
        """Return the VAE's loss terms, with the batch's pixels as its weight."""
        generator = step_generator(self.config.run.seed + 1, batch_number)
        num_pixels = float(sum(clip.numel() for clip in micro_batch))
        weight = torch.tensor(num_pixels, device=self.model.device)
        return model(micro_batch, generator) | {"weight": weight, "tokens": weight / 768 / 4}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the PSNR in dB of held-out clips, and that of their busy pixels."""
        whole, busy = [], []
        for clip in self.load_videos(self.val_indices[:32]):
            video = rearrange(clip, "c t h w -> 1 c t h w").to(self.model.device)
            rebuilt = self.model.reconstruct(self.model.posterior(video).mean)
            mask = busyness(video).expand_as(video) > 0.25
            whole.append(psnr(rebuilt, video))
            if mask.any():
                busy.append(psnr(rebuilt[mask], video[mask]))
        metrics = {"psnr": whole, "psnr_busy": busy}
        return {name: sum(values) / len(values) for name, values in metrics.items() if values}

    @torch.no_grad()
    def preview(self, step: int, out_dir: Path) -> None:
        """Write held-out clips above their reconstructions: an MP4 each, and a sheet of middle frames."""
        frames = []
        for number, clip in enumerate(self.load_videos((self.val_indices or self.train_indices)[:8])):
            video = clip.to(self.model.device)
            rebuilt = self.model.reconstruct(self.model.posterior(video[None]).mean)[0]
            both = torch.cat([video, rebuilt], dim=2)
            path = out_dir / f"step_{step:06d}" / f"{number}.mp4"
            write_video(path, to_uint8(both), fps=self.config.data.fps, overwrite=True)
            frames.append(both[:, both.shape[1] // 2])
        tall, wide = (max(frame.shape[side] for frame in frames) for side in (1, 2))
        padded = [nn.functional.pad(f, (0, wide - f.shape[2], 0, tall - f.shape[1]), value=-1.0) for f in frames]
        sheet = rearrange(torch.stack(padded), "n c h w -> c 1 h (n w)")
        write_video(out_dir / f"step_{step:06d}.png", to_uint8(sheet), fps=1, overwrite=True)

    @torch.no_grad()
    def export(self, out_dir: Path) -> None:
        """Measure the latents' means on training clips, and one deviation for all channels; save the VAE with them."""
        latents = []
        for clip in self.load_videos(epoch_order(self.train_indices, self.config.run.seed, 0)[:200]):
            video = clip[None].to(self.model.device)
            latents.append(rearrange(self.model.posterior(video).mean, "1 c t h w -> c (t h w)"))
        values = torch.cat(latents, dim=1)
        self.model.register_to_config(
            latents_mean=[round(v, 6) for v in values.mean(1).tolist()],
            # One deviation for all channels keeps the ratios of their variances.
            latents_std=[round(values.var(1).mean().sqrt().item(), 6)] * len(values),
        )
        with atomic_folder(out_dir / "vae") as part:
            self.model.save_pretrained(part)
            write_manifest(part)
        write_card(out_dir, self.config, num_clips=len(self.train_indices))


def clip_patches(clip: Tensor) -> Tensor:
    """Cut a clip (3, t, h, w) into the patches (n, 768) of its latent cells, its first frame repeated as in the VAE."""
    video = rearrange(clip, "c t h w -> 1 t c h w")
    padded = torch.cat([video[:, :1].expand(-1, TIME_STRIDE - 1, -1, -1, -1), video], dim=1)
    return rearrange(frames_to_patches(padded), "1 t p h w -> (t h w) p")


def sample_crops(
    video: Tensor, busy: Tensor, *, side: int, frames: int, num: int, generator: Generator
) -> Iterator[Tensor]:
    """Sample num crops (3, frames, side, side) of a clip, with centres in proportion to busy (t, h, w) plus 0.02."""
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
