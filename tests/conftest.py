"""Share real, tiny models among the tests. Every test draws from the same random state and leaves it as it was."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import videogen.cli.sweep  # noqa: F401  # before a test replaces sample.load, which it binds
from videogen.config.parsing import to_mapping
from videogen.config.sample import SampleConfig
from videogen.config.train import DataConfig, DitConfig, OptimConfig, RunConfig, TrainConfig, VaeConfig
from videogen.models import wan_vae_conv
from videogen.models.dit import VideoDiT
from videogen.models.vae import VideoVAE
from videogen.models.vae_network import frames_to_patches
from videogen.packing.packs import PackedText, pack_texts
from videogen.sampling.pipeline import VideoPipeline
from videogen.toybox import Scene, draw_scene, render, write_folder
from videogen.toybox.judge.scores import JudgedClip
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

torch.set_num_threads(1)

CHANNELS, TEXT_DIM = 4, 32
WORDS = (
    "a", "large", "small", "big", "red", "green", "blue", "circle", "square", "star", "moves", "right", "left", "up",
    "down", "on", "black", "white", "background",
)  # fmt: skip
SIZES, LENGTHS = ((48, 48), (64, 48), (48, 64)), (9, 1, 17)


@pytest.fixture(autouse=True)
def random_state() -> Iterator[None]:
    """Seed before a test and restore after it, so that it gives the same alone and among others, on one thread."""
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)  # Benches set their own number, and two threads add up in another order.
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])


@pytest.fixture(autouse=True, scope="session")
def float32_on_every_cpu() -> Iterator[None]:
    """Let "auto" choose float32, so that a test compares the same numbers on all machines."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("cli.sample", "models.precision"):
            patch.setattr(f"videogen.{module}.bf16_instructions", lambda: False)
        patch.setattr("torch.cuda.is_bf16_supported", lambda **_: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def the_cpu_on_every_machine() -> Iterator[None]:
    """Let --device "auto" choose the CPU, where a test may compare bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("videogen.cli.devices.may_have_accelerator", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Let no test fetch a checkpoint, as if its user had set HF_HUB_OFFLINE."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("VIDEOGEN_MAY_FETCH", raising=False)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what is known of files apart from what the user's own runs know."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("caches"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cuts(total: int, rng: random.Random) -> list[int]:
    """Draw random lengths, each at least 1, that add up to the total."""
    parts: list[int] = []
    while total:
        parts.append(rng.randint(1, total))
        total -= parts[-1]
    return parts


def tiny_dit(**changes: object) -> VideoDiT:
    """Build two blocks of width 24 whose weights are all random, so that nothing is hidden by a zero."""
    torch.manual_seed(1)
    options = {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": CHANNELS, "out_channels": CHANNELS,
        "text_dim": TEXT_DIM, "freq_dim": 32, "ffn_dim": 48, "num_layers": 2,
    }  # fmt: skip
    return VideoDiT(**(options | changes)).eval()  # type: ignore[arg-type]


def draw_texts(lengths: tuple[int, ...], text_dim: int = TEXT_DIM, seed: int = 0) -> PackedText:
    generator = seeded(seed)
    return pack_texts([torch.randn(length, text_dim, generator=generator) for length in lengths])


@pytest.fixture(scope="session")
def dit() -> VideoDiT:
    return tiny_dit()


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    """Draw the toybox's scenes of the seeds from 0 on."""
    return [draw_scene(seed) for seed in range(2000)]


@pytest.fixture(scope="session")
def toybox_clips() -> list[Tensor]:
    """Render clips (3, t, h, w) in [-1, 1] of several sizes and lengths."""
    scenes = [draw_scene(seed, sizes=SIZES, lengths=LENGTHS) for seed in range(12)]
    return [rearrange(torch.from_numpy(render(scene)), "t h w c -> c t h w").float() / 127.5 - 1 for scene in scenes]


@pytest.fixture(scope="session")
def toybox_patches(toybox_clips: list[Tensor]) -> Tensor:
    """Cut the clips into patches (n, 768), each first frame standing for four, as the VAE sees it."""
    patches = []
    for clip in toybox_clips:
        video = rearrange(torch.cat([clip[:, :1].expand(-1, 3, -1, -1), clip], dim=1), "c t h w -> 1 t c h w")
        patches.append(rearrange(frames_to_patches(video), "1 t p h w -> (t h w) p"))
    return torch.cat(patches)


@pytest.fixture(scope="session")
def vae(toybox_clips: list[Tensor], toybox_patches: Tensor) -> VideoVAE:
    """Initialise a VAE by PCA, with a little noise on every weight, so that all of its convolutions take part."""
    torch.manual_seed(2)
    model = VideoVAE(CHANNELS, width=8).eval().requires_grad_(False)
    model.init_weights(toybox_patches)
    for weight in model.parameters():
        weight.add_(0.02 * torch.randn(weight.shape))
    raw = torch.cat([model.posterior(clip[None]).mean[0].flatten(1) for clip in toybox_clips], dim=1)
    model.register_to_config(latents_mean=raw.mean(1).tolist(), latents_std=raw.std(1).tolist())
    return model


@pytest.fixture(params=["taps", "winograd", "library"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let every convolution of Wan's VAE that can take a form take it, at sizes where it would not pay."""
    monkeypatch.setattr(
        wan_vae_conv, "winograd_is_faster", lambda x, kernels: request.param == "winograd" and kernels.shape[2] == 3
    )
    if request.param == "library":
        monkeypatch.setattr(wan_vae_conv, "convolve_taps", wan_vae_conv.convolve_conv3d)
    return request.param


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Build a WordPiece tokenizer like BERT's, over the words that the tests use and all letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,."
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys((*WORDS, *letters)), *(f"##{x}" for x in letters)]
    model = Tokenizer(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))  # type: ignore[call-arg]
    model.normalizer, model.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()  # type: ignore[assignment]
    model.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture(scope="session")
def text_encoder(tokenizer: PreTrainedTokenizerFast) -> BertModel:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_DIM, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=48, initializer_range=0.3,
    )  # fmt: skip
    return BertModel(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def pipeline(
    dit: VideoDiT, vae: VideoVAE, text_encoder: BertModel, tokenizer: PreTrainedTokenizerFast
) -> VideoPipeline:
    defaults = SampleConfig(size="48x32", frames=9, steps=3, guidance=2.0)
    tiny = VideoPipeline(dit, vae, text_encoder, tokenizer, defaults=to_mapping(defaults))
    tiny.set_progress_bar_config(disable=True)
    return tiny


@pytest.fixture(scope="session")
def checkpoint(pipeline: VideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the pipeline as a folder, which is read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def own_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    """Copy the checkpoint, so that a test can break it."""
    return Path(shutil.copytree(checkpoint, tmp_path / "own"))


@pytest.fixture(scope="session")
def clips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write ten captioned clips as MP4s, which are read only."""
    folder = tmp_path_factory.mktemp("videos") / "toybox"
    write_folder(folder, num_clips=10, seed=0, sizes=SIZES, lengths=LENGTHS)
    return folder


@pytest.fixture
def own_clips(clips_folder: Path, tmp_path: Path) -> Path:
    """Copy the clips, so that a test can change them."""
    return Path(shutil.copytree(clips_folder, tmp_path / "clips"))


@pytest.fixture
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge one clip of the world and give its verdict to all: judging noise takes seconds a clip."""
    from tests.bench import judged  # it takes all of the judge with it
    from videogen.cli.judge import render_case
    from videogen.toybox.judge import judge, workers

    case = judged.draw_cases(SampleConfig(frames=9), 1)[0]
    verdict = workers.judge_clip(workers.ClipToJudge(case, 0, render_case(case)))

    def copy_verdict(clip: workers.ClipToJudge) -> JudgedClip:
        return verdict._replace(case=clip.case, seed=clip.seed, holds=judge(verdict.found, clip.case.clauses))

    monkeypatch.setattr(judged, "judge_clip", copy_verdict)
    monkeypatch.setattr(workers, "CORES", 1)  # since other processes would judge every clip


def tiny_recipe(stage: str, clips: Path, checkpoint: Path, run_dir: Path, **run: object) -> TrainConfig:
    """Build a recipe whose step takes some ten milliseconds."""
    options = {"dir": run_dir, "steps": 8, "save_every": 4, "val_every": 8, "sample_every": 0} | run
    return TrainConfig(
        stage=stage,  # type: ignore[arg-type]
        data=DataConfig(folder=clips, max_tokens=80, token_budget=240, val_clips=2),
        vae=VaeConfig(channels=CHANNELS, width=8, crop=16, crop_frames=5, batch_clips=2, crops=2),
        dit=DitConfig(
            vae=checkpoint, text=checkpoint, num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=48,
            known={"nothing": 0.5, "first_frame": 0.2, "per_frame": 0.3},
        ),
        optim=OptimConfig(lr=1e-3, warmup_steps=2),
        run=RunConfig(**options),  # type: ignore[arg-type]
        sample=SampleConfig(size="48x32", frames=5, steps=2, guidance=2.0),
    )  # fmt: skip


STAGES = ("vae", "dit")


@pytest.fixture(scope="session")
def finished(clips_folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainConfig]:
    """Train each stage without an interruption: eight steps, saved after four and eight."""
    recipes = {}
    for stage in STAGES:
        recipes[stage] = tiny_recipe(stage, clips_folder, checkpoint, tmp_path_factory.mktemp(stage) / "run")
        torch.manual_seed(11)
        assert fit(recipes[stage])
    return recipes


def fit(recipe: TrainConfig) -> bool:
    return Trainer(make_stage(recipe), recipe).fit()


def elsewhere(recipe: TrainConfig, run_dir: Path, **run: object) -> TrainConfig:
    return replace(recipe, run=replace(recipe.run, dir=run_dir, **run))  # type: ignore[arg-type]


def state_of(run_dir: Path, step: int) -> dict[str, Tensor]:
    """Load the weights, averages and optimiser state after a step."""
    files = sorted((run_dir / f"step_{step:06d}").glob("*.safetensors"))
    assert {path.name for path in files} == {f"{x}.safetensors" for x in ("model", "ema_0", "ema_1", "optimizer")}
    return {f"{path.stem}.{name}": value for path in files for name, value in load_file(path).items()}


def assert_same_state(run_dir: Path, other: Path, step: int) -> None:
    ours, theirs = state_of(run_dir, step), state_of(other, step)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
