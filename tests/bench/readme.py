"""Write the tables of README, guide and model card from assets/bench: python tests/bench/readme.py. A test checks them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "assets"
PAGES = (ROOT / "README.md", *sorted((ASSETS / "guide").glob("*.md")), ASSETS / "mini" / "README.md")


def rows(header: list[str], body: list[list[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def line(result: dict) -> str:
    """The speed of the line."""
    cold, warm, dit, rates = (result[name] for name in ("cold", "warm_seconds", "dit", "rates"))
    parts = ", ".join(f"{name} {warm[name]}" for name in ("imports", "loading", "text", "dit", "vae", "encode"))
    body: list[list[object]] = [
        ["prompt to MP4, new process", f"{cold['prompt_to_mp4_seconds']} s, {cold['peak_memory_gb']} GB at most"],
        ["prompt to MP4, warm", f"{warm['warm_total']} s, {warm['peak_memory_gb']} GB at most"],
        ["of which, seconds", parts],
        ["`sample.py --help`", f"{cold['help_seconds']} s"],
        [f"DiT, one evaluation on {dit['tokens']} tokens", f"{dit['dit_gflops']} GFLOP/s"],
        ["torch.mm at its shapes, same run", f"{dit['mm_gflops']} GFLOP/s (the DiT reaches {dit['ratio']:.0%})"],
        ["training", f"{rates['training_tokens_per_second']:,} tokens/s"],
        ["loading", f"{rates['loader_clips_per_second']} clips/s, {rates['loader_over_raw_decord']}x raw decord"],
    ]
    note = f"{result['machine']}, {result['date']}, commit {result['commit']}, medians"
    return rows(["64x64, 17 frames, default settings", note], body)


def headline(result: dict) -> str:
    """The five numbers that matter, each with the command behind it."""
    wan, packing, sweep, mini = (load(name) for name in ("wan", "packing", "sweep", "mini"))
    steps = [row["times_faster"] for row in wan["guided_step"].values()]
    packs = packing["race"]["loaders"]
    fills = [f"{packs[name]['fill']:.0%}" for name in ("packed", "buckets", "padded")]
    dropped = packs["buckets"]["dropped"]
    held = mini["scores"]["held-out captions"]["default"]["all, one thing"]
    cold = result["cold"]
    body: list[list[object]] = [
        [
            "prompt to MP4 on two CPU cores, new process / warm",
            f"{cold['prompt_to_mp4_seconds']} s / {result['warm_seconds']['warm_total']} s, {cold['peak_memory_gb']} GB",
            "`videogen bench line`",
        ],
        [
            "a guided step of Wan's transformer beside diffusers, same CPU",
            f"{min(steps):g} to {max(steps):g} times as fast",
            "`videogen bench wan`",
        ],
        [
            "share of a training step's tokens that are clips: packed / in buckets / padded",
            f"{' / '.join(fills)}; buckets leave out {dropped:.0%} of the clips",
            "`videogen bench packing`",
        ],
        [
            "a sweep of 36 clips beside a loop over one warm pipeline",
            f"{sweep['over_warm_loop']} times as fast, measures included",
            "`videogen bench sweep`",
        ],
        [
            "captions about one thing that the shipped checkpoint follows in every clause",
            percent(held),
            "`videogen bench mini`",
        ],
    ]
    return rows(["", "measured", "by"], body)


def percent(score: dict) -> str:
    """A share with its interval: 97.3% (95.1-98.5); nothing where no clip was asked."""
    low, high = score["interval"]
    return f"{score['share']:.1%} ({100 * low:.1f}-{100 * high:.1f})" if score["clips"] else ""


def mini(result: dict) -> str:
    """What a checkpoint gets right, beside the floors that it is held to."""
    default, *others = result["scores"]["held-out captions"]
    body: list[list[object]] = []
    for row in result["floors"]:
        met = {True: "yes", False: "no", None: ""}[row["met"]]
        if "measured" in row:
            cells = {way: percent(score) for way, score in row["measured"].items()}
            body.append([row["name"], f"{row['least']:.0%}", cells[default], met, *(cells.get(w, "") for w in others)])
        else:
            body.append([row["name"], f"{row['least']:g}", f"{row['value']:.4g}", met, *("" for _ in others)])
    settings, seconds = result["settings"], result["seconds_a_clip"]
    header = ["clause", "at least", f"{default} ({settings['steps']} steps)", "met", *others]
    length = f"{settings['frames']} frames" if settings["seconds"] is None else f"{settings['seconds']:g} seconds"
    how = f"{settings['size']}, {length}, {settings['sampler']}, guidance {settings['guidance']:g}"
    seeds = f"{result['seeds']} seeds (1 in fewer steps)"
    note = f"{result['clips']} captions of each set (100 paraphrases at most), {seeds}, {how}"
    took = ", ".join(f"{value:.2f} ({way})" for way, value in seconds.items())
    on = "" if result["device"] == "cpu" else f" a {result['device']} device beside"
    where = f"{result['machine']}, each pack on{on} one of {result['cores']} cores, {result['date']}"
    return (
        f"{rows(header, body)}\n\n{note}; 95% intervals (Wilson's, clips of one caption counted as alike as they are). "
        f"VAE: means over {result['vae']['clips']} clips. "
        f"Seconds a clip, in packs: {took}; {where}, checkpoint {result['checkpoint']['sha256']}."
    )


def clauses(result: dict) -> str:
    """Every clause of every set of captions, a table a set."""
    tables = []
    for name, ways in result["scores"].items():
        found = dict.fromkeys(clause for way in ways.values() for clause in way)
        none = {"clips": 0, "share": 0, "interval": (0, 1)}
        body: list[list[object]] = [
            [
                clause,
                *(percent(way.get(clause, none)) for way in ways.values()),
                ways["default"].get(clause, none)["clips"],
            ]
            for clause in found
        ]
        tables.append(rows([name, *ways, "clips"], body))
    return "\n\n".join(tables)


def real_overfit(result: dict) -> str:
    """Captions against clips."""
    names = [Path(name).stem for name in result["clips"]]
    table = zip(names, result["psnr"], strict=True)
    return rows(["caption of", *names], [[name, *(f"{value:.1f}" for value in row)] for name, row in table])


def sweep(result: dict) -> str:
    """A sweep against plain loops over the same clips."""
    what = f"{result['clips']} clips: {' '.join(result['axes'])}, {result['seeds']} seeds"
    alone = f"{result['process_seconds_per_clip']} s a clip ({result['over_processes']}x as slow)"
    body: list[list[object]] = [
        ["loop over one warm pipeline, MP4s only", f"{result['warm_loop_seconds']} s"],
        ["sweep, with measures and rows", f"{result['sweep_seconds']} s ({result['over_warm_loop']}x as fast)"],
        ["`sample.py` once a clip", alone],
    ]
    return rows([what, f"{result['machine']}, {result['date']}, commit {result['commit']}, medians"], body)


def settings(result: dict) -> str:
    """What the default checkpoint's settings give, by the judge; the chosen one is bold."""
    axes, chosen = result["axes"], {name: str(value) for name, value in result["chosen"].items()}
    shares = ("clauses", "present", "class", "colour", "motion", "all")
    body: list[list[object]] = []
    for row in sorted(result["rows"], key=lambda row: -row["score_clauses"]["mean"]):
        clauses = row["score_clauses"]
        cells = [*(row[name] for name in axes), f"{row['total_seconds']['mean']:.2f}"]
        cells.append(f"{clauses['mean']:.0%} ± {100 * clauses['half']:.0f}")
        cells += [f"{row[f'score_{name}']['mean']:.0%}" for name in shares[1:]]
        same = all(float_or(row[name]) == float_or(chosen[name]) for name in axes)
        body.append([f"**{cell}**" if same else cell for cell in cells])
    what = f"{result['prompts']} prompts, {result['seeds']} seed{'s' * (result['seeds'] > 1)}, means"
    where = f"clauses with 95% intervals; {result['machine']}, a core, {result['date']}"
    return f"{rows([*axes, 's a clip', *shares], body)}\n\n{what}, {where}. {result['rule']}"


def float_or(text: str) -> float | str:
    """A number where it is one: 3 is 3.0."""
    try:
        return float(text)
    except ValueError:
        return text


def wan(result: dict) -> str:
    """Guided steps beside diffusers', and the whole way."""
    body: list[list[object]] = [
        [
            f"a guided step, {name}",
            f"{row['diffusers_ms']:,} ms",
            f"{row['videogen_ms']:,} ms",
            row["times_faster"],
            f"{row['floor_share']:.0%}",
        ]
        for name, row in result["guided_step"].items()
    ]
    for name, row in result["prompt_to_mp4"].items():
        body.append([f"prompt to MP4, {name}", *(f"{row[f'{who}_seconds']} s" for who in ("diffusers", "videogen"))])
        body[-1] += [row["times_faster"], ""]
    for name, row in result["memory"].items():
        body.append([f"memory, {name}", f"{row['diffusers_mb']} MB", f"{row['videogen_mb']} MB", "", ""])
    header = ["", "WanPipeline", "videogen", "times as fast", "of it products and attention"]
    return f"{rows(header, body)}\n\n{result['machine']}, {result['date']}; random weights, medians in one process."


def packing(result: dict) -> str:
    """Packs beside padding and buckets, on the same folder and network."""
    race, names = result["race"], {"packed": "packed", "padded": "padded to the longest", "buckets": "buckets"}
    loaders = [race["loaders"][name] for name in names]
    shown = {
        "fill": ("of the token budget used", ".1%"),
        "dropped": ("clips left out", ".0%"),
        "pixels_lost": ("source pixels cropped or cut off", ".0%"),
        "useful_tokens_per_second": ("clips' own tokens a second", ",.0f"),
        "source_pixels_per_second": ("source pixels a second", ",.0f"),
        "held_out_loss_native": ("held-out loss after equal time", ".2f"),
    }
    body: list[list[object]] = [
        [label, *(format(loader[key], form) for loader in loaders)] for key, (label, form) in shown.items()
    ]
    over, alone = race["ratios"], result["grouped_attention"]
    note = (
        f"{race['clips']} clips of {race['sizes_and_lengths']} sizes and lengths, {race['token_budget']:,} tokens a "
        f"pack. Packed over padded {over['useful_tokens_over_padded']} times the tokens a second, over buckets "
        f"{over['useful_tokens_over_buckets']} times the tokens and {over['source_pixels_over_buckets']} times the "
        f"source pixels (medians of neighbouring turns). Attention of such a pack takes "
        f"{alone['a_pack_of_the_folder']} times that of one batch of equal lengths and the same work. "
        f"{result['machine']}, {result['date']}."
    )
    return f"{rows(['', *names.values()], body)}\n\n{note}"


def framing(result: dict) -> str:
    """Where the subject is, after training on native frames and on square crops of them."""
    body: list[list[object]] = []
    for row in result["rows"]:
        low, high = row["interval"]
        whole = f"{row['whole']:.0%} ({100 * low:.0f}-{100 * high:.0f})"
        body.append([row["trained_on"], row["made_as"], whole, f"{row['found']:.0%}"])
    header = ["trained on", "made as", "subject whole in the frame", "a subject found"]
    note = f"{result['rows'][0]['clips']} captions, {result['steps']} steps of {result['budget']:,} tokens each way"
    return f"{rows(header, body)}\n\n{note}; 95% intervals (Wilson); {result['machine']}, {result['date']}."


TABLES = {
    "headline": ("line", headline),
    "line": ("line", line),
    "mini": ("mini", mini),
    "clauses": ("mini", clauses),
    "real_overfit": ("real_overfit", real_overfit),
    "sweep": ("sweep", sweep),
    "settings": ("settings", settings),
    "wan": ("wan", wan),
    "packing": ("packing", packing),
    "framing": ("framing", framing),
}
"""Each table by the name of its markers: the result file it is made from, and how."""


def put(text: str, name: str, table: str) -> str:
    """A page with a table between its markers; the same page where it has none."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if begin not in text:
        return text
    before, after = text.split(begin, 1)
    return f"{before}{begin}{table}\n{end}{after.split(end, 1)[1]}"


def filled(text: str) -> str:
    """A page with every table as its result file has it."""
    for name, (file, table) in TABLES.items():
        if (ASSETS / "bench" / f"{file}.json").is_file() and f"<!-- {name} -->" in text:
            text = put(text, name, table(load(file)))
    return text


def load(name: str) -> dict:
    """A result file."""
    return json.loads((ASSETS / "bench" / f"{name}.json").read_text(encoding="utf-8"))


def write(page: Path, tables: Mapping[str, str]) -> None:
    """Put tables into a page, where it has their markers."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = put(text, name, table)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
