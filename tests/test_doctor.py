"""videogen doctor: what it prints, its exit status, its page, and what it compares and plans."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_video_io import H264, ffmpeg, make_video
from videogen.cli.main import main
from videogen.config.train import DataConfig
from videogen.doctor.caption_length import find_long_captions
from videogen.doctor.duplicates import group_duplicates
from videogen.doctor.examine import examine

HOSTILE = "<img src=x onerror=\"document.title='run'\">&amp;<!-- files -->"
PATCH = (1, 2, 2)


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a good clip, its copy, an empty file, a clip without caption and a hostile name."""
    folder = tmp_path_factory.mktemp("ill") / "clips"
    folder.mkdir()
    make_video(folder / "good.mp4", size="96x64")
    ffmpeg("-i", folder / "good.mp4", "-vf", "scale=64:48", "-crf", "30", folder / "again.mp4")
    make_video(folder / f"{HOSTILE.replace('/', '')}.mp4", *H264, "-vf", "hue=h=90,negate", size="96x64")
    (folder / "[bold]empty.mp4").touch()
    for path in list(folder.glob("*.mp4")):
        path.with_suffix(".txt").write_text(f"text {HOSTILE}", encoding="utf-8")
    make_video(folder / "silent.mp4", *H264, "-vf", "vflip,hue=h=200", size="96x64")
    return folder


def test_the_table_has_the_worst_first_with_counts_and_names(ill: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(ill), "--quiet"]) == 3
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].endswith("clips: 5 files, 3 can be used")
    levels = [line.split()[0] for line in lines if line.split()[:1] in (["unusable"], ["warning"], ["note"])]
    assert levels == ["unusable", "unusable", "warning", "note"], out
    assert re.search(r"warning +1 +near duplicate +again\.mp4: it looks like good\.mp4", " ".join(out.split()))
    assert "an epoch is 3 clips of" in " ".join(out.split())
    assert "[bold]empty.mp4: the file is empty" in " ".join(out.split())  # a name is no markup


def test_a_folder_with_nothing_but_notes_has_status_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_video(tmp_path / "good.mp4", size="96x64")
    make_video(tmp_path / "oblong.mp4", *H264, "-vf", "hue=h=90,negate,setsar=4/3", size="64x64")
    for name in ("good", "oblong"):
        (tmp_path / f"{name}.txt").write_text("a test picture", encoding="utf-8")
    assert main(["doctor", str(tmp_path), "--quiet"]) == 0
    assert "oblong.mp4: its pixels are 4:3" in " ".join(capsys.readouterr().out.split())


def test_clips_of_the_toybox_are_neither_alike_nor_black_nor_barred_nor_cut(clips_folder: Path) -> None:
    """Their walls may be black, and their things stand still."""
    found = examine(DataConfig(folder=clips_folder), PATCH)
    assert found.prospects.clips == 10
    assert {finding.kind for _, finding in found.located_findings()} <= {"frozen", "repeats", "one_frame"}


def test_json_has_every_file_with_what_training_makes_of_it(ill: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(ill), "--quiet", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    files = {file["path"]: file for file in found["files"]}
    assert files["good.mp4"]["clip"] == {"frames": 5, "width": 96, "height": 64, "num_tokens": 48}
    assert files["good.mp4"]["file"] | {"fps": 24.0, "codec": "h264"} == files["good.mp4"]["file"]
    assert files["again.mp4"]["same_as"] == "good.mp4"
    assert [f["kind"] for f in files["[bold]empty.mp4"]["findings"]] == ["empty"]
    assert files["[bold]empty.mp4"]["usable"] is files["silent.mp4"]["usable"] is False
    assert found["epoch"]["clips"] == 3
    assert found["epoch"]["minutes"] is None  # no run has measured it


def test_the_plan_follows_the_recipe_and_the_speed_of_its_run(
    ill: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": i, "tokens_per_second": speed} for i, speed in enumerate((1.0, 2.0, 90.0))]
    (run / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"cut', encoding="utf-8")
    recipe = f'stage = "dit"\n[data]\nmax_tokens = 12\ntoken_budget = 40\n[run]\ndir = {json.dumps(str(run))}\n'
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    assert main(["doctor", str(ill), "--recipe", str(tmp_path / "recipe.toml"), "--json", "--quiet"]) == 3
    found = json.loads(capsys.readouterr().out)
    clips = [file["clip"] for file in found["files"] if file["clip"]]
    assert all(clip["num_tokens"] <= 12 for clip in clips)
    tokens = sum(clip["num_tokens"] for clip in clips)
    assert found["epoch"]["tokens"] == tokens
    assert found["epoch"]["packs"] == 1
    assert found["epoch"]["fill"] == pytest.approx(tokens / 40)
    assert found["epoch"]["minutes"] == pytest.approx(tokens / 2 / 60)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no folder nowhere; give one with videos in it"),
        (["{empty}"], "no videos in "),
        (["{ill}", "--html", "page.txt"], "--html must name a page to write, such as page.html, got page.txt"),
        (["{ill}", "--recipe", "gone.toml"], "gone.toml"),
        (["{ill}", "--jsn"], "unknown flag --jsn; did you mean '--json'?"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(
    ill: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *(word.format(ill=ill, empty=tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_the_doctor_imports_no_torch(ill: Path) -> None:
    program = f"import sys; from videogen.cli.main import main; main(['doctor', {str(ill)!r}, '--quiet']); "
    program += "print({'torch', 'transformers', 'diffusers'} & set(sys.modules), file=sys.stderr)"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stderr.strip() == "set()"


# --- the page


def test_the_page_escapes_all_that_a_file_can_say(ill: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    assert main(["doctor", str(ill), "--quiet", "--html", str(page)]) == 3
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert text.count("&lt;img src=x") == 1
    assert text.count("<article") == 5
    assert text.count("data:image/webp;base64,") == 4  # all but the empty file
    assert text.count("<!-- ") == 0


# --- near duplicates


def test_duplicates_are_found_among_thousands_and_nothing_else() -> None:
    """Every tenth of 3000 pictures of noise has a copy with the noise of coding."""
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 256, (3000, 1152))
    copies = (looks[::10] + rng.normal(0, 5, (300, 1152))).clip(0, 255)
    prints = [look.astype(np.uint8).tobytes() for look in (*looks, *copies)]
    assert sorted(group_duplicates(prints)) == [[10 * i, 3000 + i] for i in range(300)]


def test_pictures_of_one_colour_and_unread_files_are_no_duplicates() -> None:
    flat = bytes([200]) * 1152
    assert group_duplicates([flat, flat, b"", b""]) == []


# --- captions


def test_a_caption_longer_than_the_text_encoder_reads_is_named(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    long, short = "red circle " * 60, "red circle " * 20
    found = find_long_captions({path: (short, long), tmp_path / "b.mp4": (short,), tmp_path / "c.mp4": ()}, checkpoint)
    assert found.keys() == {path}
    assert found[path].words == "a caption of 122 tokens; the text encoder reads the first 48"


def test_an_interrupted_examination_goes_on_where_it_stopped(
    ill: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from videogen.doctor import examine as module

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    looked_at: list[Path] = []
    look = module.judge_frames

    def count(path: Path) -> object:
        looked_at.append(path)
        return look(path)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "judge_frames", count)
    with pytest.raises(KeyboardInterrupt):
        examine(DataConfig(folder=ill), PATCH, on_file=stop)
    num_before = len(looked_at)
    assert 2 <= num_before <= 5
    examine(DataConfig(folder=ill), PATCH)
    assert len(looked_at) == 5
