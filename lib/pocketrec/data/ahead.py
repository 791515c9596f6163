"""Making what comes next while what is there is worked on."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """Yield items, none of them None, while a thread makes the `count` that come next."""
    with ThreadPoolExecutor(1, "reader") as thread:
        try:
            coming = deque(thread.submit(next, items, None) for _ in range(count))
            while (item := coming.popleft().result()) is not None:
                coming.append(thread.submit(next, items, None))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
