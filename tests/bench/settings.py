"""Summarise a sweep of the default checkpoint: the judge's scores of each setting, and the chosen setting.

    torchrun --nproc-per-node 2 -- sample.py --prompts assets/toybox/prompts.txt --sweep steps=12,24 guidance=3,5 \
        shift=2,3 sampler=dpmpp_2m,dpmpp_2m_sde --reference 0 --score videogen.toybox.judge:score --out sweeps/default
    videogen bench settings sweeps/default  ->  assets/bench/settings.json

With --small and no folder it first makes a sweep of two clips itself.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.flags import make_parser, parse_flags
from tests.bench.judged import write_result
from videogen.cli.main import sample
from videogen.config.parsing import load_toml, to_mapping
from videogen.config.sample import SampleConfig
from videogen.sweep.results import read_rows
from videogen.sweep.summary import summarise

CLAUSES = ("clauses", "present", "class", "colour", "motion", "all")
MEASURES = ("total_seconds", *(f"score_{name}" for name in CLAUSES))


def make_small_sweep(folder: Path) -> None:
    """Sweep two settings of one clip, scored by the judge."""
    words = ["a large red circle moves right on a black background", "--sweep", "steps=1,2", "--reference", "0"]
    if sample([*words, "--score", "videogen.toybox.judge:score", "--out", str(folder)]):
        raise RuntimeError("the small sweep failed")


def summarise_sweep(folder: Path) -> dict[str, object]:
    """Read a finished sweep, and compute the means of its settings."""
    rows = list(read_rows(folder).values())
    if not rows:
        raise ValueError(f"{folder} has no rows; give the folder of a sweep")
    axes = [name for name in to_mapping(SampleConfig()) if len({str(row[name]) for row in rows}) > 1]
    settings = summarise(rows, axes)
    path, best, rule = folder / "best.toml", None, "no setting is told from the others by so few clips"
    if path.is_file():
        best = to_mapping(load_toml(SampleConfig, path))
        rule = next(line for line in path.read_text(encoding="utf-8").splitlines() if "The rule" in line)
    means = [
        dict(zip(axes, setting.values, strict=True))
        | {
            name: {"mean": round(mean.value, 4), "half": round(mean.half_width or 0.0, 4)}
            for name, mean in setting.means.items()
        }
        for setting in settings
    ]
    result_rows = [{name: row[name] for name in (*axes, *MEASURES) if name in row} for row in means]
    manifest = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    return {
        "checkpoint": manifest.get("checkpoint"),
        "prompts": len({row["prompt"] for row in rows}),
        "seeds": len({row["seed"] for row in rows}),
        "axes": axes,
        "rule": rule.removeprefix("# "),
        "chosen": None if best is None else {name: best[name] for name in axes},
        "rows": result_rows,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Read a finished sweep and write its means."""
    parser = make_parser("settings", __doc__)
    parser.add_argument(
        "sweep", type=Path, nargs="?", help="folder of a sweep with --score videogen.toybox.judge:score"
    )
    args = parse_flags(parser, argv)
    if args.sweep is None and not args.small:
        parser.error("give the folder of a sweep, made with --score videogen.toybox.judge:score")
    with tempfile.TemporaryDirectory() as own:
        if args.sweep is None:
            make_small_sweep(Path(own) / "sweep")
        result = summarise_sweep(args.sweep or Path(own) / "sweep")
    write_result(args.out, result)
    print(f"{len(result['rows'])} settings, chosen {result['chosen']}")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
