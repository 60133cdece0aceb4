"""Map a function over items in several processes, and outlive an item that kills the process it is in."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def isolated_map(
    function: Callable[[Item], Result], items: Iterable[Item], num_proc: int, on_death: Callable[[Item], Result]
) -> Iterator[Result]:
    """Results in the order in which they are ready; an exception of `function` ends it.

    When a process dies (a decoder crashes on a damaged file, memory runs out), nobody can say over which item: each
    that was under way is tried again alone, and for one that kills its process once more the result is
    `on_death(item)`.
    """

    def pool(workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, get_context("spawn"))

    waiting = deque(items)
    while waiting:
        under_way: dict[Future[Result], Item] = {}
        suspects: list[Item] = []
        with pool(num_proc) as executor:
            try:
                while waiting or under_way:
                    while waiting and len(under_way) < 2 * num_proc:
                        future = executor.submit(function, waiting[0])
                        under_way[future] = waiting.popleft()
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        del under_way[future]
                        yield result
            except BrokenProcessPool:
                suspects = list(under_way.values())
        for item in suspects:
            with pool(1) as executor:
                try:
                    result = executor.submit(function, item).result()
                except BrokenProcessPool:
                    result = on_death(item)
            yield result
