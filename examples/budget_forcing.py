"""Budget forcing: a text is made to answer when its budget is spent, and made to look again when it answers.

    python examples/budget_forcing.py

The task is to follow a program hop by hop, `+5 47 @n12 n7`, until `end` and `\\boxed{47}`. A text that is cut short has
no answer. Forcing `end` behind it makes the model box the value that it holds: right where only the answer was missing.
Forcing the question's last words behind an answer ("Wait") makes it go through the program once more with its first
text in view; where both answers agree, they can be trusted. Both go on from the KV cache of what is there: nothing is
computed twice, and the sample is the one that would have been drawn if the forced tokens had come by themselves.
"""

import re

import kinetics_jax as kj

SAMPLING = kj.Sampling(temperature=1.0, seed=0)


def boxed(sample):
    """The last answer of a sample's text; None if it has none."""
    found = re.findall(r"\\boxed\{(\d+)\}", sample.text)
    return found[-1] if found else None


def main():
    problems = {problem.id: problem for problem in kj.load_problems("builtin", limit=24)}

    def right(samples):
        return sum(boxed(sample) == problems[sample.id].answer for sample in samples)

    with kj.load("chase-212k").open(sampling=SAMPLING, settings=kj.EngineSettings(slots=16, chunk=16)) as decoder:
        print("budget  cut short  made to answer")
        for budget in (32, 48, 64):
            for problem in problems.values():
                decoder.add(problem.question, id=problem.id, samples=[0], max_tokens=budget)
            samples = {sample.id: sample for sample in decoder}
            for sample in list(samples.values()):
                if sample.finish_reason == "length":
                    decoder.extend(sample, "end", max_tokens=2)
            forced = samples | {sample.id: sample for sample in decoder}
            print(f"{budget:6}  {right(samples.values()):9}  {right(forced.values()):14}")

        first = {name: boxed(sample) for name, sample in forced.items()}
        for name, sample in forced.items():
            again = re.search(r"start \d+ at n\d+", problems[name].question)[0]
            decoder.extend(sample, again, max_tokens=100)
        second = list(decoder)
        agreed = [sample for sample in second if boxed(sample) == first[sample.id]]
        print(f"looked again: {right(second)} of {len(second)} right")
        print(f"both answers agree: {right(agreed)} of {len(agreed)} right")


if __name__ == "__main__":
    main()
