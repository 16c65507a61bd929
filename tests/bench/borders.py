"""Borders: the words of diffusers, ComfyUI, Wan2GP and the trainers, each tried here, and what each gets.

    videogen bench borders [--only WORD]  ->  assets/bench/borders.json: taken, refused by name or differs; none failed

A word counts as refused by name where the refusal is one sentence that names it or ours for it, and differs where the
same is done in another way, which the guide tells. The network is 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from tests.bench.flags import ROOT, make_parser, parse_flags
from tests.bench.machine import processor_name, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Try every row and print what each got; status 1 where one got another answer than it should."""
    parser = make_parser("borders", __doc__)
    parser.add_argument("--only", default="", help="rows whose part or words contain this")
    args = parse_flags(parser, argv, {"only": "brought along: flags"})
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from tests.bench import border_calls, border_files, border_install  # they import diffusers
    from tests.bench.border_desk import Answer, Desk, ask, is_as_wanted

    rows = [*border_calls.ROWS, *border_files.ROWS, *border_install.ROWS]
    answers, wrong = list[Answer](), list[str]()
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        desk = Desk(Path(place))
        for row in rows:
            if args.only not in f"{row.part} {row.tried}":
                continue
            answer = ask(row, desk)
            said = answer.said.replace(place, "DIR").replace(f"{ROOT}/", "")  # the same wherever it is tried
            answers.append(answer._replace(said=said))
            wrong += [] if is_as_wanted(row, answer.answer) else [row.tried]
            print(f"{answer.answer:16}{row.part:24}{row.tried}: {said}", flush=True)
    counts = dict(sorted(Counter(answer.answer for answer in answers).items()))
    print(counts, f"of {len(answers)} rows; not as wanted: {', '.join(wrong) or 'none'}")
    result = {"rows": len(answers), "counts": counts, "answers": [answer._asdict() for answer in answers]}
    write_json(args.out, {"machine": processor_name(), "date": date.today().isoformat(), **result})
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
