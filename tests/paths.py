"""Where tests find what is not theirs: this checkout, its scripts, and real data that may lie beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "experiments" / "benchmarks"
SHARED = ROOT.parent / "shared" / "data"  # real problems, configurations and graded samples; tests skip without it
