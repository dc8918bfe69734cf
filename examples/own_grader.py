"""Your own grader and your own verifier: what counts as right, and which of several samples to believe.

    python examples/own_grader.py

The task is to follow a program hop by hop: `+5 47 @n12 n7` adds 5 at node n12, holds 47, and goes on to n7. `grade` is
stricter than the package: the last hop must hold the value in the box. `obeys` knows no answers, as a verifier: it is
the share of the hops whose arithmetic is right. Each is called in a process of its own, so that one that hangs or
crashes costs a sample its grade, and nothing else. The run folder keeps grades, scores and what made them.
"""

import re
import tempfile

import kinetics_jax as kj


def grade(text, answer):
    """Whether box and last hop hold the known answer; with what was answered, for votes."""
    boxed = re.findall(r"\\boxed\{(\d+)\}", text)
    last = re.findall(r"(\d+) @n\d+ end", text)
    return {"correct": boxed == last == [answer], "answer": boxed[-1] if boxed else None}


def obeys(text, answer, problem):
    """The share of the text's hops whose value follows from the one before."""
    value = re.findall(r"start (\d+) at", problem["question"])[0]
    follows = []
    for times, plus, now in re.findall(r"(?:\*(\d+))?\+(\d+) (\d+) @n", text):
        follows.append((int(value) * int(times or 1) + int(plus) - int(now)) % 97 == 0)
        value = now
    return sum(follows) / max(1, len(follows))


def main():
    lm = kj.load("chase-151k", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        run = kj.best_of_n(
            lm,
            kj.load_problems("builtin", limit=6),
            task="builtin",
            n=4,
            policy=kj.Dense(),
            sampling=kj.Sampling(max_tokens=160, seed=1),
            out=f"{folder}/run",
            grader=grade,
            score=obeys,
        )
    print(f"graded by {run.header['grader']['function']}, scored by {run.header['score']['function']}")
    for name in run.problems:
        samples = [record for record in run.samples if record["problem"] == name]
        best = max(samples, key=lambda record: record["score"])
        right = sum(record["correct"] for record in samples)
        print(f"{name}: {right} of {len(samples)} right; best score {best['score']:.2f} is {best['correct']}")


if __name__ == "__main__":
    main()
