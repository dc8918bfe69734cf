"""Where answers stand."""

import pytest

from kinetics_jax.tasks.answers import completed, last_answer_box, split_reasoning, stated_answer


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>a</think>b", ("<think>a", "b")),
        ("a</think>b", ("a", "b")),  # templates that open the reasoning in the prompt
        ("a</think>b</think>c", ("a</think>b", "c")),
        ("<think>a", ("<think>a", "")),
        ("a", ("", "a")),
        ("", ("", "")),
        ("<thinking>a</thinking>b", ("<thinking>a", "b")),
        ("<reasoning>a</reasoning>b", ("<reasoning>a", "b")),
        ("[THINK]a[/THINK]b", ("[THINK]a", "b")),
        ("<|begin_of_thought|>a<|end_of_thought|>b", ("<|begin_of_thought|>a", "b")),
        ("◁think▷a◁/think▷b", ("◁think▷a", "b")),
        ("[THINK]a", ("[THINK]a", "")),
        ("◁think▷a", ("◁think▷a", "")),
        ("a < b and \\[x\\]</b>", ("", "a < b and \\[x\\]</b>")),
    ],
)
def test_split_reasoning(text, parts):
    assert split_reasoning(text) == parts


@pytest.mark.parametrize(
    ("prompt", "text", "whole"),
    [
        ("<user>q<assistant><think>\n", "7 and", "<think>7 and"),
        ("<user>q<assistant><think>", "a</think>b", "<think>a</think>b"),
        ("<user>q<assistant>", "7", "7"),
        ("<user>q<assistant><think>\n\n</think>\n\n", "7", "7"),
        ("<user>What does <think> mean?<assistant>", "7", "7"),  # the question's own tag
        ("", "7", "7"),
        ("<user>q<assistant><thinking>", "7", "<thinking>7"),
        ("<user>q<assistant>[THINK]", "7", "[THINK]7"),
        ("<user>q<assistant>◁think▷", "7", "◁think▷7"),
    ],
)
def test_completed(prompt, text, whole):
    assert completed(prompt, text) == whole
    assert bool(split_reasoning(completed(prompt, text))[0]) is (whole != text or "</think>" in text)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{1} \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed 7", "7"),
        (r"$\boxed 42.$", "42"),
        (r"\boxed -1/2 $", "-1/2"),
        (r"\boxed C", "C"),
        (r"\boxed x_1", None),
        (r"\boxed 7x", None),
        (r"\boxed \frac12", None),
        (r"\boxed{1} \boxed 2", "2"),
        (r"\fbox{1} \boxed {}", "1"),
        (r"\boxed{}", None),
        ("\\boxed" + " " * 200_000 + "x", "x"),
        ("\\boxed" + " " * 200_000 + "!", None),
        ("\\boxed " * 100_000, None),
        ("\\boxed{" * 100_000 + "7" + "}" * 100_000, "7"),
    ],
)
def test_last_answer_box(text, box):
    assert last_answer_box(text) == box


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{41} Wait. \boxed{42}", "42"),
        (r"The roots are $\boxed{1}$ and $\boxed{-2}$.", "1, -2"),
        (r"<answer> 70 </answer>", "70"),
        (r"<answer>\boxed{70}</answer>", "70"),
        (r"<think>\boxed{41}</think><answer>42</answer>", "42"),
        (r"<think>\boxed{42}</think>To see this:" + "\n1. Add.\n2. Multiply by 7.", "42"),
        (r"<think>\boxed{42}</think>**Final answer:** \boxed{4", "42"),
        (r"<think>\boxed{42}</think>The answer is 4", "42"),  # cut short
        (r"<think>\boxed{4.5}</think>The answer is 4.", "4.5"),
        (r"<think>\boxed{41}</think>The answer is 42.", "42"),  # a sentence that ends
        (r"<think>so \boxed{42}. But", "42"),
        ("<think>so 42. But", None),
        ("The answer is 42.", "42"),
        ("**Answer: B**", "B"),
        ("ANSWER: $B$", "B"),
        ("**Final Answer**\n\n$\\frac{1}{2}$", r"\frac{1}{2}"),
        ("#### 42", "42"),
        ("It costs \\$70.", r"\$70."),
        ("It costs $70.", r"\$70."),
        ("The answer is not 8.", "not 8"),
        ("It is 8 or 9.", "8 or 9."),
        ("so it is $\\frac{\\pi}{2}$.", r"\frac{\pi}{2}."),
        (r"The answer is $x$, for \boxed{}", "x"),
        ("I give up.", None),
        ("", None),
        (r"\boxed{42", None),
        ("$" * 4000, None),
    ],
)
def test_stated_answer(text, answer):
    assert stated_answer(text) == answer


def test_no_cut_loses_the_answer_of_the_reasoning():
    """Accuracy over caps rises once: from the first box on, every cut states it."""
    reasoning = (
        "<think>\nFirst 6 times 7. 1. Multiply. That is \\boxed{42}, let me check: 42 = 6 * 7, yes.\n</think>\n\n"
    )
    final = (
        "To solve this:\n\n1. **Multiply** the numbers: $6 \\cdot 7 = 42$.\n2. Check 7 < 8. It holds in 5 cases.\n\n"
        "### Conclusion\nThe answer is 42.\n\n**Final answer:** The answer is $\\boxed{42}$."
    )
    first = reasoning.index("42}") + 3
    text = reasoning + final
    assert {stated_answer(text[:length]) for length in range(first, len(text) + 1)} == {"42"}
    assert {stated_answer(text[:length]) for length in range(first)} == {None}
