"""The team of threads does every item exactly once, whether its threads spin, sleep or do not exist."""

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines.native.kernels.cpu_atomics import atomic_add
from engines.native.kernels.cpu_compile import helper, kernel
from engines.native.kernels.cpu_team import TEAM, job, launch


@helper
def _count_visit(item, visits):
    atomic_add(visits + item * 8, 1)


@kernel("void(int64, int64, int64)")
def _visit_items(team, num_items, visits):
    launch(team, job(num_items, _count_visit, (visits,)))


def visits_of(num_items: int, launches: int) -> np.ndarray:
    visits = np.zeros(max(num_items, 1), dtype=np.int64)
    for _ in range(launches):
        _visit_items(TEAM.address, num_items, visits.ctypes.data)
    return visits


@pytest.mark.parametrize("num_items", [1, 2, 3, 1000])
def test_every_item_is_visited_once_a_launch(num_items: int) -> None:
    assert np.array_equal(visits_of(num_items, 2000), np.full(num_items, 2000))


def test_no_items_are_no_visits() -> None:
    assert visits_of(0, 10).sum() == 0


def test_threads_that_fell_asleep_come_back() -> None:
    for _ in range(20):
        time.sleep(0.002)
        assert np.array_equal(visits_of(100, 3), np.full(100, 3))


def test_two_callers_at_once_both_get_all_their_items_done() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(visits_of, [300, 400], [2000, 2000]))
    assert np.array_equal(results[0], np.full(300, 2000))
    assert np.array_equal(results[1], np.full(400, 2000))


def _visit_in_child(queue: multiprocessing.Queue) -> None:
    queue.put(visits_of(50, 10).tolist())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_works_alone() -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_visit_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=20) == [10] * 50
    child.join()
