"""Rows of those who install it, and of what is done by libraries that are in the install already."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from tests.bench.border_desk import DIFFERS, FLAGS, PROMPT, REFUSED, Desk, Row, check, differs, say
from tests.bench.damage_kinds import train_words
from tests.bench.flags import ROOT
from tests.lowest import lowest_versions
from videogen.data.video_encode import encode_video
from videogen.data.video_io import probe, read_settings, read_video, write_video
from videogen.intervals import t_quantile
from videogen.sampling.cost import vae_flop

VIDEO, HAND, INSTALL, SHELL = "libraries: video", "libraries: by hand", "the install", "the shell"
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "videogen").rglob("*.py"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOYBOX = ("--size", "64x64", "--frames", "9")
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def python(*words: str, cwd: Path, **environment: str) -> str:
    """Run Python in a folder; its output."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=env)
    check(process.returncode == 0, process.stderr[-500:])
    return process.stdout + process.stderr


def sources_with(pattern: str) -> list[str]:
    """List the files of videogen in which a pattern stands."""
    return [str(path.relative_to(ROOT)) for path, text in SOURCES.items() if re.search(pattern, text)]


# --- libraries


def writes(suffix: str, codec: str = "") -> Callable[[Desk], None]:
    """Try a format: no process is begun for it, and the same frames give the same bytes."""

    def trial(desk: Desk) -> None:
        paths = [desk.place / f"{name}-{codec}{suffix}" for name in ("one", "two")]
        options = {"codec": codec} if codec else {}
        with mock.patch("subprocess.Popen", side_effect=OSError("a process was begun")):
            for path in paths:
                encode_video(path, suffix, list(FRAMES), fps=8, crf=20, **options)
        check(paths[0].read_bytes() == paths[1].read_bytes(), "the bytes differ")
        check(probe(paths[0]).num_frames == 5)

    return trial


def try_long_settings(desk: Desk) -> None:
    """Write settings of a million characters."""
    settings = {"prompt": "x" * 1_000_000}
    write_video(desk.place / "long.mp4", torch.from_numpy(FRAMES), fps=8, settings=settings)
    check(read_settings(desk.place / "long.mp4") == settings)


def try_without_decord(desk: Desk) -> None:
    """Read a video where decord cannot be imported."""
    with mock.patch.dict("sys.modules", {"decord": None}):
        check(len(read_video(desk.clip)) == 1)


def try_torchcodec(desk: Desk) -> None:
    """Look for a reader by torchcodec."""
    if not sources_with("torchcodec"):
        differs("torchcodec is not used: decord reads, and PyAV where decord cannot be believed")


def try_estimates(desk: Desk) -> None:
    """Estimate VAEs of two widths: four times the width costs eight to sixteen times as much."""
    narrow, wide = (vae_flop({"latent_channels": 16, "width": width}, 17, 64 * 64) for width in (32, 128))
    if not 8 < wide / narrow < 16:
        differs(f"a dry run counts {wide / narrow:.1f} times the operations for four times the width")


def completion(shell: str) -> Callable[[Desk], None]:
    """Try to write a completion script for a shell."""

    def trial(desk: Desk) -> None:
        words = [sys.executable, "-m", "videogen", "--tyro-print-completion", shell]
        process = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
        if process.returncode == 2:
            raise ValueError(process.stderr.removeprefix("error: "))
        check("videogen" in process.stdout, process.stderr[-500:])

    return trial


def try_dashes(desk: Desk) -> None:
    """End the flags by --, behind which a prompt may begin with a dash."""
    say(["sample", *FLAGS, "--dry-run", "--", "--a cat--"])


def try_appended_rows(desk: Desk) -> None:
    """Look at whether a sweep appends its rows."""
    text = SOURCES[ROOT / "videogen" / "sweep" / "results.py"]
    if "read_parquet(folder" in text and "def add_row" in text:
        differs("a sweep writes its table anew for each row; a kill leaves it whole")


def try_atomic(desk: Desk) -> None:
    """Look at who renames a finished file: the module of files, and the one of shards, which need an index."""
    found = sources_with(r"\bpart\.(replace|rename)\(")
    check({*found} <= {"videogen/data/files.py", "videogen/data/shards.py"}, found)


def try_signals(desk: Desk) -> None:
    """Look at who handles Ctrl-C and SIGTERM: one module, and workers that leave them to it."""
    found = sources_with(r"signal\.signal\(")
    workers = {"videogen/data/prefetch.py", "videogen/toybox/judge/workers.py"}
    check({*found} - workers == {"videogen/interruption.py"}, found)


def try_quantiles(desk: Desk) -> None:
    """Compute Student's quantile at 31 degrees of freedom: 2.040."""
    check(round(t_quantile(31), 3) == 2.040, t_quantile(31))


def try_properties(desk: Desk) -> None:
    """Look for tests by hypothesis."""
    if not any("hypothesis" in path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")):
        differs("properties are tested on drawn cases of our own, without hypothesis")


def try_reasons(desk: Desk) -> None:
    """Look for why solvers, EMA, caches and the rest are kept by hand."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    if not re.search(r"by hand", text):
        differs("CONTRIBUTING does not say what is kept by hand, and why")


def try_schema(desk: Desk) -> None:
    """Look for a JSON schema of the recipes."""
    if not sources_with("json-schema.org") and not list(ROOT.glob("configs/*.json")):
        differs("recipes have no JSON schema; an unknown key is refused with the nearest one")


# --- the install


def try_beside_a_clone(desk: Desk) -> None:
    """Import from a script beside a clone, installed by the path that pyproject.toml has pip write."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    check(build["targets"]["wheel"]["dev-mode-dirs"] == ["."], build)
    (place := desk.place / "beside").mkdir()
    (place / "videogen").symlink_to(ROOT)
    (place / "script.py").write_text("from videogen import VideoPipeline; import videogen; print(videogen.__file__)")
    (place / "site").mkdir()
    (place / "site" / "videogen.pth").write_text(f"{ROOT}\n")
    # The interpreter may have another checkout installed, which is none of this place's.
    boot = "import os, sys; sys.path[:] = [p for p in sys.path if not os.path.isfile(f'{p}/videogen/__init__.py')]; "
    boot += f"import site, runpy; sys.path.insert(0, '.'); site.addsitedir({str(place / 'site')!r}); "
    said = python("-c", boot + "runpy.run_path('script.py')", cwd=place)
    check(str(ROOT / "videogen" / "__init__.py") in said, said)


def try_names(desk: Desk) -> None:
    """List what videogen exports before it is loaded."""
    said = python("-c", "import videogen; print(dir(videogen))", cwd=desk.place, PYTHONPATH=str(ROOT))
    check("VideoPipeline" in said and "push_to_hub" in said, said)


def packed(desk: Desk) -> Path:
    """Lay out the files of the wheel, as pyproject.toml lists them; the slow tests build it."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    if not (place := desk.place / "wheel").is_dir():
        for folder in build["targets"]["wheel"]["only-include"]:
            first, _, rest = folder.partition("/")
            into = place / build["targets"]["wheel"]["sources"].get(first, first) / rest
            shutil.copytree(ROOT / folder, into, ignore=shutil.ignore_patterns("__pycache__", "*.part"))
    return place


def by_wheel(*words: str) -> Callable[[Desk], None]:
    """Try a command of the files of the wheel, in an empty folder, without the checkout."""

    def trial(desk: Desk) -> None:
        (place := desk.place / f"elsewhere-{words[0]}").mkdir()
        python("-m", "videogen", *words, cwd=place, PYTHONPATH=str(packed(desk)))
        check(list(place.iterdir()), "nothing was written")

    return trial


def try_wheel_judge(desk: Desk) -> None:
    """Judge clips by the files of the wheel."""
    said = python("-m", "videogen", "judge", str(desk.clips), "--json", cwd=desk.place, PYTHONPATH=str(packed(desk)))
    check(json.loads(said.splitlines()[0]), said)


def try_ranges(desk: Desk) -> None:
    """Compare what is installed with the floors, and what is imported with what is named."""
    floors = lowest_versions()
    check({"huggingface-hub", "regex", "ftfy", "bitsandbytes"} <= floors.keys(), sorted(floors))
    check("<" in next(line for line in PROJECT["dependencies"] if line.startswith("tyro")))
    check(any("bitsandbytes" in line for line in PROJECT["optional-dependencies"]["quantise"]))
    needs = importlib.metadata.requires("diffusers") or []
    check(any(line.startswith("huggingface-hub") and floors["huggingface-hub"] in line for line in needs), needs)


def try_recorded_versions(desk: Desk) -> None:
    """Read the version of ftfy, which changes prompts of Wan, off a clip."""
    check("ftfy" in read_settings(desk.clip)["versions"], read_settings(desk.clip)["versions"])  # type: ignore[operator]


def try_lowest(desk: Desk) -> None:
    """Print the lowest versions, and find those of every day."""
    check("torch==" in python(str(ROOT / "tests" / "lowest.py"), cwd=desk.place))
    check((ROOT / ".ci" / "constraints.txt").is_file())


def try_project(desk: Desk) -> None:
    """Look for classifiers, and for URLs."""
    check(len(PROJECT["classifiers"]) > 5)
    if "urls" not in PROJECT:
        differs("classifiers are there; URLs are not, for the repository has no public address yet")


def try_affinity(desk: Desk) -> None:
    """Take no more threads than the CPUs that a process may use."""
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from videogen.cli.threads import count_usable_cores; print(count_usable_cores())"
    check(python("-c", code, cwd=desk.place, PYTHONPATH=str(ROOT)).strip() == "1")


def try_no_color(desk: Desk) -> None:
    """Print help without colours."""
    text = python("-m", "videogen", "sample", "--help", cwd=desk.place, PYTHONPATH=str(ROOT), NO_COLOR="1")
    check("--steps" in text and "\x1b[" not in text)


def try_verbose(desk: Desk) -> None:
    """Ask what the program chose by itself."""
    check("precision: " in say(["sample", PROMPT, *FLAGS, "-v", "--dry-run"]))


def module(*words: str, says: str) -> Callable[[Desk], None]:
    """Try `python -m videogen`."""
    return lambda desk: check(says in python("-m", "videogen", *words, cwd=desk.place, PYTHONPATH=str(ROOT)))


def try_memory(desk: Desk) -> None:
    """Ask what a run would take, before it begins."""
    words = ["--dit.vae", str(desk.vae), "--dit.text", str(ROOT / "assets" / "mini")]
    said = say([*train_words(desk.place / "planned"), *words, "--dry-run", "--json"])
    check(json.loads(said.splitlines()[-1])["memory_gb"] > 0, said)


ROWS = (
    *(Row(VIDEO, f"{suffix} by PyAV, reproducible", writes(suffix)) for suffix in (".mp4", ".webm", ".gif")),
    Row(VIDEO, "settings of a million characters", try_long_settings),
    Row(VIDEO, "AV1", writes(".mp4", "av1")),
    Row(VIDEO, "HEVC", writes(".mp4", "hevc"), REFUSED, "other bytes each time"),
    Row(VIDEO, "reading without decord", try_without_decord),
    Row(VIDEO, "reading by torchcodec", try_torchcodec, DIFFERS, "torchcodec"),
    Row(HAND, "estimates by the VAE's width", try_estimates),
    Row(HAND, "completion of bash", completion("bash")),
    Row(HAND, "completion of zsh", completion("zsh")),
    Row(HAND, "flags that end at --", try_dashes),
    Row(HAND, "rows of a sweep are appended", try_appended_rows, DIFFERS),
    Row(HAND, "files are renamed in one place", try_atomic),
    Row(HAND, "one handler of Ctrl-C and SIGTERM", try_signals),
    Row(HAND, "Student's quantile beyond 30", try_quantiles),
    Row(HAND, "property tests", try_properties, DIFFERS),
    Row(HAND, "why the rest is kept by hand", try_reasons),
    Row(HAND, "a JSON schema of the recipes", try_schema, DIFFERS),
    Row(INSTALL, "a script beside the clone", try_beside_a_clone),
    Row(INSTALL, "dir(videogen)", try_names),
    Row(INSTALL, "the wheel: videogen sample", by_wheel("sample", PROMPT, *FLAGS, "--out", "clip.mp4")),
    Row(INSTALL, "the wheel: videogen toybox", by_wheel("toybox", "clips", "--clips", "2", *TOYBOX)),
    Row(INSTALL, "the wheel: videogen judge", try_wheel_judge),
    Row(INSTALL, "ranges: huggingface-hub, ceilings, regex, ftfy, bitsandbytes", try_ranges),
    Row(INSTALL, "the version of ftfy in a clip", try_recorded_versions),
    Row(INSTALL, "the lowest versions, constraints", try_lowest),
    Row(INSTALL, "classifiers, URLs", try_project, DIFFERS, "URLs"),
    Row(INSTALL, "py.typed", lambda desk: check((ROOT / "videogen" / "py.typed").is_file())),
    Row(INSTALL, "CHANGELOG", lambda desk: check("(unreleased)" in (ROOT / "CHANGELOG.md").read_text("utf-8"))),
    Row(SHELL, "videogen --version", module("--version", says="videogen 0")),
    Row(SHELL, "python -m videogen", module("--help", says="videogen COMMAND --help")),
    Row(SHELL, "NO_COLOR", try_no_color),
    Row(SHELL, "-v", try_verbose),
    Row(SHELL, "CPU affinity", try_affinity),
    Row(SHELL, "memory by --dry-run", try_memory),
)  # fmt: skip
