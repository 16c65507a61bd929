"""The call of the pipeline in the words of diffusers' WanPipeline, beside the short form.

    prompts, SampleConfig, seeds  ->  Clips;  prompt, height, width, num_frames, ...  ->  VideoPipelineOutput(frames)

Both are the one line of ClipSampler. What the words ask for and this line does not do is refused in a sentence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast, overload

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from torch import Generator, Tensor

from videogen.config.parsing import to_mapping
from videogen.config.sample import SampleConfig
from videogen.models.dit_network import TextContext
from videogen.packing.packs import PackedText, PackedVideo, pack, pad_texts, unpack
from videogen.sampling.call_words import Embeds, Texts, ends_of, noise_of, settings_of, texts_of
from videogen.sampling.clip_sampler import ClipRequest, ClipSampler
from videogen.sampling.clips import Clip, Clips, show, stack_frames
from videogen.sampling.known import Known
from videogen.sampling.known_tokens import KnownLatent
from videogen.sampling.solvers import AfterStep, Interrupted, keep

if TYPE_CHECKING:
    from PIL.Image import Image
    from tqdm import tqdm

OUTPUT_TYPES = ("np", "pt", "pil", "latent")
TENSOR_INPUTS = ("latents",)
Callback = Callable[["DiffusersCall", int, Tensor, dict[str, Tensor]], "dict[str, Tensor] | None"]


@dataclass
class VideoPipelineOutput(BaseOutput):
    """The frames of a call, as its output_type says: (b, t, h, w, 3), (b, t, 3, h, w), pictures or latents."""

    frames: object

    def _repr_html_(self) -> str:
        """Show the clips in a notebook, where they are pixels."""
        if not isinstance(clips := getattr(self, "_clips", None), Clips):
            return f"<pre>{self!r}</pre>"
        return "\n".join(show(clip, clip.fps) for clip in clips)


class DiffusersCall(ClipSampler):
    """The call of VideoPipeline, and the properties that callbacks of diffusers read."""

    check_scheduler: Callable[[SampleConfig], None]
    embed_rows: Callable[..., list[Tensor]]
    num_text_rows: Callable[..., int]
    progress_bar: Callable[..., tqdm]
    _callback_tensor_inputs = TENSOR_INPUTS
    _interrupt = False
    _num_timesteps = 0

    @property
    def interrupt(self) -> bool:
        """True once a callback has set `_interrupt`: the run ends with the latents that it has."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """The steps of the present run."""
        return self._num_timesteps

    @overload
    def __call__(
        self,
        prompts: Sequence[str] | str,
        config: SampleConfig | None = None,
        *,
        seeds: Sequence[int] | None = None,
        known: Sequence[Known] = (),
    ) -> Clips: ...

    @overload
    def __call__(self, *args: object, **words: object) -> Clips | VideoPipelineOutput | tuple[object]: ...

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompts: Sequence[str] | str | None = None,
        config: SampleConfig | Sequence[str] | str | None = None,
        *,
        seeds: Sequence[int] | None = None,
        known: Sequence[Known] = (),
        prompt: Sequence[str] | str | None = None,
        negative_prompt: Sequence[str] | str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_scale_2: float | None = None,
        num_videos_per_prompt: int | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        latents: Embeds | None = None,
        prompt_embeds: Embeds | None = None,
        negative_prompt_embeds: Embeds | None = None,
        output_type: str | None = None,
        return_dict: bool | None = None,
        attention_kwargs: Mapping[str, float] | None = None,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        max_sequence_length: int | None = None,
        image: Image | Tensor | None = None,
        last_image: Image | Tensor | None = None,
    ) -> Clips | VideoPipelineOutput | tuple[object]:
        """Make one clip a prompt, all in one pack; seeds default to 0, 1, 2, ...

        With prompts, config, seeds and known alone it returns Clips, tensors (t, h, w, 3) uint8. Any other word is
        diffusers', and then the result is what diffusers returns. What is known of a clip is the same for all of them.
        """
        if isinstance(config, str) or (config is not None and not isinstance(config, SampleConfig)):
            config, negative_prompt = None, negative_prompt or config  # diffusers' second argument
        words = (
            prompt, negative_prompt, height, width, num_frames, num_inference_steps, guidance_scale, guidance_scale_2,
            num_videos_per_prompt, generator, latents, prompt_embeds, negative_prompt_embeds, output_type, return_dict,
            attention_kwargs, callback_on_step_end, callback_on_step_end_tensor_inputs, max_sequence_length, image,
            last_image,
        )  # fmt: skip
        if output_type not in (None, *OUTPUT_TYPES):
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        config = settings_of(
            config or self.defaults,
            size=(width, height),
            frames=num_frames,
            steps=num_inference_steps,
            guidance=guidance_scale,
            guidance_2=guidance_scale_2,
            two_experts=len(self.experts) > 1,
        )
        self.check_scheduler(config)
        texts = texts_of(
            (prompts, prompt, prompt_embeds), (negative_prompt, negative_prompt_embeds), config, num_videos_per_prompt
        )
        callback = callback_of(callback_on_step_end, callback_on_step_end_tensor_inputs)
        seeds, noise = noise_of(self, [config] * len(texts.prompts), seeds, generator, latents)
        known = [*known, *ends_of(image, last_image)]
        requests = [ClipRequest(text, seed, known) for text, seed in zip(texts.prompts, seeds, strict=True)]
        steps = config.steps - config.first_step
        self._interrupt, self._num_timesteps = False, steps
        with scaled_loras(self, attention_kwargs), self.progress_bar(total=steps) as bar:
            text = encode(self, texts, config, max_sequence_length)
            after_step = steps_with(self, noise, callback, lambda: bar.update(1 if bar.n < steps else 0))
            results = self.sample(requests, config, text=text, noise=noise, after_step=after_step)
        if output_type == "latent":
            frames = torch.stack(results)
            return (frames,) if return_dict is False else VideoPipelineOutput(frames)
        unsaid = {"prompt": prompt_embeds, "seed": latents, "negative": negative_prompt_embeds}
        unsaid_keys = [key for key, value in unsaid.items() if value is not None]
        clips = self._decode(requests, texts, results, config, unsaid_keys)
        if all(word is None for word in words):
            return clips
        return as_output(clips, output_type or "np", return_dict=return_dict is not False)

    def _decode(
        self,
        requests: Sequence[ClipRequest],
        texts: Texts,
        latents: Sequence[Tensor],
        config: SampleConfig,
        unsaid: Sequence[str],
    ) -> Clips:
        """Decode the latents of a call; the clips carry their settings without those that have no words."""
        clips = Clips()
        for request, negative, latent in zip(requests, texts.negatives, latents, strict=True):
            settings = {"prompt": request.prompt, "seed": request.seed}
            settings |= to_mapping(replace(config, negative=negative))
            known = [] if isinstance(request.known, KnownLatent) else request.known
            frames = torch.cat(list(self.frames(latent, known, config)))
            said = {key: value for key, value in settings.items() if key not in unsaid}
            clips.append(Clip.of(frames, fps=config.fps, settings=said))
        self.maybe_free_model_hooks()
        return clips

    def encode_prompt(
        self,
        prompt: Sequence[str] | str,
        negative_prompt: Sequence[str] | str | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Embeds | None = None,
        negative_prompt_embeds: Embeds | None = None,
        max_sequence_length: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embed prompts and negative prompts as (b, m, text_dim), padded with zeros, as the call takes them."""
        config = replace(self.defaults, negative="")
        device, dtype = device or self.compute_device, dtype or next(self.text_encoder.parameters()).dtype
        pairs = (None, prompt, prompt_embeds), (negative_prompt, negative_prompt_embeds)
        texts = texts_of(*pairs, config, num_videos_per_prompt)

        def padded(strings: list[str], embeds: list[Tensor] | None) -> Tensor:
            rows = embeds or self.embed_rows(strings, max_sequence_length)
            num_rows = max(self.num_text_rows(max_sequence_length), *map(len, rows))
            filled = [torch.cat([row, row.new_zeros(num_rows - len(row), row.shape[1])]) for row in rows]
            return torch.stack(filled).to(device=device, dtype=dtype)

        negatives = padded(texts.negatives, texts.negative_embeds) if do_classifier_free_guidance else None
        return padded(texts.prompts, texts.embeds), negatives


def callback_of(
    callback: Callback | PipelineCallback | MultiPipelineCallbacks | None, inputs: Sequence[str] | None
) -> Callback | None:
    """Return the callback of a call; a ValueError where it asks for tensors that the line does not hold."""
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        inputs = callback.tensor_inputs
    if unknown := [name for name in inputs or () if name not in TENSOR_INPUTS]:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs must be among {', '.join(TENSOR_INPUTS)}, got {unknown[0]}: the texts "
            "are projected once a call; guidance_interval switches guidance off at a noise level"
        )
    return cast("Callback | None", callback)


def steps_with(
    pipeline: DiffusersCall, noise: PackedVideo, callback: Callback | None, on_step: Callable[[], object]
) -> AfterStep:
    """Return what happens after each step: the bar goes on, and the callback may change the latents or interrupt."""
    number = -1

    def after_step(tokens: Tensor, sigma: Tensor) -> Tensor:
        nonlocal number
        number += 1
        on_step()
        if callback is None:
            return keep(tokens, sigma)
        latents = torch.stack(unpack(noise._replace(tokens=tokens)))
        changed = (callback(pipeline, number, 1000 * sigma, {"latents": latents}) or {}).get("latents", latents)
        if changed is not latents or pipeline.interrupt:
            tokens = pack([*changed.to(tokens)], noise.patch).tokens
        if pipeline.interrupt:
            raise Interrupted(tokens)
        return tokens

    return after_step


def encode(pipeline: DiffusersCall, texts: Texts, config: SampleConfig, max_length: int | None) -> TextContext:
    """Compute the keys and values of a call's texts: its prompts, then under guidance its negative prompts."""
    is_guided = bool({config.guidance, config.guidance_2} - {1, None})
    strings = list(texts.prompts if texts.embeds is None else [])
    strings += texts.negatives if is_guided and texts.negative_embeds is None else []
    pipeline.maybe_free_model_hooks()
    unique, rows = sorted(set(strings)), dict[str, Tensor]()
    if unique:
        rows = dict(zip(unique, pipeline.embed_rows(unique, max_length), strict=True))
    own = pipeline.num_text_rows(max_length)

    def packed(strings: list[str], embeds: list[Tensor] | None) -> list[PackedText]:
        if embeds is None:
            return [pad_texts([rows[text]], own) for text in strings]
        return [pad_texts([without_padding(row.to(pipeline.compute_device))], own and len(row)) for row in embeds]

    parts = packed(texts.prompts, texts.embeds)
    parts += packed(texts.negatives, texts.negative_embeds) if is_guided else []
    lengths = tuple(length for part in parts for length in part.lengths)
    weights = torch.cat([part.weights for part in parts])
    return pipeline.project(PackedText(torch.cat([part.tokens for part in parts]), lengths, weights))


def without_padding(rows: Tensor) -> Tensor:
    """Cut the rows of zeros off the end of an embedded text (m, text_dim), and keep one row at least."""
    used = rows.float().abs().sum(1).nonzero()
    return rows[: int(used[-1]) + 1 if len(used) else 1].float()


@contextlib.contextmanager
def scaled_loras(pipeline: DiffusersCall, attention_kwargs: Mapping[str, float] | None) -> Iterator[None]:
    """Scale the LoRAs of the transformers while a call runs, which is all that attention_kwargs can ask for."""
    asked = dict(attention_kwargs or {})
    if unknown := asked.keys() - {"scale"}:
        raise ValueError(f"attention_kwargs takes scale, which scales the LoRAs, got {min(unknown)}; leave it out")
    if "scale" not in asked:
        yield
        return
    for expert in pipeline.experts:
        scale_lora_layers(expert, asked["scale"])
    try:
        yield
    finally:
        for expert in pipeline.experts:
            unscale_lora_layers(expert, asked["scale"])


def as_output(clips: Clips, output_type: str, *, return_dict: bool) -> VideoPipelineOutput | tuple[object]:
    """Return clips as diffusers returns them."""
    frames = stack_frames(clips, output_type)
    if not return_dict:
        return (frames,)
    output = VideoPipelineOutput(frames)
    object.__setattr__(output, "_clips", clips)
    return output
