"""Which programs a property is tried with: a few over much data, since each takes a second to compile; and any."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st


def few(values: dict[str, Sequence], count: int) -> list[dict[str, Any]]:
    """`count` choices of a value for every name, the same in every run, in which every value occurs."""
    assert count >= max(map(len, values.values()))
    rng = np.random.default_rng(0)
    columns = [[options[i] for i in rng.permutation(np.arange(count) % len(options))] for options in values.values()]
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]


def over_programs(values: dict[str, Sequence], count: int) -> pytest.MarkDecorator:
    """Gives a test `programs`, a strategy: of `few`; and, in the exhaustive lane, of any values side by side."""
    anything = st.fixed_dictionaries({name: st.sampled_from(options) for name, options in values.items()})
    return pytest.mark.parametrize(
        "programs",
        [
            pytest.param(st.sampled_from(few(values, count)), id=f"{count} programs"),
            pytest.param(anything, id="any program", marks=pytest.mark.exhaustive),
        ],
    )


def lengths_of(data: st.DataObject, batch: int, longest: int) -> list[int]:
    """Of the rows of a state, the shortest empty."""
    return data.draw(st.lists(st.integers(0, longest), min_size=batch, max_size=batch), label="lengths")
