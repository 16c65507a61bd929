"""Folders of diffusers' Wan pipelines make the same frames here as in diffusers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v
from diffusers.utils import is_ftfy_available
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import seeded
from tests.wan_folders import KINDS, make_pipeline, save
from videogen.cli.known_material import load_material
from videogen.cli.main import sample
from videogen.cli.sample_arguments import SampleArgs
from videogen.config.sample import MINI, SampleConfig
from videogen.models.checkpoint_config import NO_IMAGE, SAMPLER_OF, read_checkpoint_info
from videogen.models.dit import VideoDiT
from videogen.models.dit_network import LevelContext
from videogen.models.text_encoder import clean_wan_prompt, embed_prompts, load_tokenizer_and_encoder
from videogen.packing.noise import NoiseLevels
from videogen.packing.packs import pad_texts
from videogen.packing.patch_schedule import Patch
from videogen.sampling.known import Known
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.sampling.solvers import DIFFUSERS_SAMPLERS
from videogen.sweep.plan import Run
from videogen.sweep.shared_calls import BatchedRuns

PROMPT, NEGATIVE = "a cat and  dog walk &amp; rain\n in the caf&eacute;", "blurry, worst quality"
SETTINGS = SampleConfig(
    size="32x64", frames=9, steps=4, sampler="unipc", shift=3.0, guidance=4.0, cfg_zero=False, negative=NEGATIVE
)


@pytest.fixture(autouse=True)
def without_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave texts as they are where ftfy is missing: diffusers' image-to-video pipeline would raise a NameError."""
    if not is_ftfy_available():
        monkeypatch.setattr(pipeline_wan_i2v, "ftfy", SimpleNamespace(fix_text=str), raising=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, DiffusionPipeline]]:
    """Save a folder of every kind, with the pipeline that it holds; both are read only."""
    root = tmp_path_factory.mktemp("wan")
    return {kind: (root / kind, save(kind, root / kind)) for kind in KINDS}


def draw_image(seed: int, size: tuple[int, int] = (50, 100)) -> Image.Image:
    """Draw a smooth image that has the aspect of the clips: diffusers would stretch another."""
    pixels = torch.randint(0, 256, (7, 5, 3), generator=seeded(seed), dtype=torch.uint8).numpy()
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def images_for(kind: str) -> list[Known]:
    """Give the first image of a kind that takes one, and the last of one that takes both."""
    if KINDS[kind][0] is WanPipeline:
        return []
    return [Known.first(draw_image(0)), *([Known.last(draw_image(1))] if kind.startswith("FLF") else [])]


def for_diffusers(images: Sequence[Known]) -> dict[str, Image.Image]:
    """Name images as diffusers' image-to-video pipeline does."""
    pictures = [Image.fromarray(image.frames[0].numpy()) for image in images]
    return dict(zip(("image", "last_image"), pictures, strict=False))


@torch.no_grad()
def sample_frames_with_diffusers(
    theirs: DiffusionPipeline, config: SampleConfig, seed: int, images: Sequence[Known]
) -> Tensor:
    """Sample one prompt with diffusers, as frames (t, h, w, 3) in [0, 1]."""
    output = theirs(
        prompt=PROMPT,
        negative_prompt=config.negative,
        height=config.height,
        width=config.width,
        num_frames=config.frames,
        num_inference_steps=config.steps,
        guidance_scale=config.guidance,
        guidance_scale_2=config.guidance_2,
        generator=torch.Generator().manual_seed(seed),
        **for_diffusers(images),
    )
    return torch.from_numpy(np.asarray(output.frames[0]))


def assert_same_frames(ours: Tensor, theirs: Tensor) -> None:
    """Compare every pixel within 1/255, of which half is rounding to whole numbers."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.02, "a uniform clip proves nothing"
    assert (ours.float() / 255 - theirs).abs().max() <= 1 / 255


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_makes_the_frames_that_diffusers_makes(
    kind: str, folders: dict[str, tuple[Path, DiffusionPipeline]]
) -> None:
    folder, theirs = folders[kind]
    ours, images = VideoPipeline.from_pretrained(folder), images_for(kind)
    config = replace(SETTINGS, guidance_2=2.0 if "A14B" in kind else None)
    clips = ours([PROMPT, PROMPT], config, seeds=[5, 6], known=images)
    for clip, seed in zip(clips, (5, 6), strict=True):
        assert_same_frames(clip, sample_frames_with_diffusers(theirs, config, seed, images))


def latents_of(
    theirs: DiffusionPipeline, config: SampleConfig, images: Sequence[Known] = (), **prompts: object
) -> Tensor:
    """Sample one prompt and seed 5 with diffusers, up to the latent (c, t, h, w)."""
    output = theirs(
        **{"prompt": PROMPT, "negative_prompt": config.negative} | prompts,
        height=config.height,
        width=config.width,
        num_frames=config.frames,
        num_inference_steps=config.steps,
        guidance_scale=config.guidance,
        guidance_scale_2=config.guidance_2,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
        **for_diffusers(images),
    )
    return output.frames[0]


def assert_same_latents(ours: Tensor, theirs: Tensor) -> None:
    """Compare up to float32 rounding of two orders of sums, grown over the steps of a multistep solver."""
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


RUNS: dict[str, tuple[str, dict[str, object]]] = {
    "one step": ("T2V 2.1", {"steps": 1}),
    "more steps than noise levels differ": ("T2V 2.1", {"steps": 40, "shift": 12.0, "frames": 1}),
    "no guidance": ("T2V 2.1", {"guidance": 1.0}),
    "nothing to avoid": ("T2V 2.1", {"negative": "", "guidance": 7.5}),
    "an image": ("T2V 2.1", {"frames": 1, "size": "96x16"}),
    "tall and long": ("T2V 2.1", {"frames": 21, "size": "16x48"}),
    "experts of one guidance": ("T2V A14B", {"guidance": 3.0, "steps": 9}),
    "experts with and without": ("T2V A14B", {"guidance": 3.0, "guidance_2": 1.0, "steps": 9}),
    "experts of two": ("I2V A14B", {"guidance": 3.0, "guidance_2": 5.0, "steps": 9}),
    "one image in": ("I2V 2.1", {"frames": 1}),
    "a known frame and no guidance": ("TI2V 5B, image", {"guidance": 1.0, "frames": 5}),
}


@pytest.mark.parametrize(("kind", "changes"), RUNS.values(), ids=RUNS)
def test_every_setting_gives_the_latent_that_diffusers_gives(
    kind: str, changes: dict[str, object], folders: dict[str, tuple[Path, DiffusionPipeline]]
) -> None:
    config = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    folder, theirs = folders[kind]
    theirs.scheduler = type(theirs.scheduler).from_config(theirs.scheduler.config, flow_shift=config.shift)
    (ours,) = VideoPipeline.from_pretrained(folder).sample([ClipRequest(PROMPT, 5, images_for(kind))], config)
    assert_same_latents(ours, latents_of(theirs, config, images_for(kind)))


@pytest.mark.parametrize(
    "options",
    [{"solver_order": 3}, {"solver_order": 1}, {"disable_corrector": [0, 1, 2]}, {"final_sigmas_type": "sigma_min"}],
    ids=lambda options: next(iter(options)),
)
def test_the_checkpoints_own_scheduler_settings_are_used(options: dict[str, object], tmp_path: Path) -> None:
    theirs = make_pipeline("T2V 2.1")
    theirs.scheduler = type(theirs.scheduler).from_config(theirs.scheduler.config, **options)
    theirs.save_pretrained(str(tmp_path))
    config = replace(SETTINGS, steps=9)
    (ours,) = VideoPipeline.from_pretrained(tmp_path).sample([ClipRequest(PROMPT, 5)], config)
    assert_same_latents(ours, latents_of(theirs, config))
    default_latent = latents_of(make_pipeline("T2V 2.1"), config)
    assert (ours - default_latent).abs().max() > 1e-3


def test_a_checkpoint_with_an_euler_scheduler_is_sampled_by_flow_euler(tmp_path: Path) -> None:
    theirs = save("T2V 2.1", tmp_path, scheduler="euler", shift=7.0)
    defaults = read_checkpoint_info(tmp_path).defaults
    assert (defaults.sampler, defaults.shift) == ("flow_euler", 7.0)
    config = replace(SETTINGS, sampler=defaults.sampler, shift=defaults.shift)
    (ours,) = VideoPipeline.from_pretrained(tmp_path).sample([ClipRequest(PROMPT, 5)], config)
    assert_same_latents(ours, latents_of(theirs, config))


def record_timesteps(dit: VideoDiT, record: Callable[[float], object]) -> None:
    """Record the timesteps that a network is asked to answer at, each once."""
    project_levels = dit.project_levels

    def recorded(levels: NoiseLevels, patch: Patch) -> LevelContext:
        for value in (1000 * levels.values).tolist():
            record(value)
        return project_levels(levels, patch)

    dit.project_levels = recorded  # type: ignore[method-assign]


def test_the_network_sees_the_schedulers_timesteps_which_are_not_its_noise_levels(
    folders: dict[str, tuple[Path, DiffusionPipeline]],
) -> None:
    ours = VideoPipeline.from_pretrained(folders["T2V 2.1"][0])
    timesteps: list[float] = []
    record_timesteps(ours.transformer, timesteps.append)
    ours.sample([ClipRequest(PROMPT, 5)], SETTINGS)
    theirs = folders["T2V 2.1"][1].scheduler
    scheduler = type(theirs).from_config(theirs.config, flow_shift=SETTINGS.shift)
    scheduler.set_timesteps(SETTINGS.steps)
    assert timesteps == scheduler.timesteps.tolist()
    assert any(abs(1000 * sigma - t) > 0.1 for sigma, t in zip(scheduler.sigmas.tolist(), timesteps, strict=False))


def test_each_expert_answers_on_its_side_of_the_boundary(folders: dict[str, tuple[Path, DiffusionPipeline]]) -> None:
    ours = VideoPipeline.from_pretrained(folders["T2V A14B"][0])
    evaluations: list[tuple[int, float]] = []
    for i, expert in enumerate(ours.experts):
        record_timesteps(expert, lambda timestep, i=i: evaluations.append((i, timestep)))
    ours.sample([ClipRequest(PROMPT, 5)], replace(SETTINGS, steps=9))
    assert {i for i, _ in evaluations} == {0, 1}
    assert all((timestep >= 875) == (i == 0) for i, timestep in evaluations)


# --- text

TEXTS = (
    PROMPT, "", "  ", "cat", "cat " * 700, "&lt;b&gt; &amp;amp;lt; x", "tab\there\u00a0there\u2003end",
    "a\x1cb\x85c\u200bd", "caf\u00e9 and d\u00f6g", "<>&;#39; &#39;", "A Cat",
)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text)[:24])
def test_a_prompt_is_cleaned_and_embedded_as_in_diffusers(
    text: str, folders: dict[str, tuple[Path, DiffusionPipeline]]
) -> None:
    folder, theirs = folders["T2V 2.1"]
    assert clean_wan_prompt(text) == pipeline_wan.prompt_clean(text)
    padded = theirs._get_t5_prompt_embeds(text, max_sequence_length=512)[0]
    (rows,) = embed_prompts([text], load_tokenizer_and_encoder(folder)[0], theirs.text_encoder)
    packed = pad_texts([rows], 512)
    torch.testing.assert_close(packed.tokens[: len(rows)], padded[: len(rows)], atol=1e-5, rtol=0)  # order of sums
    assert not padded[len(rows) :].any()
    assert packed.weights.sum() == 512
    assert len(packed.tokens) == min(512, len(rows) + 1)


# --- settings


def test_a_checkpoints_defaults_are_those_of_its_model_card(folders: dict[str, tuple[Path, DiffusionPipeline]]) -> None:
    defaults = {kind: read_checkpoint_info(folder).defaults for kind, (folder, _) in folders.items()}
    assert all(
        config.sampler == "unipc" and config.shift == 3.0 and not config.cfg_zero for config in defaults.values()
    )
    common = ("832x480", 81, 16.0)
    for kind, config in defaults.items():
        assert (config.size, config.frames, config.fps) == (("1280x704", 121, 24.0) if "5B" in kind else common)
    guidance = {kind: (config.guidance, config.guidance_2, config.steps) for kind, config in defaults.items()}
    assert guidance["T2V 2.1"] == (5.0, None, 50)
    assert guidance["T2V A14B"] == (4.0, 3.0, 40)
    assert guidance["I2V A14B"] == (3.5, None, 40)
    assert VideoPipeline.from_pretrained(folders["TI2V 5B"][0]).defaults == defaults["TI2V 5B"]


def test_every_scheduler_class_maps_to_the_sampler_that_runs_it() -> None:
    known = {name: sampler for sampler, (name, _) in DIFFUSERS_SAMPLERS.items()}
    assert {name: sampler for name, (sampler, _) in SAMPLER_OF.items()} == known


# --- the command


def test_the_command_writes_the_frames_that_diffusers_makes(
    folders: dict[str, tuple[Path, DiffusionPipeline]], tmp_path: Path
) -> None:
    folder, theirs = folders["T2V 2.1"]
    words = [PROMPT, "--model", str(folder), "--seed", "5", "--size", "48x32", "--frames", "1", "--steps", "3"]
    assert sample([*words, "--negative", NEGATIVE, "--out", str(tmp_path / "a.png")]) == 0
    config = replace(SETTINGS, size="48x32", frames=1, steps=3, guidance=5.0)
    frames = torch.from_numpy(np.array(Image.open(tmp_path / "a.png").convert("RGB")))[None]
    theirs.scheduler = type(theirs.scheduler).from_config(theirs.scheduler.config, flow_shift=3.0)
    assert_same_frames(frames, sample_frames_with_diffusers(theirs, config, 5, []))


def test_the_command_takes_an_image_and_from_makes_the_same_clip_again(
    folders: dict[str, tuple[Path, DiffusionPipeline]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, theirs = folders["TI2V 5B, image"]
    draw_image(0, (100, 50)).save(tmp_path / "first.png")
    words = [PROMPT, "--model", str(folder), "--seed", "5", "--size", "64x32", "--frames", "5", "--steps", "2"]
    words += ["--image", str(tmp_path / "first.png")]
    assert sample([*words, "--out", str(tmp_path / "a.mp4"), "--save-latents"]) == 0
    config = replace(SETTINGS, size="64x32", frames=5, steps=2, guidance=5.0, negative="")
    latent = load_file(tmp_path / "a.safetensors")["latent"]
    assert_same_latents(latent, latents_of(theirs, config, [Known.first(draw_image(0, (100, 50)))]))
    from_words = ["--from", str(tmp_path / "a.mp4"), "--model", str(folder), "--out", str(tmp_path / "b.mp4")]
    assert sample(from_words) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert capsys.readouterr().err.count("error") == 0
    (tmp_path / "words.png").write_text("not an image")
    refused_words = [*words[:-1], str(tmp_path / "words.png"), "--out", str(tmp_path / "c.mp4")]
    assert sample(refused_words) == 2
    assert "Pillow finds no whole picture in it" in capsys.readouterr().err
    assert sample([*words[:-1], str(tmp_path / "gone.png"), "--out", str(tmp_path / "c.mp4")]) == 2
    assert "gone.png; give another with --image" in capsys.readouterr().err


def test_an_image_to_video_model_without_an_image_is_refused_before_it_is_loaded(
    folders: dict[str, tuple[Path, DiffusionPipeline]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("videogen.cli.sample.load", lambda *args: pytest.fail("the model was loaded"))
    words = [PROMPT, "--model", str(folders["I2V 2.1"][0]), "--size", "64x32", "--frames", "5"]
    for more in ([], ["--sweep", "steps=1,2"]):
        assert sample([*words, *more]) == 2
        assert NO_IMAGE in capsys.readouterr().err


def test_opened_images_are_upright_and_in_8_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation tag: rotate clockwise
    Image.new("RGB", (40, 20)).save(tmp_path / "phone.jpg", exif=exif)
    image = Image.fromarray(np.full((8, 8), 20000, np.uint16))
    image.save(tmp_path / "deep.png")
    args = SampleArgs(image=(str(tmp_path / "phone.jpg"), f"{tmp_path / 'deep.png'}@last"))
    first, last = load_material(args, read_checkpoint_info(MINI)).known
    assert first.frames.shape == (1, 40, 20, 3)
    assert last.frames[0, 0, 0].tolist() == [77, 77, 77]


def test_an_image_encoder_that_lacks_weights_is_refused(
    folders: dict[str, tuple[Path, DiffusionPipeline]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["I2V 2.1"][0], tmp_path / "i2v"))
    path = folder / "image_encoder" / "model.safetensors"
    weights = load_file(path)
    del weights[min(weights)]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"image_encoder lacks .*; its weights do not belong to its config.json"):
        VideoPipeline.load(folder)


def test_a_sweep_of_two_experts_makes_the_latents_of_each_run_alone(
    folders: dict[str, tuple[Path, DiffusionPipeline]],
) -> None:
    ours = VideoPipeline.from_pretrained(folders["T2V A14B"][0])
    configs = [replace(SETTINGS, guidance_2=guidance) for guidance in (None, 1.0, 2.0)]
    runs = [Run(PROMPT, 5, config) for config in configs]
    for run, result in zip(runs, BatchedRuns(ours).denoise(runs), strict=True):
        assert result.latent is not None, result.error
        assert_same_latents(result.latent, ours.sample([ClipRequest(PROMPT, 5)], run.config)[0])
