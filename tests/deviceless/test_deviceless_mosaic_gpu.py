"""The Mosaic GPU kernels, compiled for an H100 at Qwen3 shapes: nothing spills, nothing of a pool's size is copied."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import pytest
from kinetics_kernels.ops.paged_decode import mosaic_gpu as decode

pytestmark = pytest.mark.slow

# Query heads and KV heads; head_dim is 128 in all of them.
MODELS = {"0.6B": (16, 8), "8B": (32, 8), "14B": (40, 8), "32B": (64, 8), "30B-A3B": (32, 4)}
CONTEXT, BUDGET = 32_768, 1024
PARTIALS = 2**22  # bytes that partial sums may take; the smallest pool here has 32 MB
SHARED_BYTES = 113 * 1024  # of a program of which a multiprocessor, with 228 KB and 1 KB taken from each, holds two


DUMPS = {
    "PTX": r"\.visible \.entry (\w+)_mosaic_gpu_kernel",
    "PTXAS": r"Compiling entry function '(\w+)_mosaic_gpu_kernel'",
}


@pytest.fixture(scope="module")
def said_before() -> dict[str, dict[str, str]]:
    """The latest dump of each kernel: one that was compiled before in this process is not dumped again."""
    return {what: {} for what in DUMPS}


@pytest.fixture
def h100(h100_target, said_before, capfd, monkeypatch):
    """Compiles with the mosaic_gpu backend forced: the program, and for each kernel its PTX and what ptxas says."""
    for what in DUMPS:
        monkeypatch.setenv(f"MOSAIC_GPU_DUMP_{what}", "1")

    def compiled(op, *args, donate=(), **options):
        capfd.readouterr()
        function = jax.jit(functools.partial(op, backend="mosaic_gpu", **options), donate_argnums=donate)
        first = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype, sharding=h100_target.sharding)
        program = h100_target.compile(function, first, *args[1:])
        said = "".join(capfd.readouterr())
        for what, header in DUMPS.items():
            _, *parts = re.split(header, said)
            said_before[what].update(zip(parts[::2], parts[1::2], strict=True))
        return program, said_before["PTX"], said_before["PTXAS"]

    return compiled


def assert_no_spills(ptxas: dict[str, str], *names: str) -> None:
    for name in names:
        assert re.findall(r"(\d+) bytes spill (?:stores|loads)", ptxas[name]) == ["0", "0"]


def abstract(model: str, page_size: int, batch: int, dtype=jnp.bfloat16, head_dim: int = 128, summary: str = "mean"):
    """q, the pools, the summaries, table and lengths of one layer, full to CONTEXT."""
    q_heads, kv_heads = MODELS[model]
    pages = CONTEXT // page_size
    vectors = () if summary == "mean" else (2,)
    pool = jax.ShapeDtypeStruct((kv_heads, batch * pages, page_size, head_dim), dtype)
    return (
        jax.ShapeDtypeStruct((batch, q_heads, head_dim), dtype),
        pool,
        pool,
        jax.ShapeDtypeStruct((kv_heads, batch * pages, *vectors, head_dim), dtype),
        jax.ShapeDtypeStruct((batch, pages), jnp.int32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )


def kernels_of_decode(batch: int) -> list[str]:
    return ["paged_decode", "merge_partials"] if batch == 1 else ["paged_decode"]


def launched(program) -> str:
    """The program without the insides of its fusions."""
    return program.as_text().split("\nENTRY ")[1]


def assert_nothing_is_moved(program) -> None:
    moves = ("gather", "sort", "transpose", "copy", "scatter", "reduce", "dot")
    assert not any(f" {move}(" in launched(program) for move in moves)


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("model", MODELS)
def test_block_topk_decode(h100, model, page_size, batch):
    """Beside the kernels there are fusions for scores alone, which hold 4 bytes for each page and head."""
    program, _, ptxas = h100(kernels.block_topk_decode, *abstract(model, page_size, batch), pages=BUDGET // page_size)
    assert_no_spills(ptxas, "choose_pages", *kernels_of_decode(batch))
    assert_nothing_is_moved(program)
    scores = 4 * batch * MODELS[model][1] * CONTEXT // page_size
    assert program.memory_analysis().temp_size_in_bytes < scores + PARTIALS


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("model", MODELS)
def test_dense_decode(h100, model, page_size, batch):
    q, k, v, _, *tables = abstract(model, page_size, batch)
    program, ptx, ptxas = h100(kernels.paged_decode, q, k, v, *tables)
    assert_no_spills(ptxas, *kernels_of_decode(batch))
    assert_nothing_is_moved(program)
    assert program.memory_analysis().temp_size_in_bytes < PARTIALS
    text = ptx["paged_decode"]
    assert "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16" in text  # scores: 64 tokens
    assert "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16" in text  # values: head_dim
    # A copy for each page of a tile, of K and of V: two tiles at the start, one in the loop; and one of the query.
    assert len(re.findall(r"cp\.async\.bulk\.tensor\.\dd\.shared", text)) == 3 * 2 * (64 // page_size) + 1
    assert max(map(int, re.findall(r"__dynamic_shmem__0\+(\d+)", text))) < SHARED_BYTES


def test_memory_is_ordered(h100):
    """What the interpreter does not check: products wait for their pages and for what is stored, copies for products.

    Every product ends, and every commit is joined, by all four warps before anything follows.
    """
    q, k, v, _, *tables = abstract("8B", 64, 64)
    _, ptx, _ = h100(kernels.paged_decode, q, k, v, *tables)
    events = {
        "mbarrier.try_wait": "arrival",
        "fence.proxy.async": "commit",
        "wgmma.fence": "product",
        "wgmma.wait_group": "end",
        "bar.sync": "all",
        "cp.async.bulk.tensor": "copy",
    }
    order = [events[text] for text in re.findall("|".join(map(re.escape, events)), ptx["paged_decode"])]
    start = ["copy"] * 5 + ["arrival", "commit"]  # the query and two tiles of K and V
    scores = ["arrival", "product", "end", "copy"]
    values = ["arrival", "commit", "product", "end", "copy"]
    assert [event for event in order if event != "all"] == [*start, *scores, *values, "commit", "copy"]
    assert all(after == "all" for event, after in itertools.pairwise(order) if event in ("end", "commit"))


@pytest.mark.parametrize(
    ("head_dim", "page_size", "dtype"),
    [(64, 8, jnp.bfloat16), (64, 128, jnp.float16), (128, 8, jnp.float16), (128, 32, jnp.bfloat16)],
)
def test_every_dtype_and_head_dim(h100, head_dim, page_size, dtype):
    q, k, v, _, *tables = abstract("14B", page_size, 1, dtype, head_dim)
    _, _, ptxas = h100(kernels.paged_decode, q, k, v, *tables)
    assert_no_spills(ptxas, *kernels_of_decode(1))


@pytest.mark.parametrize("summary", ["mean", "min_max", "mean_std"])
@pytest.mark.parametrize("page_size", [4, 16])
def test_selection_gathers_no_summary(h100, page_size, summary):
    """Tables up to 8192 pages; q̄ (two vectors of it for two kinds) and the scores are all that is held."""
    batch = 8
    q, _, _, *rest = abstract("8B", page_size, batch, summary=summary)
    pages = BUDGET // page_size
    program, _, ptxas = h100(kernels.select_pages, q, *rest, page_size=page_size, pages=pages, summary=summary)
    assert_no_spills(ptxas, "choose_pages")
    assert_nothing_is_moved(program)
    scores, queries = 4 * batch * 8 * CONTEXT // page_size, 2 * 4 * batch * 8 * 128
    assert program.memory_analysis().temp_size_in_bytes < scores + queries + 4096


@pytest.mark.parametrize("summary", [None, "mean", "min_max", "mean_std"])
@pytest.mark.parametrize("page_size", [16, 64])
def test_append_writes_in_place(h100, page_size, summary):
    q, k, v, summaries, *tables = abstract("8B", page_size, 64, summary=summary or "mean")
    pools = (k, v, summaries if summary else None)
    new = jax.ShapeDtypeStruct((64, 8, 128), q.dtype)
    program, _, ptxas = h100(kernels.append_kv, *pools, new, new, *tables, donate=(0, 1, 2), summary=summary or "mean")
    assert_no_spills(ptxas, "append_kv")
    assert_nothing_is_moved(program)
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == sum(pool.size * pool.dtype.itemsize for pool in pools if pool is not None)
    assert memory.temp_size_in_bytes < 4096


def test_spills_and_too_much_shared_memory_would_be_seen(h100, h100_target, monkeypatch):
    """The checks above can fail: head_dim 256, refused because its registers spill, and eight stages."""
    q, k, v, _, *tables = abstract("8B", 64, 64)
    first = jax.ShapeDtypeStruct(q.shape, q.dtype, sharding=h100_target.sharding)
    deep = jax.jit(functools.partial(decode.paged_decode, stages=8))
    with pytest.raises(Exception, match="exceeds available shared memory"):
        h100_target.compile(deep, first, k, v, *tables)
    monkeypatch.setattr(decode, "refuse_unless", lambda *_: None)
    q, k, v, _, *tables = abstract("8B", 64, 64, head_dim=256)
    _, _, ptxas = h100(kernels.paged_decode, q, k, v, *tables)
    with pytest.raises(AssertionError):
        assert_no_spills(ptxas, "paged_decode")
