"""Where the text of a sample holds a stop: looked for between chunks, as the text grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

LOOK_BACK = 8  # tokens before the new ones whose text is made anew: of a letter, or a word's space, in several tokens


class StopWatch:
    """Follows one sample's tokens and tells at which its text, as `decode` makes it, completes one of `stops`.

    Stops are found across the borders of tokens. Tokens that are given, or that the sample has already, come by
    `recall`. A stop counts if its last letter is drawn, at token `least` or later.
    """

    def __init__(
        self,
        stops: Sequence[str],
        decode: Callable[[Sequence[int]], str],
        *,
        least: int = 0,
    ):
        self.stops, self.decode, self.least = stops, decode, least
        self.tokens: list[int] = []
        self.reach = max(map(len, stops)) - 1
        self.found: str | None = None

    def recall(self, tokens: list[int]) -> None:
        """Takes tokens that are given."""
        self.tokens += tokens

    def feed(self, tokens: list[int]) -> int | None:
        """Takes the next tokens. Returns how many of them belong to the sample, if it ends by then, else None."""
        old = len(self.tokens)
        self.tokens += tokens
        start = self._window(old)
        known = self._letters(start, old)
        if not self._first_stop(self.decode(self.tokens[start:]), known):
            return None
        for end in range(old + 1, len(self.tokens) + 1):
            if end >= self.least:
                self.found = self._first_stop(self.decode(self.tokens[start:end]), known)
            else:
                known = self._letters(start, end)
            if self.found:
                return end - old
        return None

    def _first_stop(self, text: str, known: int) -> str | None:
        """The first of the stops that ends behind the first `known` letters of a text."""
        found = {text.find(stop, max(known - len(stop) + 1, 0)): stop for stop in reversed(self.stops)}
        return found[min(found.keys() - {-1})] if found.keys() - {-1} else None

    def _letters(self, start: int, end: int) -> int:
        """Letters of some tokens' text, without one that is not whole yet."""
        return len(self.decode(self.tokens[start:end]).rstrip("\ufffd"))

    def _window(self, old: int) -> int:
        """The token from which on text is made anew, so that a stop that began before is whole in it."""
        start = max(old - LOOK_BACK, 0)
        while start and self._letters(start, old) < self.reach + LOOK_BACK:
            start = max(start - LOOK_BACK, 0)
        return start


def cut_text(decode: Callable[[Sequence[int]], str], tokens: Sequence[int], stop: str) -> str:
    """The text of a sample whose last token completed a stop, up to that stop."""
    text, behind = decode(tokens), len(decode(tokens[:-1]).rstrip("\ufffd"))
    place = text.find(stop, max(behind - len(stop) + 1, 0))
    return text if place < 0 else text[:place]
