"""Graders of all kinds, good and bad, that the tests name as own.py:function."""

import multiprocessing
import os
import subprocess
import sys
import time

VALUE = 3


def good(text, answer):
    return answer in text


def scores(text, answer, problem):
    return answer in text, len(text) / problem["scale"]


def tells(text, answer, *, problem):
    return {"correct": True, "answer": problem["unit"], "score": None}


def raises(text, answer):
    raise ValueError("two\nlines of " + "x" * 1000)


def hangs(text, answer):
    while "hang" in text:
        pass
    return True


def says_yes(text, answer):
    return "yes"


def says_nothing(text, answer):
    pass


def says_nan(text, answer):
    return True, float("nan")


def says_much(text, answer):
    return {"correct": True, "colour": "red"}


def half_a_pair(text, answer):
    if answer == "raise":
        raise ValueError("\ud800")
    return {"correct": True, "answer": "\ud800"}


def answers_length(text, answer):
    return {"correct": True, "answer": len(text)}


def says_back(text, answer):
    return text


def prints(text, answer):
    print("looking at", text)
    return True


def forks(text, answer):
    os.fork()
    return True


def forks_and_hangs(text, answer):
    os.fork()
    time.sleep(100)


def pools(text, answer):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(len, ["a", "bc"]) == [1, 2]


def exits(text, answer):
    sys.exit(3)


def exits_at_once(text, answer):
    os._exit(7)


def reads(text, answer):
    done = subprocess.run([sys.executable, "-c", "print(len(input()))"], input="abc\n", text=True, capture_output=True)
    return sys.stdin.read() == "" and done.stdout == "3\n"


async def waits(text, answer):
    return True


def yields(text, answer):
    yield True


def takes_one(text):
    return True


def defaults(text, answer, tolerance=1e-3):
    return tolerance == 1e-3


def length(text, answer):
    return len(text)


def numpy_bool(text, answer):
    import numpy as np

    return np.bool_(True), np.float32(0.5)
