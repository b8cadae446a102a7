"""Work on many items in threads: decoders, resizing and checksums release the GIL."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from tqdm import tqdm


def in_threads(
    work: Callable[[int], None], count: int, bar: tqdm, num_threads: int | None = None
) -> None:
    """Call `work` for 0 to `count` - 1 in any order; stop at the first failure and raise it.

    Args:
        work: function of an item's number that several threads may call at once.
        count: number of items.
        bar: progress bar that counts items.
        num_threads: number of threads; None: one for each processor.
    """
    stop, num_threads = threading.Event(), num_threads or os.cpu_count() or 1

    def worker(first: int) -> None:
        for position in range(first, count, num_threads):
            if stop.is_set():
                return
            work(position)
            bar.update()

    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(worker, first) for first in range(num_threads)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also after Ctrl-C
            stop.set()
    for future in futures:
        future.result()
