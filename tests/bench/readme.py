"""Write the tables of README and model card from assets/bench: python tests/bench/readme.py. A test checks them."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "assets" / "mini" / "README.md")


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


def mini(result: dict) -> str:
    """What the default checkpoint gets right, between its ceilings and its floor."""
    kinds = ("world's own clips", "after the VAE", "generated", "shuffled captions")
    body: list[list[object]] = [[kind, *(f"{result[kind][k]:.0%}" for k in result[kind])] for kind in kinds]
    table = rows(["", *result[kinds[0]]], body)
    vae = f"VAE on the same clips: {result['vae_psnr_db']} dB, foreground IoU {result['vae_foreground_iou']}."
    return f"{table}\n\n{result['protocol']}. {vae}"


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


TABLES = {"line": line, "mini": mini, "real_overfit": real_overfit, "sweep": sweep}


def filled(text: str) -> str:
    """A page with every table as its result file has it."""
    for name, table in TABLES.items():
        path = ROOT / "assets" / "bench" / f"{name}.json"
        if path.is_file() and f"<!-- {name} -->" in text:
            made = table(json.loads(path.read_text(encoding="utf-8")))
            before, after = text.split(f"<!-- {name} -->\n", 1)
            text = f"{before}<!-- {name} -->\n{made}\n<!-- end -->{after.split('<!-- end -->', 1)[1]}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
