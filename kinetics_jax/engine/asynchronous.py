"""An open decoder for asyncio: many coroutines wait for their samples while one thread decodes all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Unpack

from kinetics_jax.engine.draws import RuleArguments
from kinetics_jax.engine.open import Branch, Decoder, OpenSample
from kinetics_jax.settings import RequestError, Sampling


class AsyncDecoder:
    """`Decoder` for coroutines of one event loop: `add` and `extend` are awaited, and return what has ended.

    While anything is waited for, chunks are decoded in a thread of asyncio's; requests join between chunks. As an
    `async with` it closes the decoder at its end. The decoder must not be used by itself meanwhile.
    """

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self._lock = asyncio.Lock()  # the decoder is one task's at a time
        self._waiting: dict[Branch, asyncio.Future[OpenSample]] = {}
        self._loop: asyncio.Task[None] | None = None

    async def add(
        self,
        prompt: str | Sequence[int],
        *,
        n: int = 1,
        sampling: Sampling | None = None,
        id: str | None = None,
        **options: Any,
    ) -> list[OpenSample]:
        """`Decoder.add`; returns the request's samples, ordered by index, once all of them have ended."""
        async with self._lock:
            self.decoder.add(prompt, n=n, sampling=sampling, id=id, **options)
            futures = [self._future(branch) for branch in self.decoder.newest]
        return list(await asyncio.gather(*futures))

    async def extend(
        self,
        sample: OpenSample,
        tokens: str | Sequence[int] = (),
        *,
        keep_end: bool = False,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **rules: Unpack[RuleArguments],
    ) -> OpenSample:
        """`Decoder.extend`; returns the sample once it has ended again."""
        async with self._lock:
            options: Any = {"keep_end": keep_end, "max_tokens": max_tokens, "sampling": sampling, **rules}
            self.decoder.extend(sample, tokens, **options)
            future = self._future(sample.branch)
        return await future

    async def fork(self, sample: OpenSample, n: int = 1) -> list[OpenSample]:
        """`Decoder.fork`."""
        async with self._lock:
            return self.decoder.fork(sample, n)

    async def release(self, *samples: OpenSample) -> None:
        """`Decoder.release`."""
        async with self._lock:
            self.decoder.release(*samples)

    async def close(self) -> None:
        """`Decoder.close`; who still waits gets a RequestError."""
        async with self._lock:
            self.decoder.close()
            self._fail(RequestError("the decoder was closed while samples were waited for"))

    async def __aenter__(self) -> AsyncDecoder:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def _future(self, branch: Branch) -> asyncio.Future[OpenSample]:
        """What one sample is waited for by; the loop that decodes runs from here on."""
        future = self._waiting[branch] = asyncio.get_running_loop().create_future()
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._decode())
        return future

    async def _decode(self) -> None:
        """Decodes chunk by chunk until nobody waits; a failure goes to all who do."""
        while self._waiting:
            async with self._lock:
                if not self._waiting:
                    return
                try:
                    await asyncio.to_thread(self.decoder.step)
                    for sample in self.decoder.ready():
                        self._give(sample)
                except Exception as error:
                    self._fail(error)
                    return
            await asyncio.sleep(0)  # who got a sample may add the next before the next chunk

    def _give(self, sample: OpenSample) -> None:
        """Gives a sample to who waits for it; one that nobody waits for any more is released."""
        future = self._waiting.pop(sample.branch, None)
        if future is not None and not future.done():
            future.set_result(sample)
        elif sample.branch.kept:
            self.decoder.release(sample)

    def _fail(self, error: Exception) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()
