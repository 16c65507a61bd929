"""The commands as a user types them: what they write, what they say, and how they end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from videogen.cli.main import main, sample
from videogen.cli.train import train
from videogen.data.video_io import probe, read_settings

ROOT = Path(__file__).parents[1]
QUICK = ["--steps", "2", "--size", "32x32", "--frames", "5"]


def refused(capsys: pytest.CaptureFixture[str], status: int, *words: str, code: int = 2) -> None:
    """The command ended with this status and said one sentence that holds these words."""
    said = capsys.readouterr()
    assert status == code, said.err
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1, said.err
    for word in words:
        assert word in said.err, said.err


def test_a_prompt_becomes_a_clip_that_knows_its_settings(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "clip.mp4"
    assert sample(["a red circle", "--out", str(out), "--seed", "7", "--model", str(checkpoint), *QUICK]) == 0
    assert str(out) in capsys.readouterr().out
    info = probe(out)
    assert (info.width, info.height, info.num_frames) == (32, 32, 5)
    settings = read_settings(out)
    assert settings["prompt"] == "a red circle"
    assert settings["seed"] == 7
    assert settings["steps"] == 2
    assert settings["checkpoint"]["name"] == checkpoint.name  # type: ignore[index]
    assert [path.name for path in out.parent.iterdir()] == ["clip.mp4"]


def test_from_makes_the_same_bytes_and_flags_override(checkpoint: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / f"{name}.mp4" for name in ("first", "again", "other"))
    model = ["--model", str(checkpoint)]
    assert sample(["a blue star", "--seed", "3", "--out", str(first), *model, *QUICK]) == 0
    assert sample(["--from", str(first), "--out", str(again), *model]) == 0
    assert again.read_bytes() == first.read_bytes()
    assert sample(["--from", str(first), "--steps", "3", "--out", str(other), *model]) == 0
    assert read_settings(other)["steps"] == 3
    assert read_settings(other)["seed"] == 3


def test_several_prompts_and_seeds_become_files_with_their_names(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["a red circle", "a blue star", "--num", "2", "--out", str(tmp_path), "--model", str(checkpoint), "--json"]
    assert sample([*words, *QUICK]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(Path(line["path"]).name for line in lines) == [
        "a-blue-star-0.mp4",
        "a-blue-star-1.mp4",
        "a-red-circle-0.mp4",
        "a-red-circle-1.mp4",
    ]


@pytest.mark.parametrize("suffix", [".gif", ".webm", ".png"])
def test_other_formats_are_written(suffix: str, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / f"clip{suffix}"
    frames = "1" if suffix == ".png" else "5"
    words = ["a red circle", "--out", str(out), "--model", str(checkpoint), "--steps", "1", "--size", "32x32"]
    assert sample([*words, "--frames", frames]) == 0
    assert (probe(out).width, probe(out).num_frames) == (32, int(frames))
    assert read_settings(out)["prompt"] == "a red circle"


def test_a_prompts_file_gives_each_row_its_settings(checkpoint: Path, tmp_path: Path) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text(
        'prompt,seed,steps,size,negative\n"a red circle, alone",4,1,32x48,7\na blue star,,,,\n', encoding="utf-8"
    )
    out = tmp_path / "out"
    assert sample(["--prompts", str(table), "--out", str(out), "--model", str(checkpoint), *QUICK]) == 0
    first, second = read_settings(out / "a-red-circle-alone-4.mp4"), read_settings(out / "a-blue-star-0.mp4")
    assert first["negative"] == "7"
    assert (first["steps"], first["size"], second["steps"], second["size"]) == (1, "32x48", 2, "32x32")


def test_latents_are_kept_when_asked(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    assert sample(["x", "--out", str(out), "--model", str(checkpoint), "--save-latents", *QUICK]) == 0
    assert load_file(tmp_path / "clip.safetensors")["latent"].shape[1:] == (2, 4, 4)


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["x", "--out", str(tmp_path / "clip.mp4"), "--model", str(checkpoint), "--dry-run", "--json", *QUICK]
    assert sample(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tokens"] == 8
    assert said["evaluations"] == 4
    assert said["memory_gb"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x", "--stpes", "3"], "did you mean '--steps'"),
        (["x", "--steps", "-3"], "steps must be above 0, got -3"),
        (["x", "--steps", "many"], "many"),
        (["x", "--size", "60x64"], "try 48x64 or 64x64"),
        (["x", "--size", "big"], "WIDTHxHEIGHT"),
        (["x", "--frames", "16"], "try 13 or 17"),
        (["x", "--sampler", "eular"], "euler, heun, dpmpp_2m"),
        (["x", "--guidance", "-1"], "guidance must be 0 or more"),
        (["x", "--num", "0"], "num must be at least 1"),
        (["x", "--out", "clip.avi"], ".mp4, .gif, .webm, .png"),
        (["x", "y", "--out", "clip.mp4"], "one file for 2 clips"),
        (["x", "--out", "clip.png"], "--frames 1"),
        (["x", "--out", "clip.gif", "--fps", "120"], "fps of a .gif must be above 0 and at most 100"),
        (["x", "--device", "cuda"], "--device cpu"),
        (["x", "--offload", "model"], "leave it out with --device cpu"),
        (["x", "--image", "missing.png"], "this model makes clips from prompts alone; leave the image out"),
        (["x", "--last-image", "missing.png"], "goes with a first; give both"),
        (["x", "--seed", str(2**64)], "seed must be a whole number from -2^63 to 2^64 - 1"),
        (["x", "--lora", "missing.safetensors"], "there is no LoRA missing.safetensors"),
        (["--prompts", "missing.txt"], "no prompts file"),
        ([], "give a prompt"),
    ],
)
def test_a_wrong_flag_gets_one_sentence(
    words: list[str], said: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        words = ["x", "--device", "mps"]
    refused(capsys, sample([*words, "--model", str(checkpoint)]), said)



@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a", "steps": 2}\n{"steps": 4}\n', "row 2: every row needs a prompt"),
        ('{"prompt": "a", "stepz": 2}\n', "row 1: unknown column 'stepz'; did you mean 'steps'"),
        ('{"prompt": "a", "steps": "two"}\n', "row 1: steps must be of type int"),
        ('{"prompt": "a"}\n{prompt\n', "row 2:"),
    ],
)
def test_a_bad_row_of_a_prompts_file_is_named_by_its_number(
    text: str, said: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    refused(capsys, sample(["--prompts", str(path), "--model", str(checkpoint)]), said)


def test_a_file_that_exists_is_left_alone(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clip.mp4"
    out.write_text("precious", encoding="utf-8")
    refused(capsys, sample(["x", "--out", str(out), "--model", str(checkpoint), *QUICK]), "exists; add --overwrite")
    assert out.read_text(encoding="utf-8") == "precious"


def test_a_missing_checkpoint_gets_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, sample(["x", "--model", str(tmp_path / "none")]), "no checkpoint folder")
    refused(capsys, sample(["x", "--model", str(tmp_path)]), "model_index.json")


@pytest.mark.parametrize(("change", "said"), [("drop", "lacks proj_out.bias"), ("add", "has an extra weight surplus")])
def test_a_checkpoint_with_a_missing_or_extra_weight_is_refused(
    change: str, said: str, own_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next((own_checkpoint / "transformer").glob("*.safetensors"))
    weights = load_file(path)
    weights = {k: v for k, v in weights.items() if k != "proj_out.bias"} if change == "drop" else weights
    save_file(weights if change == "drop" else weights | {"surplus": torch.zeros(1)}, path, metadata={"format": "pt"})
    refused(capsys, sample(["x", "--model", str(own_checkpoint), *QUICK]), said)


def test_latents_that_are_not_finite_stop_before_anything_is_written(own_checkpoint: Path, tmp_path: Path) -> None:
    path = next((own_checkpoint / "transformer").glob("*.safetensors"))
    weights = load_file(path)
    weights["proj_out.bias"] = torch.full_like(weights["proj_out.bias"], float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    out = tmp_path / "out"
    assert sample(["x", "--out", str(out / "clip.mp4"), "--model", str(own_checkpoint), *QUICK]) == 1
    assert not out.exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    words = ["x", "--out", str(tmp_path / "o" / "clip.mp4"), "--model", str(checkpoint), *QUICK]
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import videogen.sampling.pipeline, videogen.cli.main; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500));"
        f"raise SystemExit(videogen.cli.main.sample({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "could not write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "o").glob("*"))


def test_ctrl_c_ends_with_130_and_nothing_half_written(checkpoint: Path, tmp_path: Path) -> None:
    words = ["x", "--out", str(tmp_path / "clip.mp4"), "--model", str(checkpoint), "--steps", "100000"]
    process = subprocess.Popen([sys.executable, "sample.py", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    time.sleep(12)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_help_answers_without_the_heavy_libraries() -> None:
    code = (
        "import sys, videogen.cli.main\n"
        "try: videogen.cli.main.sample(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'decord'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a recipe"),
        (["configs/none.toml"], "no config file"),
        (["configs/folder-vae.toml", "--run.stepz", "3"], "did you mean '--run.steps'"),
        (["configs/folder-vae.toml", "--optim.lr", "0"], "lr must be above 0"),
        (["configs/folder-vae.toml", "--data", "no-such-folder"], "no folder no-such-folder"),
    ],
)
def test_a_wrong_training_command_gets_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    refused(capsys, train(words), said)


def toybox_dit(checkpoint: Path, out: Path, *more: str) -> list[str]:
    words = ["--dit.vae", str(checkpoint), "--dit.text", str(checkpoint), "--run", str(out / "run"), *more]
    return [str(ROOT / "configs" / "toybox-dit.toml"), *words]


def test_a_dry_run_of_training_says_what_a_folder_becomes_and_writes_nothing(
    clips_folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(clips_folder), "--data.toybox", "0", "--data.val-clips", "2", "--data.token-budget", "160"]
    words = toybox_dit(checkpoint, tmp_path, *data)
    assert train([*words, "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert train([*words, "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert sum(row["clips"] for row in said["clips"]) == 10
    found = [probe(path) for path in clips_folder.rglob("*.mp4")]
    assert {(row["width"], row["height"], row["frames"]) for row in said["clips"]} == {
        (info.width, info.height, info.num_frames) for info in found
    }
    for row in said["clips"]:
        assert row["tokens"] == row["width"] // 16 * (row["height"] // 16) * (1 + (row["frames"] - 1) // 4)
        assert f"{row['width']}x{row['height']}" in table
    assert 0.5 < said["fill"] <= 1
    assert said["tokens"] == round(said["fill"] * said["steps_per_epoch"] * 160)
    assert said["more_steps"]["1x1x1"] > 3 * said["steps_per_epoch"] - 3
    assert list(said["more_steps"]) == ["1x1x1"]
    assert f"{said['tokens']} tokens to train on" in table
    assert f"{said['steps_per_epoch']} packs of at most 160 tokens" in table
    assert f"about {said['memory_gb']:.1f} GB" in table
    assert said["memory_gb"] > 0
    assert (said["seconds_per_step"] or 1) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_only_the_clips_that_a_patch_size_is_trained_in(
    clips_folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No clip of the folder is a multiple of 1x4x4: a share of 0 finds no packs for it, another is refused."""
    recipe = tmp_path / "recipe.toml"
    data = ["--data", str(clips_folder), "--data.toybox", "0", "--data.val-clips", "2"]
    text = (ROOT / "configs" / "toybox-dit.toml").read_text(encoding="utf-8")
    for share in (0.0, 0.1):
        recipe.write_text(text.replace("[dit.patches]", f"[dit.patches]\n1x4x4 = {share} #"), encoding="utf-8")
        status = train([str(recipe), *toybox_dit(checkpoint, tmp_path, *data)[1:], "--dry-run", "--json"])
        if share:
            refused(capsys, status, "1x4x4 have 10% of the steps, and no clip here is trained in them")
        else:
            assert status == 0
            assert json.loads(capsys.readouterr().out)["more_steps"]["1x4x4"] == 0


def test_a_dry_run_names_files_that_cannot_be_used(
    own_clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_clips / "clips" / "broken.mp4").write_text("not a video", encoding="utf-8")
    (own_clips / "clips" / "broken.txt").write_text("a caption", encoding="utf-8")
    assert train(toybox_dit(checkpoint, tmp_path, "--data", str(own_clips), "--data.toybox", "0", "--dry-run")) == 0
    said = capsys.readouterr()
    assert "broken.mp4" in said.err
    assert "1 files not usable" in said.out


def test_a_dry_run_goes_before_the_vae_that_it_would_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "later"
    assert train(toybox_dit(missing, tmp_path, "--data.toybox", "500", "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "500 clips" in said
    assert f"memory and time are not known before {missing} is there" in said


def test_a_dry_run_of_the_vae_counts_its_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(ROOT / "configs" / "toybox-vae.toml"), "--data.toybox", "400", "--run", str(tmp_path / "run")]
    assert train([*words, "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["steps_per_epoch"], said["fill"], said["memory_gb"]) == (42, None, None)  # (400 - 64) / 8
    assert train([*words, "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert "42 steps an epoch of 8 clips each" in table
    assert f"{len(said['clips']) - 16} more" in table  # sizes and lengths beyond the sixteen most frequent


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_a_budget_smaller_than_the_longest_clip_is_told_what_would_work_before_training(
    dry_run: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = toybox_dit(checkpoint, tmp_path, "--data.toybox", "50", "--data.token-budget", "60", *dry_run)
    said = "longest clip, of 320 tokens in patches of 1x1x1, and is 60"
    refused(capsys, train(words), said, "--data.token-budget 320 or more")
    assert not (tmp_path / "run").exists()


def test_a_wrong_key_in_a_recipe_gets_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('stage = "vae"\n[optim]\nlearning_rate = 1e-3\nwarmup_step = 3\n', encoding="utf-8")
    refused(capsys, train([str(recipe)]), "unknown key", "optim.")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no videos in"),
        ({"clip.mp4": "not a video", "clip.txt": "a caption"}, "clip.mp4"),
        ({"clip.mp4": "not a video"}, "no caption"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_gets_a_sentence(
    content: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text, encoding="utf-8")
    status = train([str(ROOT / "configs" / "folder-vae.toml"), "--data", str(folder), "--run", str(tmp_path / "run")])
    assert status == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_toybox_command_writes_a_folder_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "toybox"
    assert main(["toybox", str(out), "--clips", "3", "--frames", "9", "--size", "48x64"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    info = probe(out / "clips" / "000000.mp4")
    assert (info.width, info.height, info.num_frames) == (48, 64, 9)
    refused(capsys, main(["toybox", str(out), "--clips", "3", "--seed", "1"]), "holds something else")


def test_an_unknown_command_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, main(["trian"]), "did you mean 'train'")
