"""Rows of those who bring files along, or take ours elsewhere: LoRAs, cards, tables, flags, trackers, resuming."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import av
import torch
from diffusers import WanPipeline
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from tests.bench.border_desk import FLAGS, PROMPT, REFUSED, Desk, Row, check, read_header, sample, say, train
from tests.bench.damage_kinds import train_words
from tests.bench.flags import ROOT
from tests.comfy_stand_in import open_nodes, run_node
from tests.hub_server import ID, files_of, serve
from videogen.cli.arguments import flags_of
from videogen.cli.foreign_flags import FOREIGN_FLAGS
from videogen.cli.prompts import read_prompts
from videogen.cli.sample_arguments import SampleArgs
from videogen.config.sample import MINI, SampleConfig
from videogen.data.captions import FILE_COLUMNS
from videogen.data.listing import list_folder
from videogen.models.push import push_to_hub

LORA, CARDS, FILES, NODES = "ours elsewhere: LoRAs", "ours elsewhere: cards", "ours elsewhere: files", "ComfyUI: nodes"
TABLES, HABITS = "brought along: tables", "brought along: flags"
DEVICES, RUNS = "brought along: devices", "trainers: runs"
LAYER = r"diffusion_model\.blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.lora_[AB]\.weight"


def try_lora_names(desk: Desk) -> None:
    """Find each tensor of a LoRA by the rule that ComfyUI and Wan2GP look for names by."""
    wrong = [name for name in load_file(desk.lora) if not re.fullmatch(LAYER, name)]
    check(not wrong, wrong)


def try_lora_in_diffusers(desk: Desk) -> None:
    """Load a LoRA by diffusers, whose converter turns its names back; the values stay to the bit."""
    ours = load_file(desk.lora)
    theirs = _convert_non_diffusers_wan_lora_to_diffusers(dict(ours))
    check(len(theirs) == len(ours))
    check(all(any(torch.equal(value, own) for own in ours.values()) for value in theirs.values()))
    WanPipeline.from_pretrained(str(desk.wan())).load_lora_weights(str(desk.lora.parent), weight_name=desk.lora.name)


def header(key: str, wanted: str) -> Callable[[Desk], None]:
    """Try a key of a LoRA's header."""

    def trial(desk: Desk) -> None:
        found = read_header(desk.lora).get(key, "")
        check(re.fullmatch(wanted.format(desk=desk), found), f"{key}: {found}")

    return trial


def try_adapter_metadata(desk: Desk) -> None:
    """Read rank and layers of a LoRA from diffusers' metadata."""
    found = json.loads(read_header(desk.lora)["lora_adapter_metadata"])
    check(found["transformer.r"] == 2 and "to_q" in found["transformer.target_modules"], found)


def card(folder: Callable[[Desk], Path], *tags: str) -> Callable[[Desk], None]:
    """Try a model card, as the Hub reads it."""

    def trial(desk: Desk) -> None:
        found = ModelCard.load(folder(desk) / "README.md")
        check(found.data.library_name == "videogen" and set(tags) <= set(found.data.tags or ()), found.data)
        check("```python" in found.text)

    return trial


def on_empty_hub(push: Callable[[], object]) -> dict[str, bytes]:
    """Push to an empty Hub, and return what it holds then."""
    with (
        serve({}) as hub,
        mock.patch("huggingface_hub.constants.ENDPOINT", hub.endpoint),
        mock.patch("huggingface_hub.constants.HF_HUB_DISABLE_XET", new=True),
        mock.patch.dict("os.environ", {"VIDEOGEN_MAY_FETCH": "1"}),
    ):
        push()
        return hub.files


def try_push(desk: Desk) -> None:
    """Push what training wrote: every file arrives as it is."""
    sent = on_empty_hub(lambda: push_to_hub(desk.lora.parent, ID, token="hf_test"))
    check(sent == files_of(desk.lora.parent), sorted(sent))


def try_push_of_pipeline(desk: Desk) -> None:
    """Push a pipeline: the card and the words of its folder arrive too."""
    sent, own = on_empty_hub(lambda: desk.pipeline.push_to_hub(ID, token="hf_test")), files_of(MINI)
    check(all(sent.get(name) == own[name] for name in ("README.md", "words.tsv", "NOTICE")), sorted(sent))


def mode(path: Callable[[Desk], Path]) -> Callable[[Desk], None]:
    """Try who may read a file: whoever may read one that is simply written."""

    def trial(desk: Desk) -> None:
        (desk.place / "plain").write_text("")
        plain, found = (stat.S_IMODE(one.stat().st_mode) for one in (desk.place / "plain", path(desk)))
        check(plain == found, oct(found))

    return trial


def latents(desk: Desk) -> Path:
    """Save the latents of a clip."""
    say(["sample", PROMPT, *FLAGS, "--save-latents", "--out", str(desk.place / "kept.mp4"), "--overwrite"])
    return next(desk.place.glob("kept*.safetensors"))


def weights(desk: Desk) -> Path:
    """Save a pipeline's weights."""
    desk.pipeline.save_pretrained(desk.place / "saved")
    return desk.place / "saved" / "transformer" / "diffusion_pytorch_model.safetensors"


def try_parameters_of_mp4(desk: Desk) -> None:
    """Read a clip's settings as galleries do."""
    with av.open(str(desk.clip)) as file:
        check("Steps: 1, Sampler:" in file.metadata.get("parameters", ""), file.metadata)


def try_parameters_of_png(desk: Desk) -> None:
    """Read a picture's settings as galleries do."""
    say(["sample", PROMPT, *FLAGS, "--frames", "1", "--out", str(desk.place / "one.png")])
    check("Steps: 1, Sampler:" in Image.open(desk.place / "one.png").info["parameters"])


def try_nodes(desk: Desk) -> None:
    """Load and sample by the nodes, under a stand-in of ComfyUI's V3 protocol."""
    with open_nodes(desk.place / "comfy") as nodes:
        (pipeline,) = run_node(nodes["VideogenLoadCheckpoint"], folder=str(MINI), device="cpu")
        words = {"prompts": "a cat\na boat", "width": 32, "height": 32, "frames": 5, "steps": 1}
        clips, _ = run_node(nodes["VideogenSampleClips"], pipeline=pipeline, **words)
    found = [(clip.shape, clip.dtype) for clip in clips]  # type: ignore[attr-defined]
    check(found == [((5, 32, 32, 3), torch.float32)] * 2, found)


def table(name: str, text: str) -> Callable[[Desk], None]:
    """Try a table with such columns, for a folder's captions and for prompts."""

    def trial(desk: Desk) -> None:
        folder = plain_clips(desk, f"table-{name}-{text}")
        rows = [{name: path.name, text: f"clip {path.stem}"} for path in sorted(folder.glob("*.mp4"))]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        captions = {path.name: found for path, found in list_folder(folder).captions.items()}
        check(captions == {row[name]: (row[text],) for row in rows}, captions)
        prompts = [row.prompt for row in read_prompts(folder / "metadata.jsonl", SampleConfig(), 0)]
        check(prompts == [row[text] for row in rows], prompts)

    return trial


def plain_clips(desk: Desk, name: str) -> Path:
    """Copy the clips into a folder without a table."""
    shutil.rmtree(folder := desk.place / name, ignore_errors=True)
    folder.mkdir()
    for path in desk.clips.rglob("*.mp4"):
        shutil.copy(path, folder / path.name)
    return folder


def try_lists(desk: Desk) -> None:
    """Read videos.txt with prompts.txt."""
    folder = plain_clips(desk, "lists")
    names = sorted(path.name for path in folder.glob("*.mp4"))
    (folder / "videos.txt").write_text("\n".join(names), encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(f"clip {name}" for name in names), encoding="utf-8")
    check(sorted(list_folder(folder).captions.values()) == [(f"clip {name}",) for name in names])


def dataset(name: str, text: str) -> Callable[[Desk], str]:
    """Try a file of folders that another trainer's users have; {desk.clips} stands for a folder."""

    def trial(desk: Desk) -> str:
        for path in (folder := plain_clips(desk, name)).glob("*.mp4"):
            path.with_suffix(".txt").write_text("a clip", encoding="utf-8")
        path = desk.place / f"{name}.toml"
        path.write_text(text.replace("FOLDER", str(folder)), encoding="utf-8")
        if "data.sets" in text:
            words = [str(path), "--dit.vae", str(MINI), "--dit.text", str(MINI)]
        else:
            words = [str(ROOT / "configs" / "folder-dit.toml"), "--dit.vae", str(MINI), "--data", str(path)]
        return say(["train", *words, "--run.dir", str(desk.place / f"run-{name}"), "--dry-run"])

    return trial


SETS = """stage = "dit"
[[data.sets]]
folder = "FOLDER"
repeats = 2
fps = 8
size = "48x48"
"""
MUSUBI = """[general]
resolution = [64, 64]
caption_extension = ".txt"
enable_bucket = true
[[datasets]]
video_directory = "FOLDER"
target_frames = [9]
"""
DIFFUSION_PIPE = """resolutions = [64]
enable_ar_bucket = true
frame_buckets = [1, 9]
[[directory]]
path = "FOLDER"
num_repeats = 2
"""


def foreign(flag: str, *values: str, says: str, command: str = "sample") -> Row:
    """Make the row of a flag of other programs, whose refusal names ours."""
    trial = sample(flag, *values) if command == "sample" else train(flag, *values)
    return Row(HABITS, " ".join((f"{command}.py", flag, *values)), trial, REFUSED, says)


def try_all_foreign_flags(desk: Desk) -> None:
    """Give every flag of other programs that is known, but for those that are ours as well, and read its hint."""
    ours = flags_of(SampleArgs, SampleArgs(sample=SampleConfig()))
    for flag in sorted({f"--{name}" for name in FOREIGN_FLAGS} - {*ours}):
        try:
            sample(flag, "1")(desk)
        except ValueError as error:
            check(f"{flag} is a flag of other programs" in str(error), error)
        else:
            raise RuntimeError(f"{flag} was taken")


def try_kohyas_line(desk: Desk) -> None:
    """Read the settings behind a prompt, as kohya's trainers write them."""
    (desk.place / "kohya.txt").write_text("a cat --w 64 --h 32 --n a dog --s 3 --d 42\n", encoding="utf-8")
    ((prompt, seed, config),) = read_prompts(desk.place / "kohya.txt", SampleConfig(), 0)
    check((prompt, seed, config.size, config.negative, config.steps) == ("a cat", 42, "64x32", "a dog", 3), config)


def try_tensorboard(desk: Desk) -> None:
    """Log a run to TensorBoard."""
    say([*train_words(run := desk.place / "tracked"), "--run.report-to", "tensorboard"])
    check(list(run.rglob("events.out.tfevents*")), "no events")


def tracker(name: str) -> Callable[[Desk], None]:
    """Try a tracker where its package is not installed, as it may be elsewhere."""

    def trial(desk: Desk) -> None:
        with mock.patch("accelerate.tracking.get_available_trackers", return_value=[]):
            say(train_words(desk.place / f"tracked-{name}", "--run.report-to", name))

    return trial


def try_resume(desk: Desk) -> None:
    """Go on from a step that was saved."""
    shutil.copytree(desk.run, run := desk.place / "resumed")
    say([*train_words(run), "--run.steps", "6", "--run.resume", "2", "--accept-changes"])
    check((run / "step_000006").is_dir(), sorted(path.name for path in run.iterdir()))


def try_keep(desk: Desk) -> None:
    """Keep one step folder."""
    say([*train_words(run := desk.place / "kept-one"), "--run.keep", "1"])
    check(len(list(run.glob("step_*"))) == 1)


def try_early_end(desk: Desk) -> None:
    """End a run before its last step: a scheduler reads its status."""
    say(train_words(desk.place / "early", "--run.steps", "100000", "--run.minutes", "0.01"), status=75)


ROWS = (
    Row(LORA, "the names that ComfyUI and Wan2GP read", try_lora_names),
    Row(LORA, "diffusers' converter and load_lora_weights", try_lora_in_diffusers),
    Row(LORA, "header: base model", header("ss_sd_model_name", ".*T2V-2.1")),
    Row(LORA, "header: rank", header("ss_network_dim", "2")),
    Row(LORA, "header: alpha (dit.lora_alpha is multiplied into the weights)", header("ss_network_alpha", "2")),
    Row(LORA, "header: trigger words (dit.lora_trigger)", header("modelspec.trigger_phrase", "a")),
    Row(LORA, "header: ss_*", header("ss_network_module", r"networks\.lora_wan")),
    Row(LORA, "header: modelspec.*", header("modelspec.architecture", "wan/lora")),
    Row(LORA, "header: diffusers' adapter metadata", try_adapter_metadata),
    Row(LORA, "the file has the run's name", lambda desk: check(desk.lora.is_file())),
    Row(CARDS, "a checkpoint", card(lambda desk: desk.run / "checkpoint")),
    Row(CARDS, "a VAE", card(lambda desk: desk.vae, "vae")),
    Row(CARDS, "a LoRA", card(lambda desk: desk.lora.parent, "lora")),
    Row(CARDS, "push_to_hub of what training wrote", try_push),
    Row(CARDS, "push_to_hub of a pipeline", try_push_of_pipeline),
    Row(FILES, "weights have the umask's mode", mode(weights)),
    Row(FILES, "LoRAs have the umask's mode", mode(lambda desk: desk.lora)),
    Row(FILES, "latents have the umask's mode", mode(latents)),
    Row(FILES, "parameters in an MP4", try_parameters_of_mp4),
    Row(FILES, "parameters in a PNG", try_parameters_of_png),
    Row(NODES, "load a checkpoint, sample a pack of prompts", try_nodes),
    *(Row(TABLES, f"a column {name}", table("file_name", name)) for name in ("caption", "prompt", "text")),
    *(Row(TABLES, f"a column {name}", table(name, "text")) for name in FILE_COLUMNS),
    Row(TABLES, "videos.txt and prompts.txt", try_lists),
    Row(TABLES, "[[data.sets]] in a recipe", dataset("sets", SETS)),
    Row(TABLES, "musubi-tuner's dataset.toml", dataset("musubi", MUSUBI)),
    Row(TABLES, "diffusion-pipe's dataset.toml", dataset("diffusion-pipe", DIFFUSION_PIPE)),
    foreign("--num_inference_steps", "30", says="--steps"),
    foreign("--height", "480", "--width", "832", says="--size 832x480"),
    foreign("--guidance_scale", "5", says="--guidance"),
    foreign("--cfg", "5", says="--guidance"),
    foreign("--flow_shift", "5", says="--shift"),
    foreign("--output_dir", "x", says="--out PATH"),
    foreign("--learning_rate", "1e-4", says="--optim.lr", command="train"),
    foreign("--report_to", "wandb", says="--run.report-to", command="train"),
    foreign("--gradient_accumulation_steps", "4", says="--optim.accumulate", command="train"),
    foreign("--fp8_base", says="--dit.base-dtype", command="train"),
    foreign("--use_8bit_adam", says="--optim.optimizer adamw8bit", command="train"),
    Row(HABITS, f"all {len(FOREIGN_FLAGS)} flags of other programs", try_all_foreign_flags),
    Row(HABITS, "a prompt line with --w --h --n --s --d", try_kohyas_line),
    Row(DEVICES, "--device auto", sample("--device", "auto")),
    Row(DEVICES, "--device cuda:1", sample("--device", "cuda:1")),
    Row(DEVICES, "--device xpu", sample("--device", "xpu")),
    Row(DEVICES, "--dtype float16", sample("--dtype", "float16")),
    Row(RUNS, "run.report_to = tensorboard", try_tensorboard),
    *(Row(RUNS, f"run.report_to = {name}, not installed", tracker(name), REFUSED, f"pip install {name}")
      for name in ("wandb", "trackio", "mlflow")),
    Row(RUNS, "run.report_to of an unknown tracker", tracker("mine"), REFUSED, "must be auto, none, or of"),
    Row(RUNS, "run.keep", try_keep),
    Row(RUNS, "run.resume = STEP", try_resume),
    Row(RUNS, "run.resume = none", train("--run.resume", "none")),
    Row(RUNS, "status 75 of a run that ended early", try_early_end),
    Row(RUNS, "8-bit AdamW", train("--optim.optimizer", "adamw8bit")),
)  # fmt: skip
