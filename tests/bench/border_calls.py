"""Rows of those who come from diffusers: the words of its call, its models' names, and how a folder is opened."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from diffusers.utils import export_to_video
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, T5Config, T5EncoderModel

from tests.bench.border_desk import (
    DIFFERS,
    FLAGS,
    GUIDE,
    PROMPT,
    REFUSED,
    Desk,
    Row,
    absent,
    call,
    check,
    differs,
    latents_of,
    say,
)
from tests.bench.flags import ROOT
from tests.hub_server import COMMIT, ID, Hub, environment_of, files_of, serve
from tests.wan_folders import CLIP_WIDTH, TEXT_WIDTH, make_pipeline
from videogen.config.sample import MINI
from videogen.data.video_io import probe
from videogen.models.dit import VideoDiT
from videogen.packing.noise import shared_level
from videogen.packing.packs import pack, pack_texts
from videogen.sampling.pipeline import VideoPipeline

CALL, CLASSES, OPEN, HUB = "diffusers: the call", "diffusers: its classes", "diffusers: opening", "diffusers: the Hub"
DIT = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 8, "text_dim": 8, "freq_dim": 24}


def seeds(*numbers: int) -> list[torch.Generator]:
    """Make a fresh generator of each seed."""
    return [torch.Generator().manual_seed(number) for number in numbers]


def gives(kind: type, **words: object) -> Callable[[Desk], None]:
    """Try a call, and of what type its first clip is."""

    def trial(desk: Desk) -> None:
        frames = call(**words)(desk).frames  # type: ignore[attr-defined]
        check(isinstance(frames[0], kind), type(frames[0]))

    return trial


def try_second_scale(desk: Desk) -> None:
    """Give the second expert of Wan 2.2 a guidance of its own, which changes the clip."""
    pipeline = VideoPipeline.load(desk.wan("T2V A14B"))
    pipeline.set_progress_bar_config(disable=True)
    one, other = (latents_of(pipeline, guidance_scale=4.0, guidance_scale_2=scale) for scale in (1.0, 8.0))
    check(not torch.equal(one, other), "guidance_scale_2 changed nothing")


def try_latents(desk: Desk) -> None:
    """Begin at given latents: the clip follows them."""
    noise = torch.randn(latents_of(desk.pipeline).shape, generator=torch.Generator().manual_seed(1))
    one, other = (latents_of(desk.pipeline, latents=latents) for latents in (noise, -noise))
    check(not torch.equal(one, other), "latents changed nothing")


def try_embeds(desk: Desk) -> None:
    """Give the prompt embedded: the clip is that of the prompt."""
    embeds, negatives = desk.pipeline.encode_prompt([PROMPT])
    one = latents_of(desk.pipeline, prompt=None, prompt_embeds=embeds, negative_prompt_embeds=negatives)
    torch.testing.assert_close(one, latents_of(desk.pipeline), atol=1e-3, rtol=1e-3)  # packed in another order


def try_tuple(desk: Desk) -> None:
    """Ask for a tuple."""
    check(isinstance(call(return_dict=False)(desk), tuple))


def try_callback(desk: Desk) -> None:
    """Change the latents at a step's end, and see them on."""
    steps: list[int] = []

    def zeros(pipe: object, step: int, timestep: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        steps.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else tensors

    words = {"callback_on_step_end": zeros, "callback_on_step_end_tensor_inputs": ["latents"]}
    check(not latents_of(desk.pipeline, **words).any(), "the latents were not taken back")
    check(steps == [0, 1], steps)


def try_interrupt(desk: Desk) -> None:
    """End a run after its first step."""
    steps: list[int] = []

    def stop(pipeline: VideoPipeline, step: int, timestep: object, tensors: dict[str, object]) -> dict[str, object]:
        steps.append(step)
        pipeline._interrupt = True
        return tensors

    call(callback_on_step_end=stop)(desk)
    check(steps == [0], steps)


def try_bar(desk: Desk) -> None:
    """See a bar of the steps, and none where it is turned off."""
    texts = []
    for off in (False, True):
        desk.pipeline.set_progress_bar_config(disable=off)
        with contextlib.redirect_stderr(io.StringIO()) as text:
            call()(desk)
        texts.append(text.getvalue())
    check("2/2" in texts[0], texts[0])
    check(texts[1] == "", texts[1])


def try_loading_bars(desk: Desk) -> None:
    """Open a folder without a bar of the loaders."""
    folder = desk.wan()  # saving it shows one
    with contextlib.redirect_stderr(io.StringIO()) as text:
        VideoPipeline.from_pretrained(folder)
    check("it/s" not in text.getvalue(), text.getvalue())


def try_short_form(desk: Desk) -> None:
    """Call by prompts, config and seeds, and read .frames of the result."""
    config = replace(desk.pipeline.defaults, size="32x32", frames=5, steps=2)
    clips = desk.pipeline([PROMPT], config, seeds=[3])
    check(clips.frames.shape == (1, 5, 32, 32, 3), clips.frames.shape)


def try_export(desk: Desk) -> None:
    """Write the frames by diffusers: the colours stay."""
    frames = call()(desk).frames[0]  # type: ignore[attr-defined]
    export_to_video(frames, str(desk.place / "exported.mp4"), fps=8)
    check(probe(desk.place / "exported.mp4").num_frames == 5)


def try_bytes_to_export(desk: Desk) -> None:
    """Give diffusers' writer the bytes of a clip, which it would multiply by 255."""
    (clip,) = desk.pipeline(PROMPT, replace(desk.pipeline.defaults, size="32x32", frames=5, steps=1))
    export_to_video(list(clip.numpy()), str(desk.place / "ruined.mp4"), fps=8)


def try_scheduler(desk: Desk) -> None:
    """Replace the scheduler: the clip changes."""
    pipeline = VideoPipeline.load(desk.wan())
    pipeline.set_progress_bar_config(disable=True)
    before = latents_of(pipeline)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    check(not torch.equal(before, latents_of(pipeline)), "a swapped scheduler changed nothing")


def try_saving(desk: Desk) -> None:
    """Save a clip with its settings, as the guide's first lines of Python do."""
    check("].save(" in GUIDE["python.md"].split("```")[1], "the guide's first lines save no clip")
    (clip,) = desk.pipeline(PROMPT, replace(desk.pipeline.defaults, size="32x32", frames=5, steps=1))
    check(probe(clip.save(desk.place / "saved.mp4")).num_frames == 5)


def try_notebook(desk: Desk) -> None:
    """Show a result as the last line of a notebook's cell."""
    check("<video" in call()(desk)._repr_html_())  # type: ignore[attr-defined]


def try_card(desk: Desk) -> None:
    """Run the snippet of the shipped model card as it stands."""
    card = (MINI / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    (desk.place / "card" / "assets").mkdir(parents=True)
    (desk.place / "card" / "assets" / "mini").symlink_to(MINI)
    with contextlib.chdir(desk.place / "card"), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(snippet, "card", "exec"), {})
    check(probe(desk.place / "card" / "circle.mp4").num_frames == 17)


def try_plain_opening(desk: Desk) -> None:
    """Open our folder by diffusers' own class."""
    try:
        DiffusionPipeline.from_pretrained(str(MINI), trust_remote_code=True)
    except AttributeError:
        check("`DiffusionPipeline.from_pretrained`" in (MINI / "README.md").read_text(encoding="utf-8"))
        differs("its classes are ours: from videogen import VideoPipeline; VideoPipeline.from_pretrained(FOLDER)")


# --- diffusers' own tests of Wan


def try_projection(desk: Desk) -> None:
    """Open a folder whose image encoder has a projection."""
    theirs = make_pipeline("I2V 2.1")
    config = CLIPVisionConfig(
        hidden_size=CLIP_WIDTH, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, image_size=24,
        patch_size=8,
    )  # fmt: skip
    theirs.register_modules(image_encoder=CLIPVisionModelWithProjection(config))
    theirs.save_pretrained(desk.place / "projection")
    VideoPipeline.load(desk.place / "projection")


def try_image_dim(desk: Desk) -> None:
    """Build a transformer with a part of the options for images."""
    VideoDiT(**DIT, image_dim=4)
    VideoDiT(**DIT, added_kv_proj_dim=24)


def try_full_graph(desk: Desk) -> None:
    """Compile each block as one graph."""
    dit = VideoDiT(**DIT, in_channels=4, out_channels=4)
    dit.compile_repeated_blocks(fullgraph=True, backend="eager")
    video = pack([torch.randn(4, 1, 4, 4)], (1, 2, 2))
    try:
        with torch.no_grad():
            text = dit.project_text(pack_texts([torch.randn(3, 8)]))
            dit(video, shared_level(torch.tensor([0.5]), len(video.tokens)), text)
    except torch._dynamo.exc.Unsupported as error:
        check("fullgraph" in GUIDE["python.md"])
        differs(f"attention stays outside of the graph ({str(error).splitlines()[0]}); without fullgraph it works")


def try_t5(desk: Desk) -> None:
    """Sample with a T5 encoder in place of UMT5."""
    theirs = make_pipeline("T2V 2.1")
    config = T5Config(vocab_size=len(theirs.tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    theirs.register_modules(text_encoder=T5EncoderModel(config))
    theirs.save_pretrained(desk.place / "t5")
    pipeline = VideoPipeline.load(desk.place / "t5")
    pipeline.set_progress_bar_config(disable=True)
    latents_of(pipeline)


def try_variant(desk: Desk) -> None:
    """Open a folder by its variant."""
    make_pipeline("T2V 2.1").save_pretrained(desk.place / "variant", variant="fp16")
    VideoPipeline.load(desk.place / "variant", options={"variant": "fp16"})


def try_one_expert(desk: Desk) -> None:
    """Sample on the command line from the second expert alone."""
    theirs = make_pipeline("T2V A14B")
    theirs.register_modules(transformer=None)
    theirs.register_to_config(boundary_ratio=1.0)
    theirs.save_pretrained(folder := desk.place / "one-expert")
    say(["sample", PROMPT, *FLAGS, "--model", str(folder), "--out", str(desk.place / "one-expert.mp4")])


# --- the Hub

FIND = "import sys; from videogen.models.hub import find_checkpoint as find; print(find(sys.argv[1], {}))"


def find(hub: Hub, home: Path, name: str, options: str = "", **environment: str) -> str:
    """Find a checkpoint in a process of its own; a ValueError with its last line where it is refused."""
    (home / "work").mkdir(parents=True, exist_ok=True)
    words, env = [sys.executable, "-c", FIND.format(options), name], environment_of(hub, home) | environment
    process = subprocess.run(words, capture_output=True, text=True, cwd=home / "work", env=env)
    if process.returncode:
        raise ValueError(process.stderr.strip().splitlines()[-1].removeprefix("ValueError: "))
    return process.stdout + process.stderr


def on_hub(
    home: str, options: str = "", *, name: str = ID, asks: bool = False, **environment: str
) -> Callable[[Desk], None]:
    """Try an id with a Hub that holds a tiny Wan; it is asked or left alone."""

    def trial(desk: Desk) -> None:
        with serve(files_of(desk.wan())) as hub:
            try:
                said = find(hub, desk.place / home, name, options, **environment)
            finally:
                check(bool(hub.paths) == asks, hub.paths)
            check(COMMIT in said)
            check("MB" in said, "no size was said")

    return trial


def try_offline_mini(desk: Desk) -> None:
    """Sample from the shipped checkpoint with a Hub within reach: it is not asked."""
    words = [sys.executable, str(ROOT / "sample.py"), PROMPT, "--size", "32x32", "--frames", "1", "--steps", "1"]
    with serve({}) as hub:
        env, out = environment_of(hub, desk.place / "hub-mini"), str(desk.place / "offline.mp4")
        subprocess.run([*words, "--out", out], check=True, capture_output=True, env=env)
        check(hub.paths == [], hub.paths)


def transformer(desk: Desk) -> object:
    """Return the desk's transformer."""
    return desk.pipeline.transformer


def vae(desk: Desk) -> object:
    """Return the desk's VAE."""
    return desk.pipeline.vae


def tensor(desk: Desk) -> object:
    """Return what encoding gives."""
    return desk.pipeline.vae.encode(torch.zeros(1, 3, 5, 32, 32))


TENSORS = "encode and decode return tensors"
ROWS = (
    Row(CALL, "prompt: a string", call()),
    Row(CALL, "prompt: a list", call(prompt=[PROMPT, "a blue star"])),
    Row(CALL, "negative_prompt: one", call(negative_prompt="a blue star")),
    Row(CALL, "negative_prompt: one a prompt", call(prompt=["a", "b"], negative_prompt=["c", "d"])),
    Row(CALL, "height, width", call(height=64, width=32)),
    Row(CALL, "num_frames", call(num_frames=9)),
    Row(CALL, "num_frames=7, which diffusers rounds", call(num_frames=7), REFUSED, "try 5 or 9"),
    Row(CALL, "num_inference_steps", call(num_inference_steps=1)),
    Row(CALL, "guidance_scale", call(guidance_scale=1.0)),
    Row(CALL, "guidance_scale_2, one expert", call(guidance_scale_2=2.0), REFUSED, "guidance_scale_2"),
    Row(CALL, "guidance_scale_2, two experts", try_second_scale),
    Row(CALL, "num_videos_per_prompt", call(num_videos_per_prompt=2)),
    Row(CALL, "generator: one", lambda desk: call(generator=seeds(5)[0])(desk)),
    Row(CALL, "generator: one a clip", lambda desk: call(prompt=["a", "b"], generator=seeds(5, 6))(desk)),
    Row(CALL, "latents", try_latents),
    Row(CALL, "prompt_embeds, negative_prompt_embeds, encode_prompt", try_embeds),
    Row(CALL, "output_type: np", gives(np.ndarray, output_type="np")),
    Row(CALL, "output_type: pt", gives(torch.Tensor, output_type="pt")),
    Row(CALL, "output_type: pil", gives(list, output_type="pil")),
    Row(CALL, "output_type: latent", gives(torch.Tensor, output_type="latent")),
    Row(CALL, "return_dict=False", try_tuple),
    Row(CALL, "callback_on_step_end, callback_on_step_end_tensor_inputs: latents", try_callback),
    Row(
        CALL, "callback_on_step_end_tensor_inputs: prompt_embeds",
        call(callback_on_step_end=print, callback_on_step_end_tensor_inputs=["prompt_embeds"]), REFUSED,
        "prompt_embeds",
    ),
    Row(CALL, "_interrupt", try_interrupt),
    Row(CALL, "attention_kwargs: scale", call(attention_kwargs={"scale": 0.5})),
    Row(CALL, "attention_kwargs: others", call(attention_kwargs={"mask": 1}), REFUSED, "mask"),
    Row(CALL, "max_sequence_length", call(max_sequence_length=8)),
    Row(CALL, "set_progress_bar_config; a bar of the steps", try_bar),
    Row(CALL, "prompts, config, seeds: its own short form; .frames", try_short_form),
    Row(CALL, "prepare_latents", absent("prepare_latents", lambda desk: desk.pipeline, "give latents"), DIFFERS),
    Row(CLASSES, "export_to_video(frames)", try_export),
    Row(CLASSES, "export_to_video(list(clip.numpy()))", try_bytes_to_export, REFUSED, "export_to_video"),
    Row(CLASSES, "pipe.scheduler = ...", try_scheduler),
    Row(CLASSES, "vae.enable_slicing()", lambda desk: VideoPipeline.load(desk.wan()).vae.enable_slicing()),
    Row(CLASSES, "vae.enable_tiling()", lambda desk: desk.pipeline.vae.enable_tiling(), REFUSED, "tiles"),
    Row(CLASSES, "vae.enable_tiling() of Wan's", lambda desk: VideoPipeline.load(desk.wan()).vae.enable_tiling()),
    Row(
        CLASSES, "transformer.enable_cache(...)",
        lambda desk: desk.pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1)), REFUSED,
        "first_block_cache",
    ),
    Row(CLASSES, "clip.save(\"x.mp4\")", try_saving),
    Row(CLASSES, "a result as the last line of a notebook", try_notebook),
    Row(CLASSES, "from_single_file", absent("from_single_file", transformer, "--model FILE reads them"), DIFFERS),
    Row(CLASSES, "attn_processors", absent("attn_processors", transformer, "the kernel is chosen by itself"), DIFFERS),
    Row(CLASSES, "fuse_qkv_projections", absent("fuse_qkv_projections", transformer, "leave it out"), DIFFERS),
    Row(CLASSES, "tiled_decode", absent("tiled_decode", vae, "decoding is chunked by itself"), DIFFERS),
    Row(CLASSES, "encode().latent_dist", absent("latent_dist", tensor, TENSORS), DIFFERS),
    Row(CLASSES, "I2V with CLIPVisionModelWithProjection", try_projection),
    Row(CLASSES, "image_dim or added_kv_proj_dim alone", try_image_dim),
    Row(CLASSES, "compile_repeated_blocks(fullgraph=True)", try_full_graph, DIFFERS, "without fullgraph"),
    Row(CLASSES, "a T5EncoderModel", try_t5),
    Row(CLASSES, "variant: fp16", try_variant),
    Row(CLASSES, "transformer=None, boundary_ratio=1.0", try_one_expert),
    Row(OPEN, "VideoPipeline.from_pretrained(FOLDER): no bar of the loaders", try_loading_bars),
    Row(OPEN, "the model card's snippet", try_card),
    Row(
        OPEN, "DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)", try_plain_opening, DIFFERS,
        "VideoPipeline",
    ),
    Row(HUB, "an id that the cache lacks: its size said first", on_hub("hub-id", asks=True)),
    Row(HUB, "revision", on_hub("hub-revision", "revision='v1'", asks=True)),
    Row(HUB, "HF_HUB_OFFLINE=1", on_hub("hub-offline", HF_HUB_OFFLINE="1"), REFUSED, "hf download"),
    Row(HUB, "local_files_only=True", on_hub("hub-local", "local_files_only=True"), REFUSED, "hf download"),
    Row(HUB, "an id that there is not", on_hub("hub-other", name="someone/other", asks=True), REFUSED, "someone/other"),
    Row(HUB, "the shipped checkpoint asks no network", try_offline_mini),
)  # fmt: skip
