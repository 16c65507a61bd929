"""Write the tables of the pages from assets/bench: python tests/bench/readme.py. A test checks the pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "assets"
LEAST_CLIPS = 30  # of a clause that is worth a row
PAGES = (ROOT / "README.md", *sorted((ASSETS / "guide").glob("*.md")), ASSETS / "mini" / "README.md")


def format_table(header: list[str], body: list[list[object]]) -> str:
    """Format a Markdown table."""
    rows = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in cells) + " |" for cells in rows)


def line_table(result: dict) -> str:
    """Format the speed of the line."""
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
    return format_table(["64x64, 17 frames, default settings", note], body)


def cold_table(result: dict) -> str:
    """Format the seconds of a new process beside those of its parts."""
    names = {
        "sample.py": "`sample.py PROMPT`",
        "import torch": "`import torch` alone",
        "a clip, warm": "the clip alone: text, denoising, decoding, encoding",
        "sample.py beyond both": "what is left: starting, other imports, loading, first calls",
        "sample.py over both": "the command over its two parts",
        "sample.py --dry-run": "`sample.py PROMPT --dry-run`",
        "sample.py --help": "`sample.py --help`",
    }
    rows, columns = result["seconds"], {"cpu": "seconds of the CPU", "wall": "seconds of the clock"}
    body: list[list[object]] = [
        [label, *(f"{rows[name][key]:.2f}{' times' if 'over' in name else ''}" for key in columns)]
        for name, label in names.items()
    ]
    note = f"{result['machine']}, {result['date']}; default settings, in turns, medians."
    return f"{format_table(['', *columns.values()], body)}\n\n{note}"


def headline_table(result: dict) -> str:
    """Format the five main numbers, each with the command that measures it."""
    wan, packing, sweep, mini = (load_result(name) for name in ("wan", "packing", "sweep", "mini"))
    steps = [row["times_faster"] for row in wan["guided_step"].values()]
    loaders = packing["race"]["loaders"]
    fills = [f"{loaders[name]['fill']:.0%}" for name in ("packed", "buckets", "padded")]
    dropped = loaders["buckets"]["dropped"]
    score = mini["scores"]["held-out captions"]["default"]["all, one thing"]
    cold, warm = load_result("cold")["seconds"], result["warm_seconds"]
    body: list[list[object]] = [
        [
            "prompt to MP4 in a new process, over `import torch` and the clip alone",
            f"{cold['sample.py over both']['cpu']:.2f} times",
            "`videogen bench cold`",
        ],
        [
            "prompt to MP4 on two CPU cores, warm",
            f"{warm['warm_total']} s, {warm['peak_memory_gb']} GB",
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
            percent(score),
            "`videogen bench mini`",
        ],
    ]
    return format_table(["", "measured", "by"], body)


def percent(score: dict) -> str:
    """Format a share with its interval: 97.3% (95.1-98.5); nothing where no clip has the clause."""
    low, high = score["interval"]
    return f"{score['share']:.1%} ({100 * low:.1f}-{100 * high:.1f})" if score["clips"] else ""


def mini_table(result: dict) -> str:
    """Format the shares that a checkpoint reaches, beside the floors that it is held to."""
    default, *others = result["scores"]["held-out captions"]
    body: list[list[object]] = []
    for row in result["floors"]:
        met = {True: "yes", False: "no", None: ""}[row["met"]]
        if "measured" in row:
            cells = {way: percent(score) for way, score in row["measured"].items()}
            body.append([row["name"], f"{row['least']:.0%}", cells[default], met, *(cells.get(w, "") for w in others)])
        else:
            least = "" if row["least"] is None else f"{row['least']:g}"
            body.append([row["name"], least, f"{row['value']:.4g}", met, *("" for _ in others)])
    settings, seconds = result["settings"], result["seconds_a_clip"]
    header = ["clause", "at least", f"{default} ({settings['steps']} steps)", "met", *others]
    length = f"{settings['frames']} frames" if settings["seconds"] is None else f"{settings['seconds']:g} seconds"
    settings_text = f"{settings['size']}, {length}, {settings['sampler']}, guidance {settings['guidance']:g}"
    seeds = f"{result['seeds']} seeds (1 in fewer steps)"
    note = f"{result['clips']} captions of each set (100 paraphrases at most), {seeds}, {settings_text}"
    seconds_text = ", ".join(f"{value:.2f} ({way})" for way, value in seconds.items())
    device_text = "" if result["device"] == "cpu" else f" a {result['device']} device beside"
    machine_text = f"{result['machine']}, each pack on{device_text} one of {result['cores']} cores, {result['date']}"
    return (
        f"{format_table(header, body)}\n\n"
        f"{note}; 95% intervals (Wilson's, clips of one caption counted as alike as they are). "
        f"VAE: means over {result['vae']['clips']} clips. "
        f"Seconds a clip, in packs: {seconds_text}; {machine_text}, checkpoint {result['checkpoint']['sha256']}."
    )


def clauses_table(result: dict) -> str:
    """Format every clause of every set of captions, a table a set."""
    tables = []
    for name, ways in result["scores"].items():
        clauses = dict.fromkeys(clause for way in ways.values() for clause in way)
        no_clips = {"clips": 0, "share": 0, "interval": (0, 1)}
        body: list[list[object]] = [
            [
                clause,
                *(percent(way.get(clause, no_clips)) for way in ways.values()),
                ways["default"].get(clause, no_clips)["clips"],
            ]
            for clause in clauses
        ]
        tables.append(format_table([name, *ways, "clips"], body))
    return "\n\n".join(tables)


def real_overfit_table(result: dict) -> str:
    """Format the PSNR of every caption's sample to every clip."""
    names = [Path(name).stem for name in result["clips"]]
    rows = zip(names, result["psnr"], strict=True)
    return format_table(["caption of", *names], [[name, *(f"{value:.1f}" for value in row)] for name, row in rows])


def sweep_table(result: dict) -> str:
    """Format the times of a sweep beside those of plain loops over the same clips."""
    extent = f"{result['clips']} clips: {' '.join(result['axes'])}, {result['seeds']} seeds"
    alone = f"{result['process_seconds_per_clip']} s a clip ({result['over_processes']}x as slow)"
    body: list[list[object]] = [
        ["loop over one warm pipeline, MP4s only", f"{result['warm_loop_seconds']} s"],
        ["sweep, with measures and rows", f"{result['sweep_seconds']} s ({result['over_warm_loop']}x as fast)"],
        ["`sample.py` once a clip", alone],
    ]
    return format_table([extent, f"{result['machine']}, {result['date']}, commit {result['commit']}, medians"], body)


def settings_table(result: dict) -> str:
    """Format the scores of the default checkpoint's settings; the chosen setting is bold."""
    axes, chosen = result["axes"], {name: str(value) for name, value in result["chosen"].items()}
    shares = ("clauses", "present", "class", "colour", "motion", "all")
    body: list[list[object]] = []
    for row in sorted(result["rows"], key=lambda row: -row["score_clauses"]["mean"]):
        score = row["score_clauses"]
        cells = [*(row[name] for name in axes), f"{row['total_seconds']['mean']:.2f}"]
        cells.append(f"{score['mean']:.0%} ± {100 * score['half']:.0f}")
        cells += [f"{row[f'score_{name}']['mean']:.0%}" for name in shares[1:]]
        is_chosen = all(number_or_text(row[name]) == number_or_text(chosen[name]) for name in axes)
        body.append([f"**{cell}**" if is_chosen else cell for cell in cells])
    extent = f"{result['prompts']} prompts, {result['seeds']} seed{'s' * (result['seeds'] > 1)}, means"
    source = f"clauses with 95% intervals; {result['machine']}, a core, {result['date']}"
    return f"{format_table([*axes, 's a clip', *shares], body)}\n\n{extent}, {source}. {result['rule']}"


def number_or_text(text: str) -> float | str:
    """Read a number where the text is one, so that 3 equals 3.0."""
    try:
        return float(text)
    except ValueError:
        return text


def wan_table(result: dict) -> str:
    """Format guided steps, whole clips and memory beside those of diffusers."""
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
    note = f"{result['machine']}, {result['date']}; random weights, medians in one process."
    return f"{format_table(header, body)}\n\n{note}"


def packing_table(result: dict) -> str:
    """Format packs beside padding and buckets, on the same folder and network."""
    race, names = result["race"], {"packed": "packed", "padded": "padded to the longest", "buckets": "buckets"}
    loaders = [race["loaders"][name] for name in names]
    measures = {
        "fill": ("of the token budget used", ".1%"),
        "dropped": ("clips left out", ".0%"),
        "pixels_lost": ("source pixels cropped or cut off", ".0%"),
        "useful_tokens_per_second": ("clips' own tokens a second", ",.0f"),
        "source_pixels_per_second": ("source pixels a second", ",.0f"),
        "held_out_loss_native": ("held-out loss after equal time", ".2f"),
    }
    body: list[list[object]] = [
        [label, *(format(loader[key], number_format) for loader in loaders)]
        for key, (label, number_format) in measures.items()
    ]
    ratios, attention = race["ratios"], result["grouped_attention"]
    note = (
        f"{race['clips']} clips of {race['sizes_and_lengths']} sizes and lengths, {race['token_budget']:,} tokens a "
        f"pack. Packed over padded {ratios['useful_tokens_over_padded']} times the tokens a second, over buckets "
        f"{ratios['useful_tokens_over_buckets']} times the tokens and {ratios['source_pixels_over_buckets']} times the "
        f"source pixels (medians of neighbouring turns). Attention of such a pack takes "
        f"{attention['a_pack_of_the_folder']} times that of one batch of equal lengths and the same work. "
        f"{result['machine']}, {result['date']}."
    )
    return f"{format_table(['', *names.values()], body)}\n\n{note}"


def framing_table(result: dict) -> str:
    """Format where the subject is, after training on native frames and on square crops of them."""
    body: list[list[object]] = []
    for row in result["rows"]:
        low, high = row["interval"]
        whole = f"{row['whole']:.0%} ({100 * low:.0f}-{100 * high:.0f})"
        body.append([row["trained_on"], row["made_as"], whole, f"{row['found']:.0%}"])
    header = ["trained on", "made as", "subject whole in the frame", "a subject found"]
    note = f"{result['rows'][0]['clips']} captions, {result['steps']} steps of {result['budget']:,} tokens each way"
    return f"{format_table(header, body)}\n\n{note}; 95% intervals (Wilson); {result['machine']}, {result['date']}."


def known_table(result: dict) -> str:
    """Format what a checkpoint makes of what it is given, beside what is wanted."""
    body: list[list[object]] = [
        [row["task"], row["measure"], f"{row['value']:.3g}", row["wanted"]] for row in result["rows"]
    ]
    note = f"{result['clips']} clips a task, default settings; {result['machine']}, {result['date']}"
    return f"{format_table(['task', 'measure', 'measured', 'wanted'], body)}\n\n{note}, {result['checkpoint']['name']}."


def recipes_table(result: dict) -> str:
    """Format the judge's shares of one command on a folder beside the two recipes, trained for the same minutes."""
    ways, steps = result["scores"], result["recipe_steps"]
    body: list[list[object]] = [
        [clause, *(percent(scores[clause]) for scores in ways.values())]
        for clause, score in ways["folder"].items()
        if score["clips"] >= LEAST_CLIPS
    ]
    table = format_table(["clause", "`train.py FOLDER`", "the two recipes"], body)
    extent = f"{result['clips']} clips, {result['minutes']:g} minutes each way, {result['processor']}, {result['date']}"
    taken = f"the recipes took {steps['vae']:,} steps of the VAE and {steps['dit']:,} of the transformer"
    return f"{table}\n\n{extent}; {taken}. 95% intervals (Wilson), clauses of {LEAST_CLIPS} clips or more."


def borders_table(result: dict) -> str:
    """Format how many words of other programs are taken, and which are done in another way."""
    parts: dict[str, dict[str, list[str]]] = {}
    for row in result["answers"]:
        parts.setdefault(row["part"], {}).setdefault(row["answer"], []).append(row["tried"])
    body: list[list[object]] = [
        [part, len(found.get("taken", [])), len(found.get("refused by name", [])), "; ".join(found.get("differs", []))]
        for part, found in parts.items()
    ]
    table = format_table(["", "taken", "refused by name", "done in another way, or not"], body)
    return f"{table}\n\n{result['rows']} words, each tried; {result['date']}."


TABLES = {
    "headline": ("line", headline_table),
    "cold": ("cold", cold_table),
    "line": ("line", line_table),
    "mini": ("mini", mini_table),
    "clauses": ("mini", clauses_table),
    "real_overfit": ("real_overfit", real_overfit_table),
    "sweep": ("sweep", sweep_table),
    "settings": ("settings", settings_table),
    "wan": ("wan", wan_table),
    "packing": ("packing", packing_table),
    "framing": ("framing", framing_table),
    "known": ("known", known_table),
    "borders": ("borders", borders_table),
    "recipes": ("recipes", recipes_table),
}
"""The result file of each table, by the name of its markers, and the function that formats it."""


def replace_table(text: str, name: str, table: str) -> str:
    """Replace the table between its markers in a page; a page without them stays as it is."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if begin not in text:
        return text
    before, after = text.split(begin, 1)
    return f"{before}{begin}{table}\n{end}{after.split(end, 1)[1]}"


def fill_tables(text: str) -> str:
    """Fill in every table of a page from its result file."""
    for name, (file, table) in TABLES.items():
        if (ASSETS / "bench" / f"{file}.json").is_file() and f"<!-- {name} -->" in text:
            text = replace_table(text, name, table(load_result(file)))
    return text


def load_result(name: str) -> dict:
    """Load a result file."""
    return json.loads((ASSETS / "bench" / f"{name}.json").read_text(encoding="utf-8"))


def write_tables(page: Path, tables: Mapping[str, str]) -> None:
    """Write tables into a page, where it has their markers."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = replace_table(text, name, table)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(fill_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
