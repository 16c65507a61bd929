"""The DiT's training: packs of latents, every clip at its own size, and all that is known of them.

TrainConfig  ->  DitStage, with a model, batches, a loss, measures and samples
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from operator import mul
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from videogen.config.parsing import to_mapping
from videogen.config.sizes import parse_patch
from videogen.config.train import TrainConfig
from videogen.data.files import whole_folder
from videogen.data.folder import epoch_order
from videogen.data.prefetch import ahead, count_workers
from videogen.data.video_io import write_video
from videogen.models.checkpoint import disable_library_progress_bars
from videogen.models.dit import VideoDiT
from videogen.models.text_encoder import num_rows_of
from videogen.models.vae import VideoVAE
from videogen.packing.bin_packing import deal, plan_packs
from videogen.packing.noise import NoiseLevels, step_generator
from videogen.packing.packs import PackedText, PackedVideo, pad_texts
from videogen.packing.patch_schedule import Patch, cut_by, patch_name
from videogen.sampling.pipeline import VideoPipeline
from videogen.sampling.solvers import check_sampler
from videogen.toybox.dataset import DrawnClips
from videogen.training.batches import Ask, Clips, Drawing, Fetched, Reader, Step, clips_of, divides
from videogen.training.caches import Found, Kept, LatentCache, TextCache
from videogen.training.flow_matching import FlowTask, draw_task, flow_error
from videogen.training.frozen_models import check_fit, encoder_id, frozen_parts, load_part, located
from videogen.training.lora import adapt, save_lora
from videogen.training.masks import check_mixture
from videogen.training.pack_plan import (
    check_trained,
    dit_options,
    epoch_packs,
    num_facts,
    open_clips,
    packed_lengths,
    share_of,
    tell_untrained,
)
from videogen.training.run_checkpoints import saved_steps
from videogen.training.widen import widened

GOLDEN = (math.sqrt(5) - 1) / 2


class DitStage:
    """Denoise packs of latents, every clip at its own size."""

    def __init__(self, config: TrainConfig) -> None:
        config = replace(config, dit=located(config.dit))
        self.config, self.seed = config, config.run.seed
        check_mixture(config.dit.known)
        disable_library_progress_bars()
        self.vae, self.tokenizer, self.text_encoder, self.scheduler = frozen_parts(config.dit)
        self.model = self._new_model()
        self.folder = open_clips(config.data, self.model.base_patch, self.seed)
        if config.dit.facts and not isinstance(self.folder, DrawnClips):
            raise ValueError("dit.facts needs clips whose truth is known; set data.toybox, or leave it at 0")
        self.train, self.val = self.folder.split()
        base = self.model.base_patch
        self.lengths = {patch: packed_lengths(self.folder.entries, patch, base) for patch in self.model.patches}
        check_trained(self.lengths, self.train, base, config)
        self.trained = {patch: of for patch, of in self.lengths.items() if share_of(patch, base, config.dit)}
        tell_untrained(self.trained, self.train)
        truth = self.folder.truth if isinstance(self.folder, DrawnClips) and config.dit.facts else None
        cache_dir = config.run.dir / "latents"
        self.cache = LatentCache(self.folder, encoder_id(self.vae), cache_dir, truth)
        self.drawing = Drawing(config.dit, self.model.base_patch, self.seed)
        self.reader = Reader(self.folder, self.cache, self.drawing, self._light_encoder())
        self.texts = TextCache(self.tokenizer, self.text_encoder, config.run.dir / "texts")
        if self.model.data_variance is not None and config.dit.init is None and not saved_steps(config.run.dir):
            self.model.data_variance.data = self._data_variance()
        if config.dit.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        check_sampler(config.sample.sampler)  # not at the first preview, an hour later
        cut_by(config.sample, self.model.patches)
        self.pipeline().latent_shape(config.sample)

    def place(self, device: torch.device) -> None:
        """The frozen VAE and text encoder go where the DiT is."""
        self.vae.to(device)  # type: ignore[call-overload]
        self.text_encoder.to(device)  # type: ignore[arg-type]

    def _new_model(self) -> VideoDiT:
        dit = self.config.dit
        torch.manual_seed(self.seed)  # the first weights; everything later draws from its own generators
        if dit.init is not None:
            model = load_part(VideoDiT, dit.init, "transformer")
            check_fit(model, self.vae, dit, text_dim=self.text_encoder.config.hidden_size)
            if dit.widen:
                model = widened(model, heads=dit.num_attention_heads, ffn_dim=dit.ffn_dim, seed=self.seed)
            patches = list(map(parse_patch, dit.patches))
            model = model.extended(patches, nearby=dit.nearby, num_facts=num_facts(dit))
            return adapt(model, dit, self.seed) if dit.lora_rank else model
        channels = self.vae.config["latent_channels"]
        options = dit_options(dit, channels=channels, text_dim=self.text_encoder.config.hidden_size)
        model = VideoDiT(**options)  # type: ignore[arg-type]
        model.init_weights()
        return model

    def _light_encoder(self) -> VideoVAE | None:
        return self.vae.encoder_alone() if isinstance(self.vae, VideoVAE) else None

    @torch.no_grad()
    def _encode(self, video: Tensor) -> Tensor:
        return self.vae.encode(video[None].to(self.vae.device))[0].cpu()

    def _data_variance(self, num_clips: int = 200) -> Tensor:
        """The mean square of each latent channel (c,), over some training clips."""
        order = epoch_order(self.train, self.seed, 0)[:num_clips]
        if not (latents := self.read(order).latents):
            raise ValueError(f"none of {len(order)} clips of {self.config.data.folder} can be read")
        values = torch.cat([latent.float().flatten(1) for latent in latents], dim=1)
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
        for epoch in count():
            for indices in epoch_packs(self.lengths[patch], self.train, self.config.data, self.seed, epoch):
                yield epoch, indices

    def dealt(self, patch: Patch, ranks: int) -> Iterator[tuple[int, list[int]]]:
        """The same, a step's packs after each other, one for each rank and about as much work."""
        lengths, data = self.lengths[patch], self.config.data

        def work(pack: tuple[int, list[int]]) -> int:
            return sum(lengths[index] ** 2 for index in pack[1])

        an_epoch = sum(lengths[index] for index in self.train) * data.repeats // (data.token_budget * ranks)
        return deal(self.packs(patch), work, ranks, steps=max(1, min(8, an_epoch)))  # or a small folder's epochs mix

    def batches(self, start: int, every: int = 1) -> Iterator[Step]:
        """The packs of the steps start, start + every, ...."""
        num_workers = count_workers(self.config.data.workers, self.model.device)
        yield from map(self.made, ahead(self.reader.fetch, self.asks(start, every), num_workers))

    def asks(self, start: int, every: int) -> Iterator[Ask]:
        """Which clips they have: each patch size goes through the clips by itself; the ranks of a step share one."""
        first, rank = divmod(start, every)
        earlier = Counter(map(self.patch_of, range(first)))
        streams = {
            patch: islice(self.dealt(patch, every), every * earlier[patch] + rank, None, every)
            for patch in self.model.patches
        }
        for step in count(first):
            patch = self.patch_of(step)
            epoch, indices = next(streams[patch])
            yield Ask(indices, epoch, patch, step * every + rank, self.asks_facts(step))

    def read(self, indices: list[int], patch: Patch = (1, 1, 1), *, facts: bool = False) -> Clips:
        """Latents and captions of some clips of the first epoch, read here and now; those that fail are left out."""
        found = ((index, self.reader.find(index, 0)) for index in indices)
        return clips_of(list(self.encoded(found, 0, patch)), facts=facts)

    def made(self, fetched: Fetched | Step) -> Step:
        """A step of what was found."""
        if isinstance(fetched, Step):
            return fetched
        ask = fetched.ask
        read = list(self.encoded(zip(ask.indices, fetched.clips, strict=True), ask.epoch, ask.patch))
        if not read:  # another clip stands in
            others = (index for index in self.train if self.lengths[ask.patch][index])
            found = ((index, self.reader.find(index, ask.epoch)) for index in others)
            read = list(islice(self.encoded(found, ask.epoch, ask.patch), 1))
        if not read:
            raise ValueError(f"no clip of {self.config.data.folder} can be read any more")
        return self.drawing.step(clips_of(read, facts=ask.facts), ask)

    def encoded(
        self, found: Iterable[tuple[int, tuple[Found, str] | str]], epoch: int, patch: Patch
    ) -> Iterator[tuple[Kept, str]]:
        """What is kept of the clips that were found, and their captions; one that fails is named and left out."""
        for index, one in found:
            if isinstance(one, str):
                self.folder.report(index, one)
                continue
            kept = self.cache.keep(index, epoch, one[0], self._encode)
            if divides(patch, kept):
                yield kept, one[1]
            else:
                self.folder.report(index, f"it ends before its header says, and {patch_name(patch)} does not divide it")

    def asks_facts(self, step: int) -> bool:
        """Whether the network is to say, at an optimiser's step, what its tokens show."""
        dit = self.config.dit
        return dit.facts > 0 and step < dit.facts_until * self.config.run.steps

    def embed(self, captions: list[str]) -> PackedText:
        """The captions' token embeddings, side by side."""
        device = self.model.device
        with torch.autocast(device.type, enabled=False):  # texts are kept as the encoder says them
            text = pad_texts(self.texts.read(captions), num_rows_of(self.text_encoder))  # one way there for all
        return text._replace(tokens=text.tokens.to(device).float(), weights=text.weights.to(device))

    def task(self, step: Step) -> FlowTask:
        """What a step asks of the network: everything where the network is, and its noise."""
        device = self.model.device
        tokens, sigmas, index = (torch.from_numpy(part).to(device) for part in (step.tokens, step.sigmas, step.levels))
        clean, generator = PackedVideo(tokens.float(), step.grids, step.patch), torch.Generator().manual_seed(step.seed)
        base_tokens, text = self.drawing.base_tokens(step.patch), self.embed(step.captions)
        task = draw_task(clean, text, NoiseLevels(sigmas, index), base_tokens=base_tokens, generator=generator)
        told = None if step.facts is None else torch.from_numpy(step.facts).to(device).float()
        return task._replace(facts=told)

    def losses(self, model: nn.Module, batch: Step, step: int, most_tokens: int) -> Iterator[dict[str, Tensor]]:
        """The flow loss of a pack in parts of at most so many tokens that add up to it."""
        for part in self.task(batch).parts(most_tokens):
            tokens = torch.tensor(float(len(part.weight)))
            shown = {"tokens": tokens, "fill": tokens / self.config.data.token_budget}
            shown["clips"] = torch.tensor(float(len(part.clean.grids)))
            error = flow_error(model, part, self.config.dit.facts)
            yield {"loss": error, "weight": part.weight.sum()} | shown

    def longest(self, batch: Step) -> int:
        """Tokens of the longest clip of a pack."""
        return max(map(math.prod, batch.grids))

    def loss(self, model: nn.Module, batch: Step, step: int) -> dict[str, Tensor]:
        """The flow loss of a pack as a whole."""
        return next(self.losses(model, batch, step, len(batch.tokens)))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The flow loss of the held-out clips, at the same noise and noise levels every time."""
        found: dict[str, float] = {}
        for patch, lengths in self.trained.items():
            usable = [index for index in self.val if lengths[index]]
            losses, weights = [], []
            for number, indices in enumerate(plan_packs(lengths, budget=self.config.data.token_budget, order=usable)):
                if not (clips := self.read(indices, patch)).latents:
                    continue
                task = self.task(self.drawing.draw(clips, patch, step_generator(-1, number)))
                losses.append(flow_error(self.model, task).item())
                weights.append(task.total.item())
            if losses:
                name = "loss" if patch == self.model.base_patch else f"loss_{patch_name(patch)}"
                found[name] = sum(map(mul, losses, weights)) / sum(weights)
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
