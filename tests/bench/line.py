"""Measure the line: seconds and memory from prompt to MP4, DiT speed against torch.mm, training and loading rates.

    videogen bench line  ->  assets/bench/line.json

Everything is measured in one run on one machine, as medians of several rounds; compare machines by the ratios.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

from tests.bench.flags import make_parser, parse_flags
from tests.bench.machine import processor_name, write_json

ROOT = Path(__file__).parents[2]
PROMPT = "a large red circle moves right on a black background"


class Extent(NamedTuple):
    """How often everything is measured."""

    processes: int = 5
    stages: int = 5
    evaluations: int = 15
    clips: int = 96  # in the folder that is loaded and trained on
    readings: int = 6
    warm_steps: int = 4  # of training, not counted
    steps: int = 6


SMALL = Extent(processes=1, stages=1, evaluations=1, clips=8, readings=1, warm_steps=0, steps=1)


def time_call(call: Callable[[], object]) -> float:
    """Measure the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure_cold_start(rounds: int) -> dict[str, float]:
    """Measure the command in a new process: seconds, peak memory, and the seconds of --help."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "sample.py"), PROMPT, "--out", f"{out}/clip.mp4", "--overwrite"]
        options = {"check": True, "capture_output": True, "env": os.environ | {"HF_HUB_OFFLINE": "1"}}
        run_seconds = [time_call(lambda: subprocess.run(command, **options)) for _ in range(rounds)]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    help_command = [sys.executable, str(ROOT / "sample.py"), "--help"]
    help_seconds = [
        time_call(lambda: subprocess.run(help_command, check=True, capture_output=True)) for _ in range(rounds)
    ]
    return {
        "prompt_to_mp4_seconds": round(statistics.median(run_seconds), 2),
        "peak_memory_gb": round(peak, 2),
        "help_seconds": round(statistics.median(help_seconds), 2),
    }


def measure_stages(rounds: int) -> dict[str, float]:
    """Measure the seconds of each stage in one process: imports, loading, text, DiT, VAE, encoding."""
    code = "import time; t = time.perf_counter(); import videogen.sampling.clip_sampler; print(time.perf_counter() - t)"
    imports = float(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1]
    )
    from videogen.data.video_io import write_video
    from videogen.models.checkpoint_config import read_checkpoint_info
    from videogen.sampling.clip_sampler import ClipRequest, load_clip_sampler

    began = time.perf_counter()
    pipeline = load_clip_sampler(read_checkpoint_info(ROOT / "assets" / "mini"))
    loading = time.perf_counter() - began
    config = pipeline.defaults
    rows: dict[str, list[float]] = {"text": [], "dit": [], "vae": [], "encode": []}
    for _ in range(rounds):
        rows["text"].append(time_call(lambda: (pipeline.encode_prompts([PROMPT]), pipeline.encode_prompts([""]))))
        began = time.perf_counter()
        (latent,) = pipeline.sample([ClipRequest(PROMPT, 0)], config)
        rows["dit"].append(time.perf_counter() - began - rows["text"][-1])
        began = time.perf_counter()
        frames = torch.cat(list(pipeline.frames(latent)))
        rows["vae"].append(time.perf_counter() - began)
        with tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            write_video(Path(out) / "clip.mp4", frames, fps=config.fps)
            rows["encode"].append(time.perf_counter() - began)
    warm = {name: round(statistics.median(values), 3) for name, values in rows.items()}
    total = round(sum(warm.values()), 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    setup = {"imports": round(imports, 2), "loading": round(loading, 2)}
    return {**setup, **warm, "warm_total": total, "peak_memory_gb": round(peak, 2)}


def measure_dit(rounds: int) -> dict[str, float]:
    """Measure the GFLOP/s of the default DiT, and of torch.mm at its linear layers' shapes, alternating."""
    from videogen.packing.noise import shared_level
    from videogen.packing.packs import pack
    from videogen.sampling.cost import dit_flop
    from videogen.sampling.pipeline import VideoPipeline

    pipeline = VideoPipeline.load(ROOT / "assets" / "mini")
    dit = pipeline.transformer
    noise = torch.randn(pipeline.latent_shape(pipeline.defaults))
    video = pack([noise], dit.base_patch)
    n, d, f = len(video.tokens), dit.config["num_attention_heads"] * dit.head_size, dit.config["ffn_dim"]
    context = pipeline.encode_prompts([PROMPT])
    flop = dit_flop(dict(dit.config), n, context.keys.rows.shape[1])
    x, square, wide, narrow = torch.randn(n, d), torch.randn(d, d), torch.randn(d, f), torch.randn(f, d)
    hidden = torch.randn(n, f)

    def evaluate() -> object:
        return dit(video, shared_level(torch.tensor([0.5]), n), context)

    def products() -> object:
        for _ in range(dit.config["num_layers"]):
            for _ in range(6):
                torch.mm(x, square)
            torch.mm(x, wide)
            torch.mm(hidden, narrow)
        return None

    mm_flop = dit.config["num_layers"] * 2 * n * (6 * d * d + 2 * d * f)
    times: dict[str, list[float]] = {"dit": [], "mm": []}
    with torch.no_grad():
        evaluate()
        for _ in range(rounds):
            times["dit"].append(time_call(evaluate))
            times["mm"].append(time_call(products))
    ours, theirs = flop / statistics.median(times["dit"]) / 1e9, mm_flop / statistics.median(times["mm"]) / 1e9
    return {"tokens": n, "dit_gflops": round(ours, 1), "mm_gflops": round(theirs, 1), "ratio": round(ours / theirs, 3)}


def measure_rates(extent: Extent) -> dict[str, float]:
    """Measure training tokens a second on latents, and the loader's clips a second against decord on the same files."""
    import decord

    from videogen.config.parsing import load_toml
    from videogen.config.train import DataConfig, TrainConfig
    from videogen.data.folder import VideoFolder
    from videogen.toybox.folder import write_folder
    from videogen.training.dit_stage import DitStage
    from videogen.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as root:
        clips = Path(root) / "clips"
        write_folder(clips, num_clips=extent.clips, seed=7)
        folder = VideoFolder(DataConfig(folder=clips), (1, 2, 2))
        loader_seconds, decord_seconds = [], []
        for _ in range(extent.readings):
            loader_seconds.append(time_call(lambda: [folder.read(i) for i in range(len(folder.entries))]))
            decord_seconds.append(
                time_call(lambda: [decode_with_decord(decord, entry.path) for entry in folder.entries])
            )
        config = load_toml(TrainConfig, ROOT / "configs" / "folder-dit.toml")
        config = replace(
            config,
            data=replace(config.data, folder=clips, val_clips=0),
            dit=replace(config.dit, vae=ROOT / "assets" / "mini"),
            run=replace(config.run, dir=Path(root) / "run"),
        )
        trainer = Trainer(DitStage(config), config)
        tokens: list[float] = []
        for step, batch in zip(range(extent.warm_steps + extent.steps), trainer.stage.batches(0), strict=False):
            began = time.perf_counter()
            losses = trainer.train_step([batch], step)
            tokens.append(losses["tokens"] / (time.perf_counter() - began))
    return {
        "training_tokens_per_second": round(statistics.median(tokens[extent.warm_steps :])),
        "loader_clips_per_second": round(len(folder.entries) / statistics.median(loader_seconds), 1),
        "loader_over_raw_decord": round(statistics.median(decord_seconds) / statistics.median(loader_seconds), 3),
    }


def decode_with_decord(decord: object, path: Path) -> object:
    """Decode all frames of a file by decord alone, where it can."""
    try:
        reader = decord.VideoReader(str(path))  # type: ignore[attr-defined]
        return reader.get_batch(range(len(reader))).asnumpy()
    except Exception as error:  # decord refuses some small sizes, and its refusal is part of its time
        return error


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything and write assets/bench/line.json."""
    args = parse_flags(make_parser("line", __doc__), argv)
    extent = SMALL if args.small else Extent()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    result = {
        "machine": f"{processor_name()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "date": date.today().isoformat(),
        "commit": commit.strip(),
        "cold": measure_cold_start(extent.processes),
        "warm_seconds": measure_stages(extent.stages),
        "dit": measure_dit(extent.evaluations),
        "rates": measure_rates(extent),
    }
    print(json.dumps(result, indent=2))
    write_json(args.out, result)


if __name__ == "__main__":
    main()
