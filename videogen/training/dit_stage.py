"""Train the DiT on packs of latents, each clip at its own size, conditioned on captions and on known tokens.

TrainConfig  ->  DitStage: model, batches, loss, validation, samples, checkpoint
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice, tee
from operator import mul
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from videogen.config.parsing import to_mapping
from videogen.config.sizes import parse_patch
from videogen.config.train import TrainConfig
from videogen.data.files import atomic_folder
from videogen.data.folder import epoch_order
from videogen.data.manifest import write_manifest
from videogen.data.prefetch import count_workers, prefetch
from videogen.data.video_io import write_video
from videogen.data.words import write_words
from videogen.models.checkpoint import without_bars
from videogen.models.dit import VideoDiT
from videogen.models.hub import checkpoint_name
from videogen.models.precision import resolve_mixed_precision
from videogen.models.text_encoder import num_text_rows
from videogen.models.vae import VideoVAE
from videogen.packing.bin_packing import Dealt, deal_packs, plan_packs
from videogen.packing.noise import NoiseLevels, step_generator
from videogen.packing.packs import PackedText, PackedVideo, pad_texts
from videogen.packing.patch_schedule import Patch, patch_name, patch_schedule
from videogen.sampling.pipeline import VideoPipeline
from videogen.sampling.solvers import check_sampler
from videogen.toybox.dataset import ToyboxClips
from videogen.training.batches import (
    BatchBuilder,
    BatchReader,
    BatchRequest,
    CachedClips,
    PartialBatch,
    TrainingBatch,
    collect_clips,
    patch_divides,
)
from videogen.training.caches import CachedArrays, CacheEntry, LatentCache, TextCache, moved_to
from videogen.training.flow_matching import FlowTask, flow_loss, sample_task
from videogen.training.frozen_models import check_compatible, encoder_id, load_base, load_frozen, resolve_checkpoints
from videogen.training.lora import add_lora, save_lora
from videogen.training.masks import check_mixture
from videogen.training.model_card import write_card
from videogen.training.pack_plan import (
    check_cache,
    count_latent_bytes,
    dit_options,
    epoch_packs,
    num_facts,
    open_clips,
    plan_lengths,
    split_folder,
)
from videogen.training.run_checkpoints import Stretch, count_packs, count_steps, saved_steps
from videogen.training.text_ahead import embed_ahead
from videogen.training.widen import widen_model
from videogen.training.words import check_trigger, training_words

GOLDEN = (math.sqrt(5) - 1) / 2


class DitStage:
    """The DiT's training: flow matching on packs of latents, each clip at its own size."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config = replace(config, dit=resolve_checkpoints(config.dit))
        self.seed, dit = config.run.seed, config.dit
        check_mixture(dit.known)
        use_bf16 = resolve_mixed_precision(config.run).mixed_precision == "bf16"
        text_dtype = torch.bfloat16 if use_bf16 and dit.base_dtype != "float32" else torch.float32
        with without_bars():
            frozen = load_frozen(dit, text_dtype=text_dtype)
        self.vae, self.tokenizer, self.text_encoder, self.scheduler = frozen
        self.model = self.objective = self._make_model()
        base = self.model.base_patch
        self.folder = open_clips(config.data, base, self.seed)
        if dit.facts and not isinstance(self.folder, ToyboxClips):
            raise ValueError("dit.facts needs clips whose truth is known; set data.toybox, or leave dit.facts at 0")
        self.clip_split = split_folder(self.folder, config)
        self.train_indices, self.val_indices = self.clip_split.train, self.clip_split.val
        if dit.lora_trigger:
            check_trigger(dit.lora_trigger, self.folder, self.train_indices)
        self.lengths, self.trained_lengths = plan_lengths(
            self.folder.entries, self.train_indices, self.model.patches, config
        )
        truth = self.folder.ground_truth if isinstance(self.folder, ToyboxClips) and dit.facts else None
        channels = self.vae.config["latent_channels"] if isinstance(self.vae, VideoVAE) else self.model.out_channels
        self.cache_bytes = count_latent_bytes(self.folder, channels)
        check_cache(self.cache_bytes, self.folder, config.data)
        self.cache = LatentCache(self.folder, encoder_id(self.vae), config.run.dir / "latents", truth)
        self.batch_builder = BatchBuilder(dit, base, self.seed)
        light_encoder = self.vae.linear_encoder_copy() if isinstance(self.vae, VideoVAE) else None
        self.reader = BatchReader(self.folder, self.cache, self.batch_builder, light_encoder)
        self.texts = TextCache(self.tokenizer, self.text_encoder, config.run.dir / "texts", bf16=use_bf16)
        if self.model.data_variance is not None and dit.init is None and not saved_steps(config.run.dir):
            self.model.data_variance.data = self._data_variance()
        if dit.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        # Wrong sample settings are refused here and not at the first preview, an hour later.
        check_sampler(config.sample.sampler)
        patch_schedule(config.sample, self.model.patches)
        self.pipeline().latent_shape(config.sample)

    def to_device(self, device: torch.device) -> None:
        """Move the frozen VAE and text encoder to the DiT's device; one whose memory is short has the latter wait."""
        self.vae.to(device)  # type: ignore[call-overload]
        self.texts.device = device
        if self.config.dit.base_dtype == "float32":
            self.text_encoder.to(device)  # type: ignore[arg-type]

    def _make_model(self) -> VideoDiT:
        """Make a DiT with random weights, or load dit.init and add what the recipe asks for."""
        dit = self.config.dit
        torch.manual_seed(self.seed)  # for the first weights; everything later samples from its own generators
        if dit.init is None:
            channels = self.vae.config["latent_channels"]
            options = dit_options(dit, channels=channels, text_dim=self.text_encoder.config.hidden_size)
            model = VideoDiT(**options)  # type: ignore[arg-type]
            model.init_weights()
            return model
        model = load_base(dit)
        check_compatible(model, self.vae, dit, text_dim=self.text_encoder.config.hidden_size)
        if dit.widen:
            model = widen_model(model, heads=dit.num_attention_heads, ffn_dim=dit.ffn_dim, seed=self.seed)
        model = model.extended(list(map(parse_patch, dit.patches)), nearby=dit.nearby, num_facts=num_facts(dit))
        return add_lora(model, dit, self.seed) if dit.lora_rank else model

    def _data_variance(self, num_clips: int = 200) -> Tensor:
        """Return the mean square of each latent channel (c,) over num_clips training clips."""
        order = epoch_order(self.train_indices, self.seed, 0)[:num_clips]
        latents = {index: latent.float() for index in order for latent in self.load_clips([index]).latents}
        if not latents:
            raise ValueError(f"none of {len(order)} clips of {self.config.data.folder} can be read")
        names = self.folder.names()
        if bad := [names[index] for index, latent in latents.items() if not latent.isfinite().all()]:
            raise FloatingPointError(f"latents of {', '.join(bad)} are not finite; leave them out, or check the VAE")
        values = torch.cat([latent.flatten(1) for latent in latents.values()], dim=1)
        return values.square().mean(1).clamp(min=1e-6)

    def patch_of_step(self, step: int) -> Patch:
        """Return a step's patch size; multiples of the golden ratio spread each size's share evenly over the run."""
        position = (step + 0.5) * GOLDEN % 1
        for name, share in self.config.dit.patches.items():
            if position < share:
                return parse_patch(name)
            position -= share
        return self.model.base_patch

    def packs(self, patch: Patch) -> Iterator[tuple[int, list[int]]]:
        """Yield the epoch and clip indices of every pack of a patch size; an epoch has each clip that it divides."""
        lengths, data = self.lengths[patch], self.config.data
        for epoch in count():
            yield from ((epoch, pack) for pack in epoch_packs(lengths, self.train_indices, data, self.seed, epoch))

    def balanced_packs(
        self, patch: Patch, num_ranks: int, earlier: Sequence[Stretch] = ()
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield the packs that earlier stretches left; the num_ranks packs of a step take about equal work."""
        lengths, data = self.lengths[patch], self.config.data

        def work(pack: tuple[int, list[int]]) -> int:
            return sum(lengths[index] ** 2 for index in pack[1])

        def window(ranks: int) -> int:
            # Packs are reordered over eight steps, or over an epoch if it is shorter: its packs must not mix with those
            # of the next where a folder is small.
            epoch_tokens = sum(lengths[index] for index in self.train_indices) * data.repeats
            return max(1, min(8, epoch_tokens // (data.token_budget * ranks)))

        dealt, first = list[Dealt](), 0
        for ranks, steps in earlier:
            num_steps = sum(self.patch_of_step(step) == patch for step in range(first, first + steps))
            dealt.append(Dealt(ranks, window(ranks), ranks * num_steps))
            first += steps
        return deal_packs(self.packs(patch), work, num_ranks, window(num_ranks), dealt=dealt)

    def batches(self, start: int, every: int = 1, earlier: Sequence[Stretch] = ()) -> Iterator[TrainingBatch]:
        """Yield the batches start, start + every, ... after those of earlier stretches, which workers read ahead."""
        num_workers = count_workers(self.config.data.workers, self.model.device)
        requests, ahead = tee(self.batch_requests(start, every, earlier))
        batches = map(self.finish_batch, prefetch(self.reader.read_batch, requests, num_workers))
        for batch, _ in zip(batches, embed_ahead(self.texts, self.folder, ahead, start // every), strict=True):
            yield batch

    def batch_requests(self, start: int, every: int, earlier: Sequence[Stretch] = ()) -> Iterator[BatchRequest]:
        """Yield requests start, start + every, ...; a step's packs share a patch size, whose epochs are its own."""
        accumulate = self.config.optim.accumulate
        packs = every * accumulate
        steps_before, (steps_here, rank) = count_steps(earlier), divmod(start, packs)
        first_step = steps_before + steps_here
        num_here = Counter(map(self.patch_of_step, range(steps_before, first_step)))
        streams = {
            patch: islice(self.balanced_packs(patch, packs, earlier), packs * num_here[patch] + rank, None, every)
            for patch in self.model.patches
        }
        dit = self.config.dit
        for place, number in enumerate(count(count_packs(earlier) + start, every)):  # endless
            step = first_step + place // accumulate
            patch = self.patch_of_step(step)
            epoch, indices = next(streams[patch])
            trains_facts = dit.facts > 0 and step < dit.facts_until * self.config.run.steps
            yield BatchRequest(indices, epoch, patch, number, trains_facts)

    def load_clips(self, indices: list[int], patch: Patch = (1, 1, 1), *, facts: bool = False) -> CachedClips:
        """Load latents and captions of clips of the first epoch in this process; report and skip those that fail."""
        entries = ((index, self.reader.load_clip(index, 0)) for index in indices)
        return collect_clips(list(self.encode_missing(entries, 0, patch)), facts=facts)

    def finish_batch(self, fetched: PartialBatch | TrainingBatch) -> TrainingBatch:
        """Encode the clips the workers could not, and build the batch; if all of them fail, another clip stands in."""
        if isinstance(fetched, TrainingBatch):
            return fetched
        request = fetched.request
        epoch, patch = request.epoch, request.patch
        usable = (index for index in self.train_indices if self.lengths[patch][index])
        replacements = self.encode_missing(
            ((index, self.reader.load_clip(index, epoch)) for index in usable), epoch, patch
        )
        entries = zip(request.indices, fetched.clips, strict=True)
        clips = list(self.encode_missing(entries, epoch, patch)) or list(islice(replacements, 1))
        if not clips:
            raise ValueError(f"no clip of {self.config.data.folder} can be read any more")
        return self.batch_builder.build_training_batch(collect_clips(clips, facts=request.facts), request)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Encode a clip (3, t, h, w) on the VAE's device into its latent (c, t, h, w) on the host."""
        return self.vae.encode(video[None].to(self.vae.device))[0].cpu()

    def encode_missing(
        self, entries: Iterable[tuple[int, tuple[CacheEntry, str] | str]], epoch: int, patch: Patch
    ) -> Iterator[tuple[CachedArrays, str]]:
        """Yield each clip's cached arrays and caption, encoding what is not cached; report and skip clips that fail."""
        for index, entry in entries:
            if isinstance(entry, str):  # the reason why the clip cannot be read
                self.folder.report(index, entry)
                continue
            cached, caption = entry
            arrays = self.cache.complete_entry(index, epoch, cached, self.encode)
            if patch_divides(patch, arrays):
                yield arrays, caption
            else:
                self.folder.report(index, f"it ends before its header says, and {patch_name(patch)} does not divide it")

    def embed_captions(self, captions: list[str]) -> PackedText:
        """Embed captions, from the cache where they are in it, as one pack on the model's device."""
        device = self.model.device
        text = pad_texts(self.texts.read(captions), num_text_rows(self.text_encoder))  # one copy to the device for all
        return text._replace(tokens=text.tokens.to(device).float(), weights=text.weights.to(device))

    def flow_task(self, batch: TrainingBatch) -> FlowTask:
        """Move a batch to the model's device, embed its captions and sample its noise."""
        device, arrays = self.model.device, (batch.tokens, batch.sigmas, batch.level_index)
        tokens, sigmas, index = (torch.from_numpy(array).to(device) for array in arrays)
        clean, levels = PackedVideo(tokens.float(), batch.grids, batch.patch), NoiseLevels(sigmas, index)
        generator, text = torch.Generator().manual_seed(batch.seed), self.embed_captions(batch.captions)
        options = {
            "base_tokens": self.batch_builder.base_tokens(batch.patch),
            "given_noise": self.config.dit.given_noise,
        }
        task = sample_task(clean, text, levels, generator=generator, **options)
        facts = None if batch.facts is None else torch.from_numpy(batch.facts).to(device).float()
        return task._replace(facts=facts)

    def split(self, batch: TrainingBatch, max_tokens: int) -> Iterator[FlowTask]:
        """Yield micro-batches of at most max_tokens tokens, or of one clip, whose losses add up to the batch's."""
        return self.flow_task(batch).micro_batches(max_tokens)

    def longest_clip(self, batch: TrainingBatch) -> int:
        """Return the number of tokens of a batch's longest clip."""
        return max(map(math.prod, batch.grids))

    def clip_names(self, batch: TrainingBatch, batch_number: int) -> list[str]:
        """Name the clips of a batch."""
        names = self.folder.names()
        return [names[index] for index in batch.clips]

    def loss(self, model: nn.Module, task: FlowTask, batch_number: int) -> dict[str, Tensor]:
        """Return the flow loss of a micro-batch, with its weight and its counts."""
        num_tokens = torch.tensor(float(len(task.weight)))
        return {
            "loss": flow_loss(model, task, self.config.dit.facts),
            "weight": task.total_weight,
            "tokens": num_tokens,
            "fill": num_tokens / (self.config.data.token_budget * self.config.optim.accumulate),
            "clips": torch.tensor(float(len(task.clean.grids))),
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the flow loss of the held-out clips in each trained patch size, with the same noise every time."""
        means: dict[str, float] = {}
        for patch, lengths in self.trained_lengths.items():
            usable = [index for index in self.val_indices if lengths[index]]
            losses, weights = [], []
            for number, indices in enumerate(plan_packs(lengths, budget=self.config.data.token_budget, order=usable)):
                if not (clips := self.load_clips(indices, patch)).latents:
                    continue
                task = self.flow_task(self.batch_builder.build_batch(clips, patch, step_generator(-1, number)))
                losses.append(flow_loss(self.model, task).item())
                weights.append(task.total_weight.item())
            if losses:
                name = "loss" if patch == self.model.base_patch else f"loss_{patch_name(patch)}"
                means[name] = sum(map(mul, losses, weights)) / sum(weights)
        return means

    def pipeline(self) -> VideoPipeline:
        """Return a pipeline that samples from the model with its current weights."""
        parts = (self.model, self.vae, self.text_encoder, self.tokenizer, self.scheduler)
        pipeline = VideoPipeline(*parts, defaults=to_mapping(self.config.sample))
        pipeline.set_progress_bar_config(disable=True)  # training has its own
        return pipeline

    @torch.no_grad()
    def preview(self, step: int, out_dir: Path) -> None:
        """Sample run.sample_prompts with seeds 0, 1, 2, ...: an MP4 each, and a sheet of five frames a prompt."""
        prompts = list(self.config.run.sample_prompts)
        if not prompts:
            return
        with moved_to(self.text_encoder, self.model.device):
            clips, folder = self.pipeline()(prompts, self.config.sample), out_dir / f"step_{step:06d}"
        for seed, (prompt, clip) in enumerate(zip(prompts, clips, strict=True)):
            path, settings = folder / f"{seed}.mp4", {"prompt": prompt, "seed": seed, "step": step}
            write_video(path, clip, fps=self.config.sample.fps, settings=settings, overwrite=True)
        columns = torch.linspace(0, len(clips[0]) - 1, 5).long()
        sheet = rearrange(torch.stack([*clips])[:, columns], "n k h w c -> 1 (n h) (k w) c")
        write_video(folder.with_suffix(".png"), sheet, fps=1, overwrite=True)

    def export(self, out_dir: Path) -> None:
        """Write the checkpoint folder of the whole pipeline, or of the LoRA alone."""
        with atomic_folder(out_dir) as part:
            if self.config.dit.lora_rank:
                about = {"ss_sd_model_name": checkpoint_name(Path(str(self.config.dit.init)))}
                if self.config.dit.lora_trigger:
                    about["modelspec.trigger_phrase"] = self.config.dit.lora_trigger
                save_lora(self.model, part, name=self.config.run.dir.resolve().name, about=about)
            else:
                self.pipeline().save_pretrained(part)
                write_words(part, training_words(self.folder, self.train_indices, self.config.dit.init))
            write_manifest(part)
            write_card(part, self.config, num_clips=len(self.train_indices))  # after it: a card is there to be edited
