"""Policies of others: registered, found by entry points, refused by name; and what is said of wrong choices."""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import kinetics
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError
from kinetics_jax.attention.policies.registry import POLICIES, as_policy, parse_policy, slug, stored_policy
from kinetics_jax.engine.engine import Request
from kinetics_jax.settings import EngineSettings


@dataclasses.dataclass(frozen=True)
class Own(kj.AttentionPolicy):
    """The first page, the current one, and the next after the first; options of every type."""

    budget: int = 12
    page_size: int = 4
    share: float = 0.5
    mode: str = ""
    strict: bool = False
    weights: tuple[float, ...] = (0.25, 0.75)
    names: tuple[str, ...] = ()
    dense_layers: tuple[int, ...] = (0,)

    kind = "own"
    price = "measured"

    def choose(self, step):
        scores = jnp.broadcast_to(
            -jnp.arange(step.max_pages, dtype=jnp.float32), (step.batch, step.kv_heads, step.max_pages)
        )
        return step.choose_pages(scores, pages=3, sink_pages=1, recent_pages=1)


@pytest.fixture(autouse=True)
def registered():
    """What a test registers is forgotten."""
    before = dict(POLICIES)
    kj.register_policy(Own)
    yield
    POLICIES.clear()
    POLICIES.update(before)


names = st.from_regex(r"[a-z][a-z0-9/_.=:-]{0,8}", fullmatch=True)
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    share=finite,
    mode=st.one_of(st.just(""), names),
    strict=st.booleans(),
    weights=st.lists(finite, max_size=3).map(tuple),
    texts=st.lists(names.filter(lambda name: name != "none"), max_size=3).map(tuple),
)
def test_options_of_every_type_are_read_back(share, mode, strict, weights, texts):
    policy = Own(share=share, mode=mode, strict=strict, weights=weights, names=texts)
    again = parse_policy(str(policy))
    assert (again, hash(again)) == (policy, hash(policy))
    assert re.fullmatch(r"[\w.-]+", slug(policy))


def test_spellings_of_options():
    for policy, spelling in {
        Own(): "own",
        Own(share=1): "own:share=1",
        Own(share=np.float32(0.25), strict=True): "own:share=0.25,strict=true",
        Own(share=1e20, weights=(1e20, 2)): "own:share=1e20,weights=1e20+2",
        Own(weights=(), names=("a b", "c")): "own:weights=none,names=a b+c",
        Own(mode="gate=/tmp/x.npz"): "own:mode=gate=/tmp/x.npz",
    }.items():
        assert str(policy) == spelling
        assert parse_policy(spelling) == policy


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: parse_policy("own:share=much"), "share = 'much' is not a number"),
        (lambda: parse_policy("own:share=nan"), "share must be a finite number, got nan"),
        (lambda: parse_policy("own:strict=1"), "strict = '1' is not true or false"),
        (lambda: parse_policy("own:weights=1+x"), r"weights = '1\+x' is not a number"),
        (lambda: parse_policy("own:page_size=0"), "page_size must be at least 1, got 0"),
        (lambda: parse_policy("own:budget=-4"), "budget must not be negative, got -4"),
        (lambda: parse_policy("own:dense_layers=0+x"), r"dense_layers = '0\+x' is not a whole number"),
        (lambda: Own(share="0.5"), "share must be a number, got '0.5'"),
        (lambda: Own(share=10**400), "share must be a finite number, got inf"),
        (lambda: Own(mode="a,b"), "without a comma"),
        (lambda: Own(mode="a\nb"), "printable"),
        (lambda: Own(names="ab"), r"names must be a tuple, as in \('a', 'b'\)"),
        (lambda: Own(names=("a+b",)), "plus sign"),
        (lambda: Own(names=("none",)), "must not be 'none'"),
        (lambda: Own(strict=1), "strict must be True or False"),
        (lambda: parse_policy("x" * 10_000), r"attention '?x+…x+'? is not known|is not known"),
    ],
)
def test_values_that_make_no_sense_are_refused(make, says):
    with pytest.raises(PolicyError, match=says) as error:
        make()
    assert len(str(error.value)) < 700


def own(**members):
    """A frozen dataclass on AttentionPolicy."""
    return dataclasses.dataclass(frozen=True)(type("Other", (AttentionPolicy,), {"__module__": __name__, **members}))


RULE = {"choose": lambda self, step: None, "price": "measured"}


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (lambda: 3, "3 is no class on kinetics_jax.AttentionPolicy"),
        (lambda: own(**RULE), "needs kind = 'a_name' of letters, digits and underscores"),
        (lambda: own(kind="a:b", **RULE), "needs kind = 'a_name'"),
        (lambda: own(kind="block_topk", **RULE), "block_topk is a policy already"),
        (lambda: own(kind="fresh", choose=RULE["choose"]), "fresh does not say its cost: write step_counts"),
        (lambda: own(kind="fresh", price="measured"), r"fresh does not say how it chooses: write choose\(step\)"),
        (
            lambda: own(kind="fresh", **{**RULE, "price": "free"}),
            "price must be one of formula, .*measured, got 'free'",
        ),
        (lambda: own(kind="fresh", x=None, __annotations__={"x": "int | None"}, **RULE), r"x is of type int \| None"),
        (lambda: own(kind="fresh", budget=0.5, __annotations__={"budget": "float"}, **RULE), "budget is of type float"),
        (
            lambda: dataclasses.dataclass(type("Loose", (AttentionPolicy,), {"kind": "loose", **RULE})),
            "loose .* must be a frozen dataclass",
        ),
        (lambda: type("Bare", (AttentionPolicy,), {"kind": "bare", **RULE}), "must be a frozen dataclass"),
    ],
)
def test_what_cannot_be_registered(policy, says):
    with pytest.raises(PolicyError, match=says):
        kj.register_policy(policy())


def test_a_cell_that_is_run_again_replaces_its_policy():
    first, second = own(kind="fresh", **RULE), own(kind="fresh", **RULE)
    assert kj.register_policy(first) is first
    kj.register_policy(second)
    assert type(parse_policy("fresh")) is second
    assert as_policy(first()) is not None  # in this process it runs
    with pytest.raises(PolicyError, match="fresh: the spelling is read as another policy than"):
        stored_policy(first())


def test_a_policy_that_nobody_registered_writes_no_run_folder():
    with pytest.raises(PolicyError, match=r"'fresh' is not known .*register_policy, or by an entry point"):
        stored_policy(own(kind="fresh", **RULE)())


def install(site, name, entries, source=None):
    """A distribution on the path that declares entry points, as pip leaves it."""
    info = site / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[kinetics_jax.policies]\n" + "\n".join(entries))
    if source is not None:
        (site / f"{name}.py").write_text(source)


def test_entry_points_that_cannot_be_taken(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    good = (
        "import dataclasses\nimport kinetics_jax as kj\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Good(kj.AttentionPolicy):\n"
        "    kind, price = 'good_one', 'measured'\n    share: float = 0.5\n"
        "    def choose(self, step):\n        return step.page_table\n"
    )
    install(tmp_path, "good_pack", ["good_one = good_pack:Good", "misnamed = good_pack:Good"], good)
    install(tmp_path, "bad_pack", ["broken = bad_pack:Nothing", "twice = bad_pack:A"], "raise ImportError('no cuda')\n")
    install(tmp_path, "other_pack", ["twice = other_pack:B"])
    assert "good_pack" not in sys.modules
    with pytest.raises(
        PolicyError, match=r"'no_such' is not known \(known: dense, .*, broken, good_one, misnamed, twice"
    ):
        parse_policy("no_such")
    assert "good_pack" not in sys.modules  # declared, and not imported before it is asked for
    assert parse_policy("good_one:share=0.25").share == 0.25
    for kind, says in {
        "misnamed": "must name a policy whose kind is 'misnamed', and its is 'good_one'",
        "broken": r"broken = 'bad_pack:Nothing' of the package bad_pack cannot be loaded \(ImportError: no cuda\)",
        "twice": "two packages declare it .bad_pack:A of the package bad_pack and other_pack:B of the package other",
    }.items():
        with pytest.raises(PolicyError, match=says):
            parse_policy(kind)


# What it chooses, in an engine.


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5), dtype="float32")


def run(lm, policy, *, samples=2, max_tokens=18):
    engine = lm.engine(
        sampling=kj.Sampling(max_tokens=max_tokens, seed=1), attention=policy, settings=EngineSettings(slots=4, chunk=6)
    )
    prompts = tiny_prompts(3, first=9)
    return engine.run([Request(str(i), prompt[:9], range(samples)) for i, prompt in enumerate(prompts)])


def scores_of(step, fill=0.0):
    return jnp.full((step.batch, step.kv_heads, step.max_pages), fill)


def everything(step):
    return jnp.broadcast_to(step.page_table[:, None], (step.batch, step.kv_heads, step.max_pages))


def shifted(step):
    """The pages of the row above."""
    return jnp.roll(everything(step), 1, axis=0)


def long(step):
    return step.lengths[:, None, None] > 16  # from where on a fault begins: some samples have ended before


CHOICES = {
    "nan": lambda step: step.choose_pages(
        jnp.where(long(step), jnp.nan, scores_of(step)), pages=3, sink_pages=1, recent_pages=1
    ),
    "foreign": lambda step: jnp.where(long(step), shifted(step), everything(step))[..., :8],
    "twice": lambda step: jnp.where(long(step), everything(step)[..., :1], everything(step))[..., :8],
    "covered": lambda step: (everything(step), jnp.broadcast_to(step.lengths[:, None] + 1, (4, 2))),
    "mask": lambda step: step.keep_pages(scores_of(step) == 0, at_most=4),
    "budget": lambda step: step.keep_pages(scores_of(step) == 0, at_most=30),
    "nothing": lambda step: step.keep_pages((scores_of(step) == 0) & ~long(step), at_most=30),
}
SAYS = {
    "nan": "scores pages with NaN",
    "foreign": "returns pages that are not its sequence's",
    "twice": "names a page twice",
    "covered": "covers more tokens than its pages hold",
    "mask": "keeps more pages than at_most",
    "budget": "attends to more tokens than its budget of 20",
    "nothing": "attends to nothing; keep the current page at least",
}


@dataclasses.dataclass(frozen=True)
class Wrong(kj.AttentionPolicy):
    how: str = "nan"
    budget: int = 0
    page_size: int = 4
    dense_layers: tuple[int, ...] = (0,)
    kind = "wrong"
    price = "measured"

    def choose(self, step):
        return CHOICES[self.how](step)


@pytest.mark.slow
@pytest.mark.parametrize("how", CHOICES)
def test_a_wrong_choice_ends_the_run_with_one_line_that_says_what_and_where(lm, how):
    policy = Wrong(how=how, budget=20 if how == "budget" else 0)
    with pytest.raises(PolicyError) as error:
        list(run(lm, policy))
    said = str(error.value)
    assert said.startswith(f"{policy}: in layer 1 it {SAYS[how]}")
    assert re.search(r"\(problem '\d', sample \d\)$", said)
    assert "\n" not in said


@pytest.mark.slow
def test_samples_that_end_beside_a_fault_are_kept(lm):
    """In one chunk: two samples of a short prompt end where the others' fault has not begun, and come out before it."""
    engine = lm.engine(
        sampling=kj.Sampling(max_tokens=12, seed=1),
        attention=Wrong(how="nan"),
        settings=EngineSettings(slots=4, chunk=16),
    )
    long, short = tiny_prompts(1, first=12)[0], tiny_prompts(1, first=4)[0]
    kept = []
    with pytest.raises(PolicyError, match=r"scores pages with NaN.*\(problem 'long', sample 0\)"):
        kept.extend(engine.run([Request("long", long, range(2)), Request("short", short[:4], range(2))]))
    assert [(done.problem, done.finish_reason) for done in kept] == [("short", "length")] * 2


@dataclasses.dataclass(frozen=True)
class Scored(kj.AttentionPolicy):
    """Block top-k by its own scores, which NaN in the model makes NaN."""

    page_size: int = 4
    kind, price = "scored", "measured"
    cache_summary, summary_vectors = "mean", 1

    def choose(self, step):
        return step.choose_pages(step.score_pages(), pages=3, sink_pages=1, recent_pages=1)


@pytest.mark.slow
def test_numbers_that_are_not_finite_in_the_model_are_not_the_policys_fault(tmp_path):
    """The embeddings of half the vocabulary are NaN: samples that draw of it end as nonfinite, and the run goes on."""
    lm = kj.load(write_checkpoint(tmp_path, tiny_config(), seed=5), dtype="float32")

    def spoilt(path, leaf):
        return leaf.at[65:].set(jnp.nan) if "embed_tokens" in jax.tree_util.keystr(path) else leaf

    lm.weights = jax.tree_util.tree_map_with_path(spoilt, lm.weights)
    prompt = list(range(20, 38))
    with pytest.warns(UserWarning, match="logits are not finite"):
        samples = lm.generate([prompt], n=4, attention=Scored(), sampling=kj.Sampling(max_tokens=12, seed=2))
    assert {sample.finish_reason for sample in samples} == {"nonfinite"}
    assert max(len(sample.output_tokens) for sample in samples) > 1  # by then it had chosen pages


CALLS = {  # ops that are called as they cannot be
    "few": lambda step: step.choose_pages(scores_of(step), pages=2, sink_pages=1, recent_pages=1),
    "at_most": lambda step: step.keep_pages(scores_of(step) > 0, at_most=0),
    "other": lambda step: step.select_pages(pages=3, sink_pages=1, recent_pages=1, summary="min_max"),
}


@dataclasses.dataclass(frozen=True)
class Returns(kj.AttentionPolicy):
    what: str = "none"
    page_size: int = 4
    kind = "returns"
    price = "measured"

    def carried(self, head_dim):
        if self.what == "declares":
            return {"n": 5}
        return {"n": ((), "int32")} if self.what == "carry" else {}

    def attend_and_carry(self, step):
        out, carried = step.attend_all(), step.carried
        if self.what == "none":
            return step.attend_chosen(None), carried
        if self.what == "floats":
            return step.attend_chosen(scores_of(step)), carried
        if self.what == "shape":
            return out[:, :1], carried
        if self.what == "carry":
            return out, {"n": carried["n"].astype(jnp.float32)}
        if self.what == "more":
            return out, {"n": jnp.zeros(())}
        if self.what == "bare":
            return out
        if self.what == "summaries":
            return step.attend_chosen(step.choose_pages(step.score_pages(), pages=3, sink_pages=1, recent_pages=1)), {}
        if self.what == "raises":
            raise LookupError("of its own")
        if self.what == "scores":
            return step.attend_chosen(step.choose_pages(step.lengths, pages=3, sink_pages=1, recent_pages=1)), carried
        if self.what in CALLS:
            return step.attend_chosen(CALLS[self.what](step)), carried
        if self.what == "counts":
            step.count(tokens=jnp.ones((step.batch, 3), jnp.int32))
            return out, carried
        if self.what == "uncounted":
            step.tally.tokens.clear()
            return out, carried
        return jax.lax.cond(True, lambda: step.attend_all(), lambda: out), carried


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("none", "choose must return pages.* it returns a NoneType"),
        ("floats", r"choose must return pages.* it returns float32\[4, 2, "),
        ("shape", r"its attention is float32\[4, 1, 8\]; it must be float32\[4, 4, 8\]"),
        ("carry", r"its carried 'n' is float32\[2, 4\]; it must be int32\[2, 4\]"),
        ("more", r"it carries \['n'\], and its `carried` declares \[\]"),
        ("bare", "attend_and_carry must return attention and what is carried"),
        ("scores", r"it gives scores of int32\[4\]; it must be floats \[4, 2, "),
        ("summaries", "it scores page summaries, and its cache keeps none; say which: cache_summary"),
        ("uncounted", "it attends without the step's ops; say what it reads: step.count"),
        ("few", "it chooses with pages=2, sink_pages=1, recent_pages=1; recent_pages must be at least 1"),
        ("at_most", "keep_pages: at_most must be at least 1, got 0"),
        ("other", "it reads min_max summaries, and its cache keeps none; say which: cache_summary = .min_max."),
        ("counts", r"it counts \[4, 3\] reads; they must be \[4, 2\]"),
        ("cond", "calls the step's ops inside jit, lax.cond, scan or vmap"),
    ],
)
def test_results_of_another_kind_are_refused_before_a_step_is_taken(lm, what, says):
    with pytest.raises(PolicyError, match=f"returns.*: in layer 0 .*{says}"):
        list(run(lm, Returns(what=what)))


def test_a_policy_that_names_itself_or_its_arrays_wrongly_is_refused(lm):
    with pytest.raises(PolicyError, match=r"returns:what=declares: carried\(head_dim\) must name arrays.*got {'n': 5}"):
        list(run(lm, Returns(what="declares")))
    with pytest.raises(PolicyError, match="Other needs its name in spellings: kind = 'a_name'"):
        own()()
    with pytest.raises(PolicyError, match="own: page_size must be at least 1, got 0"):
        own(kind="own", page_size=0)()


def test_what_a_policys_own_code_raises_is_told_with_its_place(lm):
    with pytest.raises(LookupError, match="of its own") as error:
        list(run(lm, Returns(what="raises")))
    assert error.value.__notes__[0].startswith("returns:what=raises: in layer 0 of test_own_policies.Returns")


def test_a_policy_that_is_no_frozen_dataclass_is_refused_before_anything_runs(lm):
    loose = dataclasses.dataclass(type("Loose", (AttentionPolicy,), {"kind": "loose", **RULE}))
    for policy in (loose(), type("Bare", (AttentionPolicy,), {"kind": "bare", **RULE})()):
        with pytest.raises(PolicyError, match="must be a frozen dataclass: write @dataclasses"):
            lm.generate([[5, 6]], attention=policy)


@pytest.mark.slow
def test_counts_of_samples_are_sums_over_their_steps(lm):
    """In chunks, over refills: the pages of an own policy are counted too; a sample's first token takes no step."""
    for done in run(lm, Own(), samples=4):
        length = 9 + np.arange(1, len(done.output_tokens))
        # Three pages of four, of which the current one may be partial; all while there are no more.
        sparse = np.where(length <= 12, length, 8 + (length - 1) % 4 + 1)
        assert done.attended_tokens == 2 * (length.sum() + sparse.sum())
        assert done.summary_vectors == 0


@dataclasses.dataclass(frozen=True)
class LateNaN(kj.AttentionPolicy):
    """Scores that are NaN in sequences of more than `after` tokens."""

    after: int = 27
    page_size: int = 4
    kind, price = "late_nan", "measured"

    def choose(self, step):
        scores = jnp.where(step.lengths[:, None, None] > self.after, jnp.nan, scores_of(step))
        return step.choose_pages(scores, pages=3, sink_pages=1, recent_pages=1)


@pytest.mark.slow
def test_a_command_that_a_fault_ends_keeps_its_records(tmp_path):
    """Two samples of a prompt of 14 tokens end in time, those of one of 19 tokens do not; the same command goes on."""
    kj.register_policy(LateNaN)
    asked = {"short": "n1>n2", "long": "n1>n2 n3>n4 n5:+5 n6>n7 n8>end n9>n1"}
    lines = [json.dumps({"id": name, "question": text, "answer": "3"}) for name, text in asked.items()]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    command = ["sample", "chase-131k", "--problems", tmp_path / "problems.jsonl", "--n", "2", "--slots", "2"]
    command += ["--max-tokens", "12", "--attention", "late_nan", "--out", tmp_path / "run"]
    kept = []
    for _ in range(2):
        said = kinetics(*command, code=2).stderr.splitlines()[-1]
        assert said.startswith("kinetics: late_nan: in layer 0 it scores pages with NaN")
        assert said.endswith("(problem 'long', sample 0)")
        before, kept = kept, kj.read_run(tmp_path / "run").samples
        assert kept[: len(before)] == before
        assert [(record["problem"], record["sample"]) for record in kept[:2]] == [("short", 0), ("short", 1)]
        assert ("long", 0) not in [(record["problem"], record["sample"]) for record in kept]
