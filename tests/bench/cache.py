"""Time the caches of training: an index of a million latents, their records, and captions embedded by few and many.

videogen bench cache  ->  assets/bench/cache.json: seconds, megabytes, rows a second
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.bench.flags import make_parser, parse_flags
from tests.bench.machine import Rows, publish
from videogen.config.sample import MINI
from videogen.data.shards import INDEX, INSERT, KEY_BYTES, ShardStore, connect
from videogen.models.precision import bf16_instructions
from videogen.models.text_encoder import load_tokenizer_and_encoder
from videogen.toybox import draw_scene
from videogen.toybox.world.free_captions import free_caption
from videogen.training.caches import TextCache

BATCHES = (46, 736)  # captions of one and of sixteen batches of configs/toybox-dit.toml

# A process of its own, since what this one holds would hide what the index takes.
OPEN = """
import sys, time
import torch  # which every reader has imported before
from pathlib import Path
from videogen.data.shards import ShardStore
from videogen.sweep.resource_usage import peak_memory_gb
cpu = torch.device("cpu")
before, began = peak_memory_gb(cpu), time.perf_counter()
store = ShardStore(Path(sys.argv[1]))
store.load(bytes.fromhex(sys.argv[2]))
print(time.perf_counter() - began, 1000 * (peak_memory_gb(cpu) - before))
"""


def fill_index(folder: Path, num_rows: int) -> bytes:
    """Write an index of random keys and places, in the order in which training meets clips; return one of the keys."""
    folder.mkdir(parents=True)
    with contextlib.closing(connect(folder / INDEX)) as database:
        database.execute("BEGIN")
        rows = ((secrets.token_bytes(KEY_BYTES), number // 50_000, number * 20_000) for number in range(num_rows))
        database.executemany(INSERT, rows)
        database.execute("COMMIT")
        return database.execute("SELECT key FROM records LIMIT 1 OFFSET ?", (num_rows // 2,)).fetchone()[0]


def measure_index(folder: Path, num_rows: int) -> dict[str, float]:
    """Time how long a new process takes to open an index and to find nothing at one of its rows."""
    key = fill_index(folder, num_rows)
    command = [sys.executable, "-c", OPEN, str(folder), key.hex()]
    answers = [subprocess.run(command, capture_output=True, check=True, text=True).stdout for _ in range(3)]
    seconds, memory = (max(map(float, column)) for column in zip(*map(str.split, answers), strict=True))
    return {
        "rows": float(num_rows),
        "seconds to open and find": round(seconds, 4),
        "MB of memory": round(memory, 1),
        "MB on disk": round((folder / INDEX).stat().st_size / 1e6, 1),
    }


def measure_records(folder: Path, num_records: int) -> dict[str, Rows]:
    """Time writing records of latents of 17 frames of 64x64 pixels, and reading them as they lie and at random.

    They are read from the memory in which the system keeps files, so it is the program that is timed, not the disk.
    """
    store, latent = ShardStore(folder), {"latent": torch.randn(96, 5, 8, 8).half()}
    keys = [secrets.token_bytes(KEY_BYTES) for _ in range(num_records)]
    speeds = {"written": time_rows(num_records, lambda: [store.save(key, latent) for key in keys])}
    in_order = list(store.records())
    speeds["read as they lie"] = time_rows(num_records, lambda: [store.read(record) for record in in_order])
    keys.sort()
    speeds["read in random order"] = time_rows(num_records, lambda: [store.load(key) for key in keys])
    (folder / INDEX).unlink()
    again = time_rows(num_records, lambda: ShardStore(folder).load(keys[0]))
    nbytes = latent["latent"].nbytes
    rows: Rows = {
        name: {"rows a second": round(speed), "MB a second": round(speed * nbytes / 1e6, 1)}
        for name, speed in speeds.items()
    }
    return {"records": rows, "index made again": {"from the shards": {"rows a second": round(again)}}}


def measure_captions(folder: Path, num: int, sizes: Sequence[int]) -> Rows:
    """Time embedding captions, so many in a call: those of a batch, and of sixteen; medians of three turns."""
    tokenizer, encoder = load_tokenizer_and_encoder(MINI)
    captions = [free_caption(draw_scene(seed), seed) for seed in range(num)]
    turns: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(3):
        for size, speeds in turns.items():
            texts = TextCache(tokenizer, encoder, folder / f"{size}-{turn}", bf16=bf16_instructions() is True)
            calls = [captions[first : first + size] for first in range(0, num, size)]
            speeds.append(time_rows(num, lambda: [texts.read(call) for call in calls]))  # noqa: B023  # called at once
    return {f"{size} in a call": {"ms a caption": round(1000 / sorted(turns[size])[1], 2)} for size in sizes}


def time_rows(num_rows: int, call: Callable[[], object]) -> float:
    """Return the rows a second of a call that goes through all of them."""
    began = time.perf_counter()
    call()
    return num_rows / (time.perf_counter() - began)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write assets/bench/cache.json."""
    parser = make_parser("cache", __doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the index")
    parser.add_argument("--records", type=int, default=20_000, help="records that are written and read")
    parser.add_argument("--captions", type=int, default=1472, help="captions that are embedded")
    args = parse_flags(parser, argv, {"rows": 1000, "records": 50, "captions": 8})
    with tempfile.TemporaryDirectory() as work:
        index = measure_index(Path(work) / "index", args.rows)
        records = measure_records(Path(work) / "records", args.records)
        captions = measure_captions(Path(work), args.captions, BATCHES)
    publish(args.out, {"index": {"of synthetic rows": index}, **records, "captions": captions})


if __name__ == "__main__":
    main()
