"""Laws that hold for any input: hypothesis looks for one that breaks them, and shrinks it to the smallest."""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import replace
from itertools import chain, combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from videogen.cli.dry_run import format_duration
from videogen.config.parsing import format_toml, load_toml, read_word
from videogen.config.sample import SampleConfig, resolve_frames
from videogen.config.sizes import parse_patch, parse_size
from videogen.config.train import RunConfig, TrainConfig
from videogen.data.captions import read_caption_tables
from videogen.packing.bin_packing import deal_packs, fullest_subset, plan_packs
from videogen.packing.patch_schedule import parse_patch_shares, patch_at_sigma, patch_name
from videogen.sampling.solvers import sigma_schedule
from videogen.sweep.results import add_row, read_rows

LENGTHS = st.lists(st.integers(1, 300), max_size=60)
# Of what ends a line, a cell or a word of some format; or of anything but halves of characters.
MARKS = st.text(st.sampled_from("a漢👍 \n\r\0\x7f\x85\u2028\t,;'\"\\#=[{"), max_size=30)
TEXT = MARKS | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PATCHES = st.tuples(*[st.integers(1, 8)] * 3)
quick = settings(max_examples=40, deadline=None, derandomize=True)  # the same examples on every day


# --- packing


@quick
@given(lengths=LENGTHS, spare=st.integers(0, 500), window=st.integers(1, 70), order=st.randoms(use_true_random=False))
def test_every_clip_is_in_one_pack_and_no_pack_is_over_its_budget(
    lengths: list[int], spare: int, window: int, order: object
) -> None:
    budget, places = max(lengths, default=0) + spare, list(range(len(lengths)))
    order.shuffle(places)  # type: ignore[attr-defined]
    packs = plan_packs(lengths, budget=max(1, budget), order=places, window=window)
    assert sorted(chain(*packs)) == list(range(len(lengths)))
    assert all(pack and sum(lengths[clip] for clip in pack) <= budget for pack in packs)


@quick
@given(lengths=st.lists(st.integers(1, 40), max_size=8), room=st.integers(0, 150))
def test_no_other_subset_is_fuller_than_the_fullest(lengths: list[int], room: int) -> None:
    chosen = fullest_subset(lengths, room)
    sums = [sum(some) for num in range(len(lengths) + 1) for some in combinations(lengths, num)]
    assert sum(lengths[place] for place in chosen) == max(total for total in sums if total <= room)


@quick
@given(works=LENGTHS, ranks=st.integers(1, 5), steps=st.integers(1, 7))
def test_every_pack_is_dealt_once_to_any_number_of_processes(works: list[int], ranks: int, steps: int) -> None:
    places = range(len(works))
    assert sorted(deal_packs(places, lambda place: works[place], ranks, steps)) == list(places)


# --- schedules


@quick
@given(steps=st.integers(1, 200), shift=st.floats(0.1, 20))
def test_noise_levels_fall_from_one_to_zero(steps: int, shift: float) -> None:
    levels = sigma_schedule(steps, shift=shift).tolist()
    assert 1 - 1e-6 < levels[0] <= 1  # rounding leaves a float32 or two below
    assert (levels[-1], len(levels)) == (0, steps + 1)
    assert all(after < before for before, after in pairwise(levels))


@quick
@given(
    parts=st.lists(st.tuples(PATCHES, st.integers(1, 9)), min_size=1, max_size=4), shift=st.floats(0.2, 10),
    steps=st.integers(20, 60),
)  # fmt: skip
def test_a_patch_schedule_takes_its_sizes_in_turn_each_for_its_share_of_the_steps(
    parts: list[tuple[tuple[int, int, int], int]], shift: float, steps: int
) -> None:
    total = sum(share for _, share in parts)
    shares = parse_patch_shares(
        ",".join(f"{patch_name(patch)}:{share / total:.9f}" for patch, share in parts[:-1])
        + f"{',' * (len(parts) > 1)}{patch_name(parts[-1][0])}"
    )
    assert [patch for patch, _ in shares] == [patch for patch, _ in parts]
    assert sum(share for _, share in shares) == pytest.approx(1)
    places = [(patch, place) for place, (patch, _) in enumerate(shares)]  # equal sizes are told apart by their turn
    turns = [patch_at_sigma([(turn, share) for turn, (_, share) in zip(places, shares, strict=True)], sigma, shift)  # type: ignore[misc]
             for sigma in sigma_schedule(steps, shift=shift).tolist()[:-1]]  # fmt: skip
    order = [turn[1] for turn in turns]
    assert order == sorted(order)
    assert all(abs(order.count(i) - steps * share) <= 1 for i, (_, share) in enumerate(shares))


# --- tables


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    table = [{"file_name": name, "text": text} for name, text in rows]
    if path.suffix == ".jsonl":
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table)
        path.write_text(lines, encoding="utf-8", newline="\n")
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(table)


@quick
@given(rows=st.lists(st.tuples(TEXT, TEXT), max_size=5), kind=st.sampled_from(["metadata.csv", "metadata.jsonl"]))
def test_captions_come_back_from_a_table_as_they_were_written(rows: list[tuple[str, str]], kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / kind
        write_table(path, rows)
        table = read_caption_tables([path])
    expected: dict[tuple[Path, str], list[str]] = {}
    for name, text in rows:
        expected.setdefault((path.parent, name), []).append(text.strip())
    assert table == (expected, [])


@quick
@given(rows=st.lists(st.dictionaries(st.sampled_from(["prompt", "clip", "error"]), TEXT), max_size=4))
def test_rows_of_a_sweep_come_back_as_they_were_added(rows: list[dict[str, str]]) -> None:
    keyed = [{"key": str(i), **row} for i, row in enumerate(rows)]
    with tempfile.TemporaryDirectory() as folder:
        for row in keyed:
            add_row(Path(folder), row)
        read = read_rows(Path(folder)).values()
    assert [{name: cell for name, cell in row.items() if cell is not None} for row in read] == keyed


@quick
@given(prompts=st.lists(TEXT, max_size=3), negative=TEXT, minutes=st.floats(1e-3, 1e6), levels=st.floats(0, 1))
@example(prompts=["\x7f"], negative="", minutes=1.0, levels=0.0)
def test_a_recipe_comes_back_from_toml_as_it_was_written(
    prompts: list[str], negative: str, minutes: float, levels: float
) -> None:
    recipe = TrainConfig(
        run=RunConfig(sample_prompts=tuple(prompts), minutes=minutes),
        sample=SampleConfig(negative=negative, guidance_interval=(0, levels)),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.toml"
        path.write_text(format_toml(recipe), encoding="utf-8", newline="\n")
        assert load_toml(TrainConfig, path) == recipe


# --- sizes and times


@quick
@given(width=st.integers(1, 10**5), height=st.integers(1, 10**5), patch=PATCHES)
def test_sizes_and_patches_come_back_as_they_were_printed(width: int, height: int, patch: tuple[int, int, int]) -> None:
    assert parse_size(f"{width}x{height}") == (width, height)
    assert parse_patch(patch_name(patch)) == patch


@quick
@given(start=st.integers(-50, 50), step=st.integers(1, 9), count=st.integers(2, 20))
def test_a_range_has_its_ends_and_even_steps(start: int, step: int, count: int) -> None:
    stop = start + step * (count - 1)
    assert read_word(f"{start}:{stop}:{count}") == list(range(start, stop + 1, step))


@quick
@given(seconds=st.floats(0, 600), fps=st.floats(1, 60), stride=st.integers(1, 8))
def test_no_possible_length_is_nearer_to_the_seconds_asked_for(seconds: float, fps: float, stride: int) -> None:
    frames = resolve_frames(replace(SampleConfig(), seconds=seconds or None, fps=fps), stride)
    if not seconds:
        return
    assert frames >= 1
    assert (frames - 1) % stride == 0
    assert abs(frames - seconds * fps) <= stride / 2 + 1e-6 or frames == 1 > seconds * fps - stride / 2


@quick
@given(seconds=st.floats(0, 1e8))
def test_a_printed_duration_is_the_one_that_was_measured(seconds: float) -> None:
    number, unit = format_duration(seconds).split()
    length = {"s": 1, "minutes": 60, "hours": 3600, "days": 86400}[unit]
    assert float(number) * length == pytest.approx(seconds, abs=0.0501 * length)
