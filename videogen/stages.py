"""The two things that are trained here: the VAE on pixels, then the DiT on its latents.

    TrainConfig  ->  VaeStage | DitStage, each with a model, batches, a loss, measures and samples

A stage's batches are a pure function of (config, step): nothing about the order of the data has to be saved.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from videogen.config import TrainConfig, parse_patch
from videogen.data import LatentCache, busy_crops, epoch_order
from videogen.dit import VideoDiT
from videogen.drawn import DrawnClips
from videogen.flow import FlowTask, draw_levels, draw_task, drop_captions, flow_error, step_generator
from videogen.known import check_mixture
from videogen.lora import adapt, save_lora
from videogen.packing import Patch, check_budget, pack, plan_packs
from videogen.parts import check_fit, encoder_id, frozen_parts, load_part, located
from videogen.patches import patch_name
from videogen.pipeline import VideoPipeline, quiet_libraries, to_uint8
from videogen.plain import to_mapping
from videogen.plan import dit_options, epoch_packs, num_tokens, open_clips, packed_lengths
from videogen.sampling import check_sampler
from videogen.storage import whole_folder
from videogen.text import PackedText, TextCache, num_rows_of, pad_texts
from videogen.toybox.facts import FACTS, Truth, say
from videogen.training import saved_steps
from videogen.vae import SPACE_STRIDE, VideoVAE, to_patches
from videogen.vae_loss import busyness, psnr, vae_loss
from videogen.video_io import write_video

GOLDEN = (math.sqrt(5) - 1) / 2


class Crops(NamedTuple):
    """A step of the VAE: clips (3, t, h, w) in [-1, 1], of several shapes."""

    clips: list[Tensor]


class VaeStage:
    """Reconstruct crops around what is busy, and whole clips at the end."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.folder = open_clips(config.data, config.dit.patch_size, config.run.seed)  # sizes as the DiT's
        self.train, self.val = self.folder.split()
        self.orders: dict[int, list[int]] = {}
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
        patches = []
        for clip in self.videos(epoch_order(self.train, self.config.run.seed, 0)[:num_clips]):
            video = rearrange(clip, "c t h w -> 1 t c h w")
            padded = torch.cat([video[:, :1].expand(-1, 3, -1, -1, -1), video], dim=1)
            patches.append(rearrange(to_patches(padded), "1 t p h w -> (t h w) p"))
        found = torch.cat(patches)
        keep = torch.randperm(len(found), generator=step_generator(self.config.run.seed, -2))[:most]
        return found[keep]

    def batches(self, start: int, every: int = 1) -> Iterator[Crops]:
        """Crops for most of the run; whole clips for the last share of it."""
        vae, run = self.config.vae, self.config.run
        whole_from = round(run.steps * (1 - vae.whole_share)) if vae.crop else 0
        for step in count(start, every):
            generator = step_generator(run.seed, step)
            whole = step >= whole_from
            clips: list[Tensor] = []
            for video in self.step_videos(step):
                if whole:
                    clips.append(video)
                    continue
                busy = busyness(rearrange(video, "c t h w -> 1 c t h w"))[0, 0]
                clips += busy_crops(
                    video, busy, side=vae.crop, frames=vae.crop_frames, num=vae.crops, generator=generator
                )
            if not clips:
                raise ValueError(f"no clip of a step can be read; see what is said of {self.config.data.folder} above")
            yield Crops(clips)

    def step_videos(self, step: int) -> Iterator[Tensor]:
        """The clips of a step: the next batch_clips of the endless run of epochs."""
        for place in range(step * self.config.vae.batch_clips, (step + 1) * self.config.vae.batch_clips):
            epoch, i = divmod(place, len(self.train))
            yield from self.videos([self.order(epoch)[i]], epoch)

    def order(self, epoch: int) -> list[int]:
        """The order of an epoch, drawn once."""
        if epoch not in self.orders:
            self.orders = {epoch: epoch_order(self.train, self.config.run.seed, epoch)}
        return self.orders[epoch]

    def videos(self, indices: list[int], epoch: int = 0) -> Iterator[Tensor]:
        """Some clips (3, t, h, w); one that fails to decode is left out and named."""
        for index in indices:
            try:
                yield self.folder.read(index, epoch).video
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


class Pack(NamedTuple):
    """A step of the DiT: latents (c, t, h, w) of any sizes, captions, patch size, and what is where (k, t, h, w)."""

    latents: list[Tensor]
    captions: list[str]
    patch: Patch
    facts: list[Tensor]


class DitStage:
    """Denoise packs of latents, every clip at its own size."""

    def __init__(self, config: TrainConfig) -> None:
        config = replace(config, dit=located(config.dit))
        self.config, self.seed = config, config.run.seed
        check_mixture(config.dit.known)
        quiet_libraries()
        self.vae, self.tokenizer, self.text_encoder, self.scheduler = frozen_parts(config.dit)
        self.model = self._new_model()
        self.folder = open_clips(config.data, self.model.base_patch, self.seed)
        for patch in self.model.patches:
            check_budget(packed_lengths(self.folder.entries, patch, self.model.base_patch), config.data.token_budget)
        if config.dit.facts and not isinstance(self.folder, DrawnClips):
            raise ValueError("dit.facts needs clips whose truth is known; set data.toybox, or leave it at 0")
        self.train, self.val = self.folder.split()
        truth = self.folder.truth if isinstance(self.folder, DrawnClips) and config.dit.facts else None
        cache_dir = config.run.dir / "latents"
        self.cache = LatentCache(self.folder, encoder_id(self.vae), self._encode, cache_dir, truth)
        self.texts = TextCache(self.tokenizer, self.text_encoder, config.run.dir / "texts")
        if self.model.data_variance is not None and config.dit.init is None and not saved_steps(config.run.dir):
            self.model.data_variance.data = self._data_variance()
        if config.dit.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        check_sampler(config.sample.sampler)  # not at the first preview, an hour later
        self.pipeline().latent_shape(config.sample)

    def place(self, device: torch.device) -> None:
        """The frozen VAE and text encoder go where the DiT is."""
        self.vae.to(device)  # type: ignore[call-overload]
        self.text_encoder.to(device)  # type: ignore[arg-type]

    def _new_model(self) -> VideoDiT:
        dit = self.config.dit
        if dit.init is not None:
            model = load_part(VideoDiT, dit.init, "transformer")
            check_fit(model, self.vae, dit)
            model = model.extended(list(map(parse_patch, dit.patches)), nearby=dit.nearby)
            return adapt(model, dit, self.seed) if dit.lora_rank else model
        channels = self.vae.config["latent_channels"]
        torch.manual_seed(self.seed)  # the first weights; everything later draws from its own generators
        options = dit_options(dit, channels=channels, text_dim=self.text_encoder.config.hidden_size)
        model = VideoDiT(**options)  # type: ignore[arg-type]
        model.init_weights()
        return model

    @torch.no_grad()
    def _encode(self, video: Tensor) -> Tensor:
        return self.vae.encode(video[None].to(self.vae.device))[0].cpu()

    def _data_variance(self, num_clips: int = 200) -> Tensor:
        """The mean square of each latent channel (c,), over some training clips."""
        order = epoch_order(self.train, self.seed, 0)[:num_clips]
        values = torch.cat([latent.flatten(1) for latent in self.read(order, 0).latents], dim=1)
        return values.square().mean(1).clamp(min=1e-6)

    def patch_of(self, step: int) -> Patch:
        """The patch size of a step: each has its share of the steps, spread evenly (multiples of the golden ratio)."""
        place = (step + 0.5) * GOLDEN % 1
        for name, share in self.config.dit.patches.items():
            if place < share:
                return parse_patch(name)
            place -= share
        return self.model.base_patch

    def packs(self, patch: Patch) -> Iterator[tuple[int, list[int]]]:
        """All packs of a patch size, epoch by epoch: in each, every clip that it divides stands exactly once."""
        lengths = packed_lengths(self.folder.entries, patch, self.model.base_patch)
        if not any(lengths[index] for index in self.train):
            raise ValueError(f"no clip's size is a multiple of the patch {patch} of {SPACE_STRIDE}-pixel cells")
        for epoch in count():
            for indices in epoch_packs(lengths, self.train, self.config.data, self.seed, epoch):
                yield epoch, indices

    def batches(self, start: int, every: int = 1) -> Iterator[Pack]:
        """The packs of the steps start, start + every, ...: each patch size goes through the clips by itself."""
        earlier = Counter(map(self.patch_of, range(start)))
        streams = {patch: islice(self.packs(patch), earlier[patch], None) for patch in self.model.patches}
        for step in count(start):
            patch = self.patch_of(step)
            epoch, indices = next(streams[patch])
            if (step - start) % every == 0:
                yield self.read(indices, epoch, facts=self.facts_weight(step) > 0)._replace(patch=patch)

    def read(self, indices: list[int], epoch: int, *, facts: bool = False) -> Pack:
        """Latents and captions of some clips; one that fails is named and left out; if all do, another stands in."""
        read: list[tuple[dict[str, Tensor], str]] = []
        for place, index in enumerate([*indices, *self.train]):
            if read and place >= len(indices):
                break
            try:
                read.append((self.cache.tensors(index, epoch), self.folder.caption(index)))
            except (ValueError, OSError) as error:
                self.folder.report(index, str(error))
        if not read:
            raise ValueError(f"no clip of {self.config.data.folder} can be read any more")
        latents, captions = [found.pop("latent").float() for found, _ in read], [caption for _, caption in read]
        asked = read if facts else []
        told = [torch.from_numpy(say(Truth(**{k: v.numpy() for k, v in found.items()}))) for found, _ in asked]
        return Pack(latents, captions, self.model.base_patch, told)

    def facts_weight(self, step: int) -> float:
        """What it counts, at a step, that the network says what its tokens show."""
        dit = self.config.dit
        return dit.facts if step < dit.facts_until * self.config.run.steps else 0.0

    def embed(self, captions: list[str]) -> PackedText:
        """The captions' token embeddings, side by side."""
        device = self.model.device
        rows = [row.to(device) for row in self.texts.read(captions)]
        return pad_texts(rows, num_rows_of(self.text_encoder))

    def _task(self, batch: Pack, captions: list[str], generator: torch.Generator) -> FlowTask:
        dit = self.config.dit
        device = self.model.device
        clean = pack([latent.to(device) for latent in batch.latents], batch.patch)
        name = patch_name(batch.patch)
        in_proportion = dit.base_tokens * math.prod(self.model.base_patch) / math.prod(batch.patch)
        base_tokens = dit.patch_tokens.get(name, in_proportion)
        levels = draw_levels(
            clean,
            dit.known,
            base_tokens=base_tokens,
            uniform=dit.uniform_sigmas,
            generator=generator,
            between=dit.patch_levels.get(name, (0.0, 1.0)),
        )
        task = draw_task(clean, self.embed(captions), levels, base_tokens=base_tokens, generator=generator)
        if not batch.facts:
            return task
        cells = rearrange(pack(batch.facts, batch.patch).tokens, "n (k cells) -> n k cells", k=len(FACTS))
        return task._replace(facts=cells.mean(-1).to(clean.tokens.device))

    def losses(self, model: nn.Module, batch: Pack, step: int, most_tokens: int) -> Iterator[dict[str, Tensor]]:
        """The flow loss of a pack, some captions dropped, in parts of at most so many tokens that add up to it."""
        generator = step_generator(self.seed, step)
        task = self._task(batch, drop_captions(batch.captions, self.config.dit.caption_dropout, generator), generator)
        facts = self.facts_weight(step)
        for part in task.parts(most_tokens):
            tokens = torch.tensor(float(len(part.weight)))
            shown = {"tokens": tokens, "fill": tokens / self.config.data.token_budget}
            clips = torch.tensor(float(len(part.clean.grids)))
            yield {"loss": flow_error(model, part, facts), "weight": part.weight.sum(), "clips": clips} | shown

    def loss(self, model: nn.Module, batch: Pack, step: int) -> dict[str, Tensor]:
        """The flow loss of a pack as a whole."""
        return next(self.losses(model, batch, step, sum(latent.numel() for latent in batch.latents)))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The flow loss of the held-out clips, at the same noise and noise levels every time."""
        found: dict[str, float] = {}
        for patch in self.model.patches:
            lengths = [num_tokens(entry, patch) for entry in self.folder.entries]
            usable = [index for index in self.val if lengths[index]]
            losses = []
            for number, indices in enumerate(plan_packs(lengths, budget=self.config.data.token_budget, order=usable)):
                batch = self.read(indices, epoch=0)._replace(patch=patch)
                task = self._task(batch, batch.captions, step_generator(-1, number))
                losses.append(flow_error(self.model, task).item())
            if losses:
                name = "loss" if patch == self.model.base_patch else f"loss_{patch_name(patch)}"
                found[name] = sum(losses) / len(losses)
        return found

    def pipeline(self) -> VideoPipeline:
        """The model as it is now, ready to sample."""
        parts = (self.model, self.vae, self.text_encoder, self.tokenizer, self.scheduler)
        return VideoPipeline(*parts, defaults=to_mapping(self.config.sample))

    @torch.no_grad()
    def preview(self, step: int, out_dir: Path) -> None:
        """The sample prompts with seeds 0, 1, 2, ...: an MP4 each and a sheet, a row a prompt, five frames across."""
        prompts = list(self.config.run.sample_prompts)
        if not prompts:
            return
        clips = self.pipeline()(prompts, self.config.sample)
        for number, clip in enumerate(clips):
            write_video(
                out_dir / f"step_{step:06d}" / f"{number}.mp4",
                clip,
                fps=self.config.sample.fps,
                settings={"prompt": prompts[number], "seed": number, "step": step},
                overwrite=True,
            )
        columns = torch.linspace(0, len(clips[0]) - 1, 5).long()
        sheet = rearrange(torch.stack(clips)[:, columns], "n k h w c -> 1 (n h) (k w) c")
        write_video(out_dir / f"step_{step:06d}.png", sheet, fps=1, overwrite=True)

    def export(self, out_dir: Path) -> None:
        """Write the whole checkpoint folder, or of a LoRA that alone."""
        with whole_folder(out_dir) as part:
            if self.config.dit.lora_rank:
                save_lora(self.model, part)
            else:
                self.pipeline().save_pretrained(part)


def make_stage(config: TrainConfig) -> VaeStage | DitStage:
    """The stage that a recipe names."""
    return {"vae": VaeStage, "dit": DitStage}[config.stage](config)
