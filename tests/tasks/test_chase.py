"""The built-in task and the checkpoints that come with the package."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from kinetics_jax.assets import ASSETS, builtin_models
from kinetics_jax.checkpoints.hf import load_hf, read_config
from kinetics_jax.models.qwen3 import Qwen3
from kinetics_jax.tasks import chase

PROBLEMS = [json.loads(line) for line in (ASSETS / "problems.jsonl").read_text().splitlines()]
IDS = {token: index for index, token in enumerate(chase.vocabulary())}
MODELS = builtin_models()


def causal(layer, q, k, v, state):
    """Dense causal attention over a whole sequence: q [batch, time, heads, head_dim], k and v with kv_heads."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True), state


def test_held_out_problems_are_solved_by_an_independent_reading():
    assert len(PROBLEMS) >= 96
    assert len({problem["id"] for problem in PROBLEMS}) == len(PROBLEMS)
    assert len({problem["question"] for problem in PROBLEMS}) == len(PROBLEMS)
    for problem in PROBLEMS:
        assert chase.solve(problem["question"]) == int(problem["answer"])


def test_held_out_problems_are_made_from_their_seed():
    made = chase.held_out_problems(len(PROBLEMS))
    assert [(p.question, str(p.answer)) for p in made] == [(p["question"], p["answer"]) for p in PROBLEMS]
    assert {p.hops for p in made[:11]} == set(range(chase.HOPS[0], chase.HOPS[1] + 1))


@pytest.mark.parametrize(("nodes", "hops"), [(8, 3), (20, 10), (32, 6), (32, 16), (32, 32), (1, 1)])
def test_solutions_follow_the_statements(nodes, hops):
    rng = np.random.default_rng(7)
    for _ in range(20):
        problem = chase.make_problem(rng, nodes, hops)
        question, solution = problem.question.split(), problem.solution.split()
        assert len(question) == 2 * nodes + 4
        assert len(solution) == 4 * hops + 2
        assert set(question + solution) <= set(IDS)
        assert chase.solve(problem.question) == problem.answer == int(solution[-3 - 2])
        assert solution[-2:] == [chase.boxed(problem.answer), chase.EOS]
        place, value = question[-1], int(question[-3])
        for applied, written, echo, following in zip(*(solution[i:-2:4] for i in range(4)), strict=True):
            multiplier, addend = chase.OPERATIONS[[chase.operation(i) for i in range(12)].index(applied)]
            value = (multiplier * value + addend) % chase.MODULUS
            assert (value, f"@{place}") == (int(written), echo)
            assert {f"{place}:{applied}", f"{place}>{following}"} <= set(question)
            place = following
        assert place == chase.END


def test_the_first_operations_are_the_only_ones_when_asked():
    rng = np.random.default_rng(5)
    words = " ".join(chase.make_problem(rng, 32, 16, operations=2).question for _ in range(4)).split()
    assert {word.split(":")[1] for word in words if ":" in word} == {chase.operation(0), chase.operation(1)}


def test_impossible_problems_are_refused():
    with pytest.raises(ValueError, match="hops=9, nodes=8"):
        chase.make_problem(np.random.default_rng(0), 8, 9)
    with pytest.raises(ValueError, match="start VALUE at NODE"):
        chase.solve("n1>end n1:+5")


@pytest.mark.parametrize("name", MODELS)
def test_checkpoint_holds_the_models_tensors_and_vocabulary(name):
    config = read_config(ASSETS / name)
    assert config.eos_token_ids == (IDS[chase.EOS],)
    assert config.tie_word_embeddings
    state = nnx.state(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    wanted = {"model." + ".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}
    with safe_open(ASSETS / name / "model.safetensors", framework="np") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert found == wanted
    tokenizer = json.loads((ASSETS / name / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"] == IDS
    parameters = sum(int(np.prod(shape)) for shape in found.values())
    assert name == f"chase-{round(parameters / 1000)}k"


def test_tokenizer_takes_a_text_apart_and_joins_it():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(ASSETS / MODELS[0] / "tokenizer.json"))
    problem = chase.make_problem(np.random.default_rng(3))
    text = f"{problem.question} {problem.solution}"
    ids = tokenizer.encode(text).ids
    assert ids == [IDS[token] for token in text.split()]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == text.removesuffix(f" {chase.EOS}")
    assert tokenizer.encode("n1 unheard-of").ids == [IDS["n1"], IDS[chase.UNK]]


@pytest.mark.slow
def test_transformers_continues_as_our_model_does():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    directory = ASSETS / MODELS[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    prompts = tokenizer([problem["question"] for problem in PROBLEMS[:4]], return_tensors="pt").input_ids
    with torch.no_grad():
        texts = theirs.generate(prompts, max_new_tokens=chase.MAX_OUTPUT, do_sample=False)[:, prompts.shape[1] :]

    config = read_config(directory)
    ours = nnx.merge(*load_hf(directory, config, dtype=jnp.float32))
    tokens = np.concatenate([prompts.numpy(), texts.numpy()], axis=1).astype(np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = ours(jnp.asarray(tokens), jnp.asarray(positions), causal)
    argmax = np.argmax(np.asarray(ours.logits(hidden)), axis=-1)[:, prompts.shape[1] - 1 : -1]
    for chosen, written in zip(argmax, texts.numpy(), strict=True):
        length = int(np.argmax(written == IDS[chase.EOS])) + 1 if IDS[chase.EOS] in written else len(written)
        np.testing.assert_array_equal(chosen[:length], written[:length])
    assert tokenizer.decode(texts[0], skip_special_tokens=True).split()[1].isdigit()
