"""Tuning tables: what is found for a shape, which keys calls have, and files that are not tables."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinetics_kernels import tuning
from kinetics_kernels.tuning import Entry, Key, Table

KEY = Key("bfloat16", 64, 128, 4, "per_sequence", 512, 512)
keys = st.builds(
    Key,
    st.sampled_from(["bfloat16", "float32"]),
    st.sampled_from([16, 64]),
    st.sampled_from([64, 128]),
    st.sampled_from([1, 4]),
    st.sampled_from(["per_sequence", "per_head"]),
    st.integers(1, 4096),
    st.integers(1, 8192),
)
entries = st.builds(
    Entry,
    st.sampled_from(["paged_decode", "select_pages"]),
    keys,
    st.sampled_from(["xla", "triton", "mosaic_gpu"]),
    st.dictionaries(st.just("splits"), st.sampled_from([1, 2, 32])),
    st.floats(1e-6, 1e-2),
)
tables = st.builds(Table, st.just("a device"), st.lists(entries, max_size=12).map(tuple))


def fixed(key: Key) -> tuple:
    """What two keys must share."""
    return key.dtype, key.page_size, key.head_dim, key.group, key.kind


def apart(one: Key, other: Key) -> float:
    return abs(math.log(one.rows / other.rows)) + abs(math.log(one.pages / other.pages))


@given(tables, keys)
def test_what_is_found_was_measured_and_nothing_of_its_kind_is_nearer(table, key):
    same = [entry for entry in table.entries if entry.op == "paged_decode" and fixed(entry.key) == fixed(key)]
    chosen = tuning.lookup(table, "paged_decode", key)
    assert (chosen is None) == (not same)
    if same:
        least = min(apart(entry.key, key) for entry in same)
        nearest = [entry for entry in same if apart(entry.key, key) == least]
        fastest = min(entry.seconds for entry in nearest)
        assert chosen in [(entry.backend, entry.options) for entry in nearest if entry.seconds == fastest]


@given(tables, st.data())
def test_a_measured_key_finds_itself_and_changing_the_answer_changes_no_table(table, data):
    if not table.entries:
        return
    entry = data.draw(st.sampled_from(table.entries))
    backend, options = tuning.lookup(table, entry.op, entry.key)
    twins = [one for one in table.entries if one.op == entry.op and one.key == entry.key]
    assert (backend, options) in [(one.backend, one.options) for one in twins]
    options["splits"] = -1
    assert all(one.options.get("splits") != -1 for one in table.entries)


def test_near_is_meant_by_ratio():
    table = Table(
        "a device",
        tuple(
            Entry("paged_decode", dataclasses.replace(KEY, rows=rows), "triton", {"splits": rows}, 1.0)
            for rows in (8, 512)
        ),
    )
    for rows, expected in ((1, 8), (60, 8), (66, 512), (8192, 512)):
        assert tuning.lookup(table, "paged_decode", dataclasses.replace(KEY, rows=rows)) == (
            "triton",
            {"splits": expected},
        )
    for other in ({"dtype": "float16"}, {"page_size": 32}, {"head_dim": 64}, {"group": 5}, {"kind": "per_head"}):
        assert tuning.lookup(table, "paged_decode", dataclasses.replace(KEY, **other)) is None
    assert tuning.lookup(table, "select_pages", KEY) is None


def test_an_empty_batch_finds_the_fewest_rows():
    entries = [Entry("paged_decode", dataclasses.replace(KEY, rows=rows), name, {}, 1e-6) for rows, name in
               ((8, "triton"), (512, "xla"))]  # fmt: skip
    assert tuning.lookup(Table("d", tuple(entries)), "paged_decode", dataclasses.replace(KEY, rows=0)) == ("triton", {})


def test_keys_are_those_of_the_shapes():
    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    q, pool = shape(64, 32, 128), shape(8, 40_000, 64, 128)
    table = shape(64, 512, dtype=jnp.int32)
    assert tuning.decode_key(q, pool, table) == KEY
    per_head = dataclasses.replace(KEY, kind="per_head", pages=16)
    assert tuning.decode_key(q, pool, shape(64, 8, 16, dtype=jnp.int32)) == per_head
    summaries = shape(8, 40_000, 2, 128)
    wanted = dataclasses.replace(KEY, kind="min_max")
    assert tuning.select_key(q, summaries, table, page_size=64, summary="min_max") == wanted
    wanted = dataclasses.replace(KEY, kind="min_max", group=1)
    assert tuning.append_key(pool, summaries, table, summary="min_max") == wanted
    assert tuning.append_key(pool, None, table, summary="mean").kind == "none"
    assert (
        jax.eval_shape(lambda q, pool, table: q[: tuning.decode_key(q, pool, table).rows // 64], q, pool, table).shape[
            0
        ]
        == 8
    )


def test_slugs():
    assert tuning.device_slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert tuning.device_slug("TPU v5 lite") == "tpu-v5-lite"
    with pytest.raises(ValueError, match="names no device"):
        tuning.device_slug(" / ")


def stored(**changes) -> dict:
    return {
        "device": "a device",
        "entries": [tuning.entry_json(Entry("paged_decode", KEY, "triton", {"splits": 4}, 2e-3))],
        **changes,
    }


def test_tables_are_read_once_and_none_is_none(tmp_path):
    assert tuning.load_table("a-device", tmp_path / "nowhere") is None
    path = tmp_path / "a-device.json"
    path.write_text(json.dumps(stored(date="today")))
    table = tuning.load_table("a-device", tmp_path)
    assert table.device == "a device"
    assert tuning.lookup(table, "paged_decode", dataclasses.replace(KEY, rows=1)) == ("triton", {"splits": 4})
    path.unlink()
    assert tuning.load_table("a-device", tmp_path) is table


def test_tables_that_come_with_the_package_are_tables():
    assert tuning.TUNED.is_dir()
    for path in tuning.TUNED.glob("*.json"):
        assert tuning.load_table(path.stem).entries


def without(name: str) -> dict:
    content = stored()
    del content["entries"][0]["key"][name]
    return content


def with_key(**changes) -> dict:
    content = stored()
    content["entries"][0]["key"].update(changes)
    return content


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "7",
        "{}",
        json.dumps(stored(entries=3)),
        json.dumps(stored(entries=[{}])),
        json.dumps(without("rows")),
        json.dumps(with_key(rows="many")),
        json.dumps(with_key(rows=0)),
        json.dumps(with_key(rows=True)),
        json.dumps(with_key(dtype=2)),
        json.dumps(with_key(colour="red")),
    ],
)
def test_what_is_no_table_is_named_with_its_cure(content, tmp_path):
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"odd\.json is not a tuning table .*; delete it, or write it anew with"):
        tuning.load_table("odd", tmp_path)
