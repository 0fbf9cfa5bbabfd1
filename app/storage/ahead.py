"""Reading ahead: several ranges at once, handed out in order, so that neither a store's latency nor the reader's own work leaves the other idle."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor


def _ranges(start: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + step, end)) for at in range(start, end, step))


def in_order(read: Callable[[int, int], bytes], start: int, end: int, step: int, ahead: int) -> Iterator[bytes]:
    """Bytes `start` to `end`, `step` at a time; up to `ahead` ranges are under way beside the one that is handed out. Raises what `read` raises."""
    if end - start <= step:
        yield from (read(*r) for r in _ranges(start, end, step))
        return
    waiting: deque[Future[bytes]] = deque()
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="ahead")
    try:
        for asked in _ranges(start, end, step):
            waiting.append(pool.submit(read, *asked))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


async def in_order_async(read: Callable[[int, int], Awaitable[bytes]], start: int, end: int, step: int, ahead: int) -> AsyncIterator[bytes]:
    """The same, awaited."""
    waiting: deque[asyncio.Task[bytes]] = deque()
    try:
        for asked in _ranges(start, end, step):
            waiting.append(asyncio.ensure_future(read(*asked)))
            if len(waiting) > ahead:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
