"""Several devices: what one device gives. Those tests that need eight are run in a process that simulates them."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from test_carried_state import ByCount
from test_gguf import write_gguf
from tiny import MOE, tiny_config, tiny_prompts, tiny_tensors, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.assets import builtin_models
from kinetics_jax.attention.cache import empty_cache
from kinetics_jax.attention.decode import decode_attend
from kinetics_jax.checkpoints.convert import convert
from kinetics_jax.checkpoints.tensors import arrays_by_name
from kinetics_jax.cli.main import main
from kinetics_jax.compile_cache import watch_compiles
from kinetics_jax.engine.abstract import abstract_cache, abstract_model, abstract_rows, abstract_scalar, abstract_slots
from kinetics_jax.engine.decoding import Decoding
from kinetics_jax.engine.engine import Engine, Request
from kinetics_jax.engine.programs import decode_chunk
from kinetics_jax.settings import EngineSettings, RequestError
from kinetics_jax.sharding.axes import MeshError
from kinetics_jax.sharding.mesh import check_mesh, make_mesh, mesh_spelling, param_sharding, row_shards

SIMULATED = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
EIGHT = jax.device_count() >= 8
eight_devices = pytest.mark.skipif(not EIGHT, reason="needs 8 devices; test_on_eight_devices runs it on simulated ones")

DENSE = {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 136}
FEW_KV = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 1}  # nothing divides the vocabulary
SPARSE = kj.BlockTopK(pages=4, page_size=4, dense_layers=())
CASES = [
    (DENSE, "data=2,tensor=4", kj.Dense()),
    (FEW_KV, "tensor=8", SPARSE),
    ({**MOE, "num_hidden_layers": 1}, "data=2,expert=2,tensor=2", SPARSE),
]
POLICIES = [
    kj.BlockTopK(pages=3, page_size=4, dense_layers=(), summary="min_max"),
    kj.RandomBlocks(pages=3, page_size=4, dense_layers=()),
    kj.TokenTopK(budget=6, dense_layers=()),
    kj.UnbiasedBlockTopK(pages=4, page_size=4, samples=2, dense_layers=()),
    kj.LiteSysRandomTokens(samples=6, dense_layers=(), weights="importance"),
]
HOT = kj.Sampling(temperature=1.0, top_p=0.95, max_tokens=24, seed=3)


@pytest.mark.slow
@pytest.mark.skipif(EIGHT, reason="this is the process with the devices")
def test_on_eight_devices():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "_8_", __file__],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": SIMULATED, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout


def outputs(samples) -> dict:
    """By sample: its tokens, and what its steps read."""
    return {
        (sample.problem, sample.sample): [*sample.output_tokens, sample.attended_tokens, sample.summary_vectors]
        for sample in samples
    }


def stream(lm, requests, policy, sampling=HOT, **settings) -> tuple[dict, Decoding]:
    engine = lm.engine(sampling=sampling, attention=policy, settings=EngineSettings(**settings))
    decoding = engine.start(engine.check(requests))
    return outputs(decoding.run()), decoding


@eight_devices
@pytest.mark.parametrize(("changes", "mesh", "policy"), CASES, ids=[mesh for _, mesh, _ in CASES])
def test_8_devices_give_what_one_gives(changes, mesh, policy, tmp_path):
    """Logits within rounding, greedy samples the same; a second run of other prompts compiles nothing."""
    path = write_checkpoint(tmp_path / "tiny", tiny_config(**changes), seed=5)
    one, many = kj.load(path, dtype="float32"), kj.load(path, dtype="float32", mesh=mesh)
    tokens = np.random.default_rng(0).integers(4, 131, (4, 12))
    logits = np.asarray(one.logits(tokens))
    np.testing.assert_allclose(many.logits(tokens), logits, rtol=1e-4, atol=1e-5 * np.abs(logits).max())
    greedy = kj.Sampling(temperature=0, max_tokens=12)
    requests = [Request(str(i), prompt, range(2)) for i, prompt in enumerate(tiny_prompts(5, first=9))]
    expected, _ = stream(one, requests, policy, greedy, slots=8)
    found, decoding = stream(many, requests, policy, greedy, slots=8)
    assert found == expected
    assert all(schedule.allocator.free == schedule.allocator.num_pages for schedule in decoding.schedules)
    assert len(decoding.schedules) == row_shards(many.mesh)

    others = [Request(f"q{i}", prompt, range(3)) for i, prompt in enumerate(tiny_prompts(3, seed=9, first=10))]
    with watch_compiles() as compiled:
        stream(many, others, policy, greedy, slots=8)
    assert compiled.programs == []


@eight_devices
def test_8_devices_carry_what_one_carries(tmp_path):
    """What a policy carries lies with the KV heads and sequences that it is of; samples are preempted on the way."""
    path = write_checkpoint(tmp_path, tiny_config(**FEW_KV | {"num_hidden_layers": 2}), seed=5)
    prompts = [prompt[:9] for prompt in tiny_prompts(5, first=9)]
    requests = [Request(str(number), prompt, range(2)) for number, prompt in enumerate(prompts)]
    greedy = kj.Sampling(temperature=0, max_tokens=24)
    expected, _ = stream(kj.load(path, dtype="float32"), requests, ByCount(), greedy, slots=4)
    many = kj.load(path, dtype="float32", mesh="data=2,tensor=4")
    found, decoding = stream(many, requests, ByCount(), greedy, slots=4, chunk=6, num_pages=26)
    assert found == expected
    assert decoding.counts.preempted > 0


@eight_devices
def test_8_devices_go_on_and_fork_as_one(tmp_path):
    """An open decoder whose samples lie on both shards, in pools that run dry; what a policy carries goes along."""
    path = write_checkpoint(tmp_path, tiny_config(**FEW_KV | {"num_hidden_layers": 2}), seed=5)
    greedy = kj.Sampling(temperature=0, max_tokens=16)

    def drawn(lm, **settings):
        decoder = lm.open(
            sampling=greedy, attention=ByCount(), settings=EngineSettings(slots=4, chunk=6, **settings), max_length=64
        )
        for number, prompt in enumerate(tiny_prompts(5, first=9)):
            decoder.add(prompt, n=2, id=str(number), presence_penalty=0.5 * number, stop_ids=[7, 8, 9][: number % 4])
        ended = {(sample.id, sample.sample): sample for sample in decoder}
        for sample in ended.values():
            for fork in decoder.fork(sample):
                decoder.extend(fork, [50, 51, 52, 53, 54])
            decoder.extend(sample, [60, 61], max_tokens=9)
        more = list(decoder)
        tokens = {(sample.id, sample.sample, sample.path): sample.output_tokens for sample in more}
        decoder.release(*more)
        assert all(schedule.allocator.free == schedule.allocator.num_pages for schedule in decoder.decoding.schedules)
        return tokens, {sample.branch.shard for sample in more}

    expected, _ = drawn(kj.load(path, dtype="float32"))
    found, shards = drawn(kj.load(path, dtype="float32", mesh="data=2,tensor=4"), num_pages=40)
    assert found == expected
    assert len(found) == 20
    assert shards == {0, 1}


@eight_devices
def test_8_devices_samples_do_not_depend_on_their_shard(tmp_path):
    """Other order, a pool that runs dry on every shard, prompts in chunks: the same bits on the same mesh."""
    path = write_checkpoint(tmp_path, tiny_config(**DENSE, num_hidden_layers=1, max_position_embeddings=512), seed=5)
    lm = kj.load(path, dtype="float32", mesh="data=2,tensor=2")
    policy = SPARSE
    requests = [Request(f"p{i}", prompt, range(3)) for i, prompt in enumerate(tiny_prompts(4, first=9))]
    requests.append(Request("long", tiny_prompts(1, first=300)[0], range(5)))
    settings = {"slots": 6, "chunk": 6, "prefill_chunk": 256}
    reference, decoding = stream(lm, requests, policy, **settings)
    assert len(reference) == 17
    assert decoding.counts.prefills > len(requests)  # a prompt is prefilled on each shard that draws samples of it
    short = requests[:-1]
    dry, decoding = stream(lm, short[::-1], policy, num_pages=2 * 15, slots=6, chunk=6)
    assert decoding.counts.preempted > 1
    assert dry == {key: tokens for key, tokens in reference.items() if key[0] != "long"}


@eight_devices
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_8_devices_attend_as_one(policy):
    """A decode step of one layer over full pools, with copies of KV heads, as many slots as shards have."""
    config = kj.ModelConfig.from_hf(tiny_config(**FEW_KV))
    mesh = make_mesh("data=2,tensor=4")
    rng = np.random.default_rng(1)
    slots, pages, size = 4, 6, policy.page_size
    lengths = jnp.array([1, 3 * size, 5 * size - 1, 0])
    keys = jax.random.split(jax.random.key(0), slots)
    q, k, v = (jnp.asarray(rng.standard_normal((slots, 1, heads, 8)), jnp.float32) for heads in (8, 2, 2))
    pools = rng.standard_normal((2, 2, slots * pages, size, 8)).astype(np.float32)
    local = np.arange(slots * pages, dtype=np.int32).reshape(2, slots // 2, pages) % (slots // 2 * pages)

    def attended(mesh, table):
        cache = empty_cache(policy, config, num_pages=slots * pages, dtype=jnp.float32, mesh=mesh)
        copies = cache.k[0].shape[0] // 2

        def like(pool, values):
            values = np.repeat(values, copies, axis=0)
            return jax.device_put(values.reshape(pool.shape), pool.sharding)

        summaries = cache.summaries
        if summaries[0] is not None:
            kinds = {1: lambda x: x.mean(2), 2: lambda x: np.stack([x.min(2), x.max(2)], axis=2)}
            summaries = (like(summaries[0], kinds[summaries[0].ndim - 2](pools[0])),)
        k_pools, v_pools = (like(cache.k[0], pools[0]),), (like(cache.v[0], pools[1]),)
        cache = dataclasses.replace(cache, k=k_pools, v=v_pools, summaries=summaries).counting(slots)
        step = jax.jit(lambda q, k, v, cache: decode_attend(policy, table, lengths, keys)(0, q, k, v, cache))
        out, after = step(q, k, v, cache)
        return np.asarray(out), [np.asarray(leaf)[::copies] for leaf in jax.tree.leaves(after)]

    out, after = attended(mesh, jnp.asarray(local.reshape(slots, pages)))
    expected, expected_after = attended(None, jnp.arange(slots * pages, dtype=jnp.int32).reshape(slots, pages))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    for pool, wanted in zip(after, expected_after, strict=True):
        np.testing.assert_array_equal(pool, wanted)


@eight_devices
def test_8_devices_read_their_own_part_of_a_checkpoint(tmp_path):
    """Hugging Face, Orbax and GGUF: each device holds what it computes with, its bytes counted."""
    config = tiny_config(**{**MOE, **DENSE, "num_experts": 8, "intermediate_size": 64, "moe_intermediate_size": 32})
    hf = write_checkpoint(tmp_path / "hf", config, seed=5)
    plain = tiny_config(**DENSE)
    sources = [(hf, "expert=4,tensor=2"), (convert(hf, tmp_path / "orbax"), "expert=4,tensor=2")]
    sources.append((write_gguf(tmp_path / "tiny.gguf", plain, tiny_tensors(plain)), "data=2,tensor=4"))
    for path, mesh in sources:
        one, many = kj.load(path, dtype="float32"), kj.load(path, dtype="float32", mesh=mesh)
        of = param_sharding(many.config, many.mesh)
        whole, split = arrays_by_name(one.weights), arrays_by_name(many.weights)
        assert whole.keys() == split.keys()
        for name, array in split.items():
            assert array.sharding == of(name), name
            np.testing.assert_array_equal(array, whole[name], err_msg=name)
        sizes = many.mesh.shape
        for name, parts in {
            "layers.1.self_attn.q_proj.weight": sizes["tensor"],
            "layers.1.self_attn.o_proj.weight": sizes["tensor"],
            "layers.0.self_attn.k_proj.weight": sizes["tensor"],
            "layers.0.mlp.experts.up_proj.weight": sizes["expert"] * sizes["tensor"],
            "layers.0.mlp.down_proj.weight": sizes["tensor"],
            "embed_tokens.weight": sizes["tensor"],
            "lm_head.weight": sizes["tensor"],
            "norm.weight": 1,
        }.items():
            if name in split:
                held = {shard.data.nbytes for shard in split[name].addressable_shards}
                assert held == {whole[name].nbytes // parts}, name


@eight_devices
@pytest.mark.parametrize("policy", [kj.Dense(), kj.BlockTopK(pages=4, page_size=4)], ids=str)
def test_8_devices_gather_no_cache(policy):
    """The compiled chunk of steps aliases its pools, moves nothing of their size and allocates little beside them."""
    config = kj.ModelConfig.from_hf(tiny_config(**FEW_KV, vocab_size=136, max_position_embeddings=65_536))
    mesh, slots, max_pages, pages = make_mesh("data=2,tensor=4"), 4, 4096, 4 * 4096
    graph, weights = abstract_model(config, mesh=mesh)
    cache = abstract_cache(policy, config, num_pages=pages, dtype=jnp.float32, mesh=mesh)
    compiled = decode_chunk.lower(
        graph, weights, cache, abstract_slots(slots, mesh), abstract_rows((slots, max_pages), mesh),
        abstract_scalar(mesh), policy=policy, sampling=HOT, eos=(3,), chunk=8,
    ).compile()  # fmt: skip
    held = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)
    )
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= held
    assert memory.temp_size_in_bytes < (0.05 if policy == kj.Dense() else 0.2) * held
    moved = [line for line in compiled.as_text().splitlines() if " all-gather" in line or " all-to-all" in line]
    assert moved  # logits, at least
    least = held // (3 * config.num_layers) // 8
    assert not [line for line in moved if max(_elements(line)) * 4 >= least]


def _elements(line: str) -> list[int]:
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]*)\]", line)
    return [int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes]


def test_meshes_that_cannot_be():
    for spelled, told in {
        "data=2,model=4": "mesh 'data=2,model=4': 'model' is not an axis (axes: data, expert, tensor)",
        "tensor": "mesh 'tensor': 'tensor' needs a number of devices; write it like data=2,tensor=4",
        "tensor=2,tensor=2": "mesh 'tensor=2,tensor=2': 'tensor' is given twice; write it like data=2,tensor=4",
        "tensor=0": "mesh 'tensor=0': tensor must be at least 1",
        "data=16,tensor=64": f"mesh 'data=16,tensor=64' takes 1024 devices; there are {jax.device_count()}",
    }.items():
        with pytest.raises(MeshError) as error:
            make_mesh(spelled)
        assert str(error.value) == told
    with pytest.raises(MeshError, match="'x' is not an axis"):
        make_mesh(Mesh(np.array(jax.devices()[:1]), ("x",)))
    given = make_mesh(Mesh(np.array(jax.devices()[:1]), ("tensor",)))
    assert given == make_mesh({"data": 1}) == make_mesh("tensor=1")
    assert mesh_spelling(given) == "data=1"


def test_meshes_that_do_not_divide_a_model():
    def mesh(**sizes):
        shape = [sizes.get(axis, 1) for axis in ("data", "expert", "tensor")]
        return jax.sharding.AbstractMesh(tuple(shape), ("data", "expert", "tensor"))

    for name, sizes, told in [
        ("8B", {"tensor": 3}, "'tensor=3': tensor = 3 does not divide the model's num_heads, 32"),
        ("8B", {"expert": 2}, "'expert=2': the model has no experts; use data or tensor instead"),
        ("30B-A3B", {"expert": 6}, "expert = 6 does not divide the model's num_experts, 128"),
        ("Qwen2.5-14B-Instruct", {"tensor": 20}, "tensor = 20 does not divide the model's intermediate_size, 13824"),
        ("Qwen2.5-14B-Instruct", {"tensor": 5}, "does not divide the model's intermediate_size, 13824"),
    ]:
        with pytest.raises(MeshError, match=told.replace("(", r"\(")):
            check_mesh(mesh(**sizes), kj.ModelConfig.named(name))
    uneven = kj.ModelConfig.from_hf(tiny_config(num_attention_heads=12, num_key_value_heads=6))
    with pytest.raises(MeshError, match="tensor = 4 neither divides the model's 6 KV heads nor is a multiple"):
        check_mesh(mesh(tensor=4), uneven)
    check_mesh(mesh(data=3, expert=4, tensor=8), kj.ModelConfig.named("235B-A22B"))


@pytest.mark.slow
def test_a_mesh_of_one_device_and_slots(tmp_path):
    """It computes as no mesh does; slots that shards do not divide are refused with the cure."""
    path = write_checkpoint(tmp_path, tiny_config(), seed=5)
    one, lm = kj.load(path, dtype="float32"), kj.load(path, dtype="float32", mesh="data=1")
    tokens = tiny_prompts(1, first=9)
    np.testing.assert_allclose(lm.logits(tokens), one.logits(tokens), rtol=1e-4, atol=1e-4)
    three = jax.sharding.AbstractMesh((3, 1, 1), ("data", "expert", "tensor"))
    with pytest.raises(RequestError, match="32 slots cannot be split over mesh 'data=3'; make slots a multiple of 3"):
        Engine(lm.graph, lm.weights, lm.config, policy=kj.Dense(), sampling=HOT, mesh=three)


@eight_devices
def test_8_devices_from_the_command_line(tmp_path, monkeypatch, capsys):
    """run.json holds the mesh; one that cannot be is one line."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets its own

    def kinetics(*arguments) -> None:
        monkeypatch.setattr(sys, "argv", ["kinetics", *map(str, arguments)])
        main()

    smallest, run = builtin_models()[0], tmp_path / "run"
    with pytest.raises(SystemExit) as left:
        kinetics("generate", smallest, "--prompt", "1", "--mesh", "data=2,tensor=8")
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "kinetics: mesh 'data=2,tensor=8' takes 16 devices; there are 8"
    options = ("--limit", 1, "--n", 2, "--slots", 4, "--max-tokens", 8, "--out", run, "--mesh", "data=2")
    kinetics("sample", smallest, *options)
    described = json.loads((run / "run.json").read_text())
    assert (described["mesh"], described["slots"]) == ("data=2", 4)
