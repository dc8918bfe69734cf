"""Tree search with a verifier: a text grows hop by hop, and only from hops that are right.

    python examples/tree_search.py

The task is to follow a program, `+5 47 @n12 n7` a hop: at node n12 add 5, hold 47, go on to n7. The search draws a hop
at a time (the stop text is the `@` of its end), forks the text that it believes, and lets a verifier choose which fork
goes on. Forks share the KV pages of their text and draw noise of their own: a hop that failed can be drawn again.
"""

import re

import kinetics_jax as kj

WIDTH, TRIES = 4, 3


def obeys(question, text):
    """Whether every hop of a text follows the program: its node, its operation, its value; and its answer, if any."""
    value, node = re.search(r"start (\d+) at (n\d+)", question).groups()
    does, follows = dict(re.findall(r"(n\d+):(\S+)", question)), dict(re.findall(r"(n\d+)>(\S+)", question))
    for hop in re.findall(r"(\S+) (\d+) @(n\d+)", text):
        times, plus = re.fullmatch(r"(?:\*(\d+))?\+(\d+)", does.get(node, "+0")).groups()
        value = str((int(value) * int(times or 1) + int(plus)) % 97)
        if hop != (does.get(node), value, node):
            return False
        node = follows[node]
    return "boxed" not in text or (node == "end" and text.endswith(f"end \\boxed{{{value}}}"))


def search(lm, decoder, question):
    """The text of a solution, None if none was found; and the tokens drawn for it."""
    trunk, drawn = None, 0
    for _ in range(TRIES * question.count(":")):
        for fork in decoder.fork(trunk, WIDTH) if trunk else ():
            decoder.extend(fork, stop="@")
        if trunk is None:
            decoder.add(question, n=WIDTH, stop="@")
        leaves = list(decoder)
        drawn += sum(len(leaf.output_tokens) - len(trunk.output_tokens if trunk else ()) for leaf in leaves)
        right = [leaf for leaf in leaves if obeys(question, lm.decode(leaf.output_tokens))]
        if solved := [leaf.text for leaf in right if "boxed" in leaf.text]:
            return solved[0], drawn
        decoder.release(*(leaf for leaf in leaves if leaf not in right[:1]))
        trunk = right[0] if right else trunk
    return None, drawn


def main():
    lm, questions = kj.load("chase-131k"), [problem.question for problem in kj.load_problems("builtin", limit=12)]
    whole = lm.generate(questions, n=4 * WIDTH, sampling=kj.Sampling(max_tokens=160))
    right = {each.problem for each in whole if "boxed" in each.text and obeys(questions[each.problem], each.text)}
    print(f"whole texts: {len(right)} of 12 solved, {sum(len(each.output_tokens) for each in whole)} tokens")
    with lm.open(sampling=kj.Sampling(max_tokens=12), settings=kj.EngineSettings(slots=WIDTH, chunk=8)) as decoder:
        found = [search(lm, decoder, question) for question in questions]
    print(f"tree search: {sum(bool(text) for text, _ in found)} of 12 solved, {sum(n for _, n in found)} tokens")


if __name__ == "__main__":
    main()
