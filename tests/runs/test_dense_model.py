"""Records of agreement with dense attention, added when asked for, and of speculation with its price."""

import dataclasses
import json
import operator

import numpy as np
import pytest

import kinetics_jax as kj
from kinetics_jax.analysis.counted import with_costs_from
from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.samples import SamplesError, pooled, run_data
from kinetics_jax.assets import builtin_models
from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.cli.run_summary import run_summary
from kinetics_jax.runs.best_of_n import best_of_n, grade_again
from kinetics_jax.runs.folder import TraceError, read_run
from kinetics_jax.runs.whole_run import run_agreement, run_speculation
from kinetics_jax.settings import EngineSettings
from kinetics_jax.tasks.problems import load_problems

SAMPLING = kj.Sampling(temperature=0.9, top_k=40, max_tokens=40, seed=2)
GREEDY = kj.Sampling(temperature=0, max_tokens=40)
SPARSE = kj.BlockTopK(budget=32, page_size=4, dense_layers=())

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lm():
    return kj.load(builtin_models()[0], dtype="float32")


def run(lm, out, **changes):
    options = {"sampling": SAMPLING, "settings": EngineSettings(slots=4, chunk=16), "policy": SPARSE, **changes}
    return best_of_n(lm, load_problems("builtin", limit=2), task="builtin", n=2, out=out, **options)


def without(record: dict, *names: str) -> dict:
    return {name: value for name, value in record.items() if name not in names}


def test_agreement_is_added_to_records_that_lack_it(lm, tmp_path):
    plain = run(lm, tmp_path)
    assert run_agreement(plain) == {}
    calls = []
    done = run(lm, tmp_path, agreement=True, on_progress=calls.append)
    assert {call.tokens for call in calls} == {0}, "nothing is drawn again"
    assert len(calls) >= 4
    overlaps = []
    for before, after in zip(plain.samples, done.samples, strict=True):
        assert without(after, "agreement") == before
        prompt = lm.encode(plain.problems[after["problem"]]["prompt"])
        want = lm.agreement(
            prompt, after["output_tokens"], attention=SPARSE, problem=after["problem"], sample=after["sample"], seed=2
        )
        for name in ("overlap", "logprobs", "dense_logprobs"):
            np.testing.assert_allclose(after["agreement"][name], getattr(want, name), atol=2e-4)
        assert after["agreement"]["agreement_p5"] == pytest.approx(np.percentile(want.overlap, 5), abs=1e-3)
        overlaps += after["agreement"]["overlap"]
    told = run_agreement(done)
    assert told == pytest.approx({"agreement": np.mean(overlaps), "agreement_p5": np.percentile(overlaps, 5)})
    assert told["agreement_p5"] < told["agreement"] < 1
    assert f"agreement with dense attention {told['agreement']:.3f}" in run_summary(done)
    again = run(lm, tmp_path)  # without asking: what is there stays
    assert again.samples == done.samples
    grade_again(tmp_path)
    assert read_run(tmp_path).samples == done.samples


def test_drafts_without_a_price_are_refused_before_anything_is_drawn(lm, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Unpriced(kj.AttentionPolicy):
        budget: int = 32
        page_size: int = 4
        kind, price = "unpriced_drafts", "measured"
        cache_summary, summary_vectors = "mean", 1

        def choose(self, step):
            return step.choose_pages(step.score_pages(), pages=8, sink_pages=1, recent_pages=1)

    kj.register_policy(Unpriced)
    with pytest.raises(PolicyError, match="drafts by the formula of their policy, and unpriced_drafts has none"):
        run(lm, tmp_path / "new", policy=Unpriced(), settings=EngineSettings(slots=4, chunk=16, speculate=2))
    assert not (tmp_path / "new").exists()


def by_problem(data):
    """What the samples of each problem cost by their records."""
    return {
        name: [cost for problem, cost in zip(data.problem, data.own["cost"], strict=True) if problem == name]
        for name in set(data.problem)
    }


def test_speculation_is_recorded_with_its_price(lm, tmp_path):
    dense = run(lm, tmp_path / "dense", policy="dense", sampling=GREEDY)
    settings = EngineSettings(slots=4, chunk=16, speculate=3)
    done = run(lm, tmp_path / "speculated", sampling=GREEDY, settings=settings)
    assert done.header["policy"] == "dense"
    assert done.header["speculate"] == {"tokens": 3, "draft": str(SPARSE)}
    key = operator.itemgetter("problem", "sample")
    other = {key(record): record for record in dense.samples}
    drafted = accepted = 0
    for record in done.samples:
        assert record["output_tokens"] == other[key(record)]["output_tokens"]
        told = record["speculation"]
        assert sum(told["rounds"]) == len(record["output_tokens"]) - 1
        assert told["accepted_length"] == pytest.approx(np.mean(told["rounds"]), abs=1e-4)
        assert told["cost"] == told["draft"] + told["verify"]
        assert told["draft"] > 0
        assert told["batch"] > 1000  # of so small a model's samples
        price = kj.generation_cost(
            lm.config, prompt_tokens=record["prompt_tokens"], output_tokens=len(record["output_tokens"]),
            hardware="h100", kv_bytes=4, weight_bytes=4, batch=told["batch"],
        )  # fmt: skip
        assert told["dense_cost"] + told["prefill"] == pytest.approx(float(price.total))
        drafted, accepted = drafted + told["drafted"], accepted + told["accepted"]
    totals = run_speculation(done)
    assert totals["accepted"] == accepted / drafted
    assert 1 < totals["accepted_length"] < 4
    assert "tokens a round of speculation" in run_summary(done)
    data = run_data(done)
    assert data.own["cost"] == [told["speculation"]["cost"] + told["speculation"]["prefill"] for told in done.samples]
    assert data.settings["speculate"] == f"3 of {SPARSE}"
    for both in ((data, run_data(dense)), (run_data(dense), data)):
        with pytest.raises(SamplesError, match="differ in speculate cannot be pooled"):
            pooled(both)
    assert cost_frontier([data], trials=[1])["cost"][0] == pytest.approx(
        np.mean([np.mean(costs) for costs in by_problem(data).values()])
    )
    for other_price in ({"hardware": "b200"}, {"convention": "paper"}, {"batch": 4}, {"intensity": 100.0}):
        with pytest.raises(SamplesError, match="speculated, and their records state what they cost on one h100"):
            cost_frontier([data], trials=[1], **other_price)
    with pytest.raises(SamplesError, match="speculated, and cost what their records say; leave out --costs-from"):
        with_costs_from(pooled([data]), "counts")
    with pytest.raises(TraceError, match=r"speculate\.tokens: 3 stored, 2 asked for"):
        run(lm, tmp_path / "speculated", sampling=GREEDY, settings=EngineSettings(slots=4, chunk=16, speculate=2))
    assert json.loads((tmp_path / "speculated" / "run.json").read_text())["speculate"]["tokens"] == 3
