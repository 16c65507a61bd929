"""Share work among threads, which an error or Ctrl-C ends early."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def thread_pool(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; after an error what has not begun is cancelled, and what has is waited for."""
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
