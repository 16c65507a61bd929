"""Summarise a sweep of the default checkpoint: the judge's scores of each setting, and the chosen setting.

    torchrun --nproc-per-node 2 -- sample.py --prompts assets/toybox/prompts.txt --sweep steps=12,24 guidance=3,5 \
        shift=2,3 sampler=dpmpp_2m,dpmpp_2m_sde --reference 0 --score videogen.toybox.judge:score --out sweeps/default
    videogen bench settings sweeps/default  ->  assets/bench/settings.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.bench.judged import BENCH, write_result
from videogen.config.parsing import load_toml, to_mapping
from videogen.config.sample import SampleConfig
from videogen.sweep.results import read_rows
from videogen.sweep.summary import summarise

CLAUSES = ("clauses", "present", "class", "colour", "motion", "all")
MEASURES = ("total_seconds", *(f"score_{name}" for name in CLAUSES))


def main() -> None:
    """Read a finished sweep and write its means."""
    parser = argparse.ArgumentParser(prog="videogen bench settings", description=str(__doc__).split("\n")[0])
    parser.add_argument("sweep", type=Path, help="folder of a sweep with --score videogen.toybox.judge:score")
    parser.add_argument("--out", type=Path, default=BENCH / "settings.json")
    args = parser.parse_args()
    rows = list(read_rows(args.sweep).values())
    if not rows:
        parser.error(f"{args.sweep} has no rows; give the folder of a sweep")
    axes = [name for name in to_mapping(SampleConfig()) if len({str(row[name]) for row in rows}) > 1]
    settings = summarise(rows, axes)
    path = args.sweep / "best.toml"
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
    manifest = json.loads((args.sweep / "sweep.json").read_text(encoding="utf-8"))
    about = {
        "checkpoint": manifest.get("checkpoint"),
        "prompts": len({row["prompt"] for row in rows}),
        "seeds": len({row["seed"] for row in rows}),
    }
    chosen = {name: best[name] for name in axes}
    write_result(
        args.out, {**about, "axes": axes, "rule": rule.removeprefix("# "), "chosen": chosen, "rows": result_rows}
    )
    print(f"{args.out}: {len(result_rows)} settings, chosen {chosen}")


if __name__ == "__main__":
    main()
