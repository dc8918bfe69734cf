"""The engine's bookkeeping without a device: whatever is asked, every sample ends, and no page is lost or shared."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.engine.schedule import Request, Schedule
from kinetics_jax.padding import pages_for
from kinetics_jax.settings import patience


def decode(schedule: Schedule, lengths: dict[tuple[str, int], int], table: np.ndarray) -> list[tuple[str, int]]:
    """Plays the engine, with samples of known lengths. Returns the samples in the order in which they end."""
    ended = []
    for _ in range(10_000):
        if not schedule.unfinished:
            return ended
        oldest = min((run.age for run in [*schedule.running.values(), *schedule.preempted]), default=None)
        while (slot := schedule.victim()) is not None:
            running = schedule.running[slot]
            assert running.age == max(run.age for run in schedule.running.values())
            schedule.preempt(slot, ("saved", running.stored))
        for _, running, places in schedule.resume():
            assert running.saved == ("saved", running.stored)
            assert len(places) == pages_for(running.stored, schedule.page_size) == len(running.pages)
        while admitted := schedule.admit():
            prompt, started = admitted
            assert started
            if prompt.logits is None:
                prompt.logits = "logits"
            for running in started.values():
                schedule.grow(running, pages_for(len(prompt.request.prompt), schedule.page_size))
            schedule.started(prompt)
        schedule.reserve(table)
        running = schedule.running
        assert running
        assert len(running) <= schedule.slots
        assert oldest is None or oldest in {run.age for run in running.values()}  # the oldest always goes on
        holders = Counter(page for run in running.values() for page in run.pages)
        holders += Counter(page for prompt in schedule.prompts.values() for page in prompt.pages)
        allocator = schedule.allocator
        assert [allocator.holders(page) for page in range(allocator.num_pages)] == [
            holders[page] for page in range(allocator.num_pages)
        ]
        for slot, run in list(running.items()):
            total = lengths[run.request.problem, run.sample]
            length, size = len(run.request.prompt), schedule.page_size
            shared = length // size  # pages that a sample writes to are its own
            for page in run.pages[shared:]:
                assert holders[page] == 1
            new = min(total - len(run.tokens), schedule.chunk + (not run.tokens))
            steps = new - (not run.tokens)  # the first token comes from prefill
            assert len(run.pages) * size >= run.stored + steps
            assert table[slot, : len(run.pages)].tolist() == run.pages
            run.add([7] * new)
            if len(run.tokens) == total:
                ended.append((run.request.problem, run.sample))
                schedule.finish(slot)
    raise AssertionError("it never ends")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_every_sample_ends_and_every_page_comes_back(data):
    size, chunk = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    most = data.draw(st.integers(1, 40))
    requests, lengths = [], {}
    for i in range(data.draw(st.integers(1, 5))):
        samples = range(data.draw(st.integers(1, 5)))
        requests.append(Request(f"p{i}", [5] * data.draw(st.integers(1, 25)), samples))
        lengths |= {(f"p{i}", sample): data.draw(st.integers(1, most)) for sample in samples}
    worst = max(-(-(len(request.prompt) + most) // size) + 1 for request in requests)
    pool = worst + data.draw(st.integers(0, 2 * worst))
    schedule = Schedule(
        requests,
        slots=data.draw(st.integers(1, 6)),
        num_pages=pool,
        page_size=size,
        chunk=chunk,
        max_tokens=most,
    )
    ended = decode(schedule, lengths, np.empty((schedule.slots, worst), np.int32))
    assert sorted(ended) == sorted(lengths)
    assert not schedule.prompts
    assert schedule.allocator.free == pool


def test_short_samples_do_not_wait_for_what_long_ones_may_need():
    """Sixteen slots at their worst case take four times the pool: admission by that would run four samples."""
    slots, size, most = 16, 16, 1024
    rng = np.random.default_rng(0)
    requests = [Request(f"p{i}", [5] * 20, range(8)) for i in range(16)]
    lengths = {(r.problem, s): int(most if rng.random() < 0.05 else 30) for r in requests for s in r.samples}
    schedule = Schedule(requests, slots=slots, num_pages=260, page_size=size, chunk=16, max_tokens=most)
    busy = []
    reserve = schedule.reserve

    def counted(table):
        if schedule.waiting:
            busy.append(len(schedule.running))
        reserve(table)

    schedule.reserve = counted
    assert len(decode(schedule, lengths, np.empty((slots, 80), np.int32))) == 128
    assert np.mean(busy) >= 0.9 * slots


def test_samples_of_100_and_16k_tokens_keep_the_slots_busy():
    """Counted as `decoding.Counts` are, while samples wait, in a pool of 0.6 of the worst case: 92 %."""
    slots, size, chunk, most = 32, 64, 32, 16_384
    worst = -(-(200 + most) // size) + 1
    requests = [Request(f"p{i}", [5] * 200, range(8)) for i in range(64)]
    rng = np.random.default_rng(0)
    lengths = {(r.problem, s): most if rng.random() < 0.1 else 100 for r in requests for s in r.samples}
    schedule = Schedule(
        requests, slots=slots, num_pages=slots * worst * 6 // 10, page_size=size, chunk=chunk, max_tokens=most
    )
    table = np.empty((slots, worst), np.int32)
    busy = offered = preempted = ended = 0
    while schedule.unfinished:
        while (slot := schedule.victim()) is not None:
            schedule.preempt(slot, "saved")
            preempted += 1
        schedule.resume()
        while admitted := schedule.admit():
            for run in admitted[1].values():
                schedule.grow(run, pages_for(200, size))
                run.add([7])  # from prefill
            schedule.started(admitted[0])
        schedule.reserve(table)
        waits = bool(schedule.waiting or schedule.preempted)
        running = schedule.running
        left = {slot: lengths[run.request.problem, run.sample] - len(run.tokens) for slot, run in running.items()}
        most_stopped = patience(slots) if waits else slots  # a chunk ends when so many have stopped
        steps = min(chunk, sorted(left.values())[min(most_stopped, len(left)) - 1])
        for slot, more in left.items():
            running[slot].add([7] * min(more, steps))
            busy += waits * min(more, steps)
            if more <= steps:
                schedule.finish(slot)
                ended += 1
        offered += waits * slots * steps
    assert ended == len(lengths)
    assert preempted > 0
    assert busy >= 0.9 * offered
