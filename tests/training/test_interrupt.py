"""Signals as requests: the first is remembered, its repetitions change nothing, a later one ends the process."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from stnet.training import interrupt
from stnet.training.interrupt import InterruptWatch


def test_a_signal_and_its_repetitions_are_one_request():
    before = signal.getsignal(signal.SIGTERM)
    with InterruptWatch() as watch:
        assert watch.received is None
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert (watch.received, watch.exit_code) == (signal.SIGTERM, 143)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def heeded():
    """Interrupts act as in front of a terminal, also where a background shell has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_later_signal_acts_at_once(heeded, monkeypatch):
    monkeypatch.setattr(interrupt, "REPEAT_SECONDS", -1.0)
    with InterruptWatch() as watch:
        signal.raise_signal(signal.SIGINT)
        assert (watch.received, watch.exit_code) == (signal.SIGINT, 130)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_run_in_another_thread_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)

    def enter():
        with InterruptWatch() as watch:
            return signal.getsignal(signal.SIGTERM), watch.received

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result() == (before, None)
