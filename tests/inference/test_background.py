"""Stages in threads: order, bounds, errors and endings."""

import threading
import time

import pytest

from stnet.inference.background import in_background


def stages() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    # The threads of the CPU kernels stay for the next call.
    return [name for name in names if name.startswith("stnet-") and not name.startswith("stnet-cpu")]


def test_order_is_kept_and_threads_end():
    assert list(in_background(iter(range(100)), 3, "a")) == list(range(100))
    assert list(in_background(iter([]), 3, "a")) == []
    assert stages() == []


def test_runs_ahead_only_as_far_as_allowed():
    made = []

    def numbers():
        for number in range(100):
            made.append(number)
            yield number

    consumer = in_background(numbers(), 4, "a")
    next(consumer)
    time.sleep(0.3)
    assert 2 <= len(made) <= 1 + 4 + 1
    consumer.close()
    assert stages() == []


@pytest.mark.timeout(10)
def test_errors_arrive_after_the_items_before_them():
    def failing():
        yield 1
        yield 2
        raise OSError("disk gone")

    seen = []
    with pytest.raises(OSError, match="disk gone"):
        for item in in_background(in_background(failing(), 1, "a"), 1, "b"):
            seen.append(item)
    assert seen == [1, 2] and stages() == []


@pytest.mark.timeout(10)
def test_a_consumer_that_stops_stops_all_stages():
    closed = []

    def endless():
        try:
            number = 0
            while True:
                yield (number := number + 1)
        finally:
            closed.append(True)

    with pytest.raises(ZeroDivisionError):
        for item in (outer := in_background(in_background(endless(), 2, "a"), 2, "b")):
            if item == 5:
                outer.close()
                _ = 1 / 0
    assert closed == [True] and stages() == []
