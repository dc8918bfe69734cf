"""Some of the broken checkpoints of full.py: each loads, or ends in one clear error, in time and within memory."""

import collections

import pytest
from fuzz.formats import run_case, use, write_sources
from fuzz.mutate import outcome

CASES, AT_A_TIME = 1200, 100


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


def test_what_is_whole_loads(sources):
    for layout, path in sources.items():
        ended = outcome(lambda path=path: use(path))
        assert ended.kind == "loaded", (layout, ended)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, CASES, AT_A_TIME))
def test_broken_checkpoints(sources, tmp_path, first):
    counts = collections.Counter()
    for number in range(first, first + AT_A_TIME):
        what, ended = run_case(number, sources, tmp_path)
        assert ended.kind != "fault", f"{what}: {ended.text}"
        counts[ended.kind] += 1
    assert min(counts["refused"], counts["loaded"]) > 0  # else what was broken was not reached
