"""Breaks checkpoints in so many ways and prints those that do not end well: `python tests/fuzz/full.py --cases 32000`.

`--first N` begins with case N; `--seconds S` stops after so long; `--more` renders chat templates and converts, too.
Exits with 1 if any case ended in a traceback, a hang or memory without bound.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.formats import run_case, use, use_more, write_sources
from fuzz.mutate import SECONDS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=32_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--more", action="store_true")
    options = parser.parse_args()
    began, counts = time.monotonic(), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sources").mkdir()
        sources = write_sources(Path(folder) / "sources")
        for number in range(options.first, options.first + options.cases):
            if time.monotonic() - began > options.seconds:
                break
            faulthandler.dump_traceback_later(3 * SECONDS, exit=True)  # for what no signal stops
            what, ended = run_case(number, sources, Path(folder), call=use_more if options.more else use)
            faulthandler.cancel_dump_traceback_later()
            counts[ended.kind] += 1
            if ended.kind == "fault":
                print(f"{what} ({ended.seconds:.1f} s)\n{ended.text}\n", flush=True)
    print(f"{sum(counts.values())} cases in {time.monotonic() - began:.0f} s: {dict(counts)}")
    return 1 if counts["fault"] else 0


if __name__ == "__main__":
    sys.exit(main())
