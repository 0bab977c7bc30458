"""Signals: what stops a loop, when several hosts stop, and what a second Ctrl-C does."""

import os
import signal
import subprocess
import sys
import time

import pytest

from slm_jax.training import preemption


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_loop_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with preemption.Stop() as stop:
        assert not stop.reached()
        os.kill(os.getpid(), number)
        until = time.monotonic() + 10
        while not stop.reached():
            assert time.monotonic() < until
            time.sleep(0.01)
    assert signal.getsignal(number) is before


class Store(dict):
    """As far as needed, the store of JAX's coordination service."""

    def key_value_set(self, key, value):
        self[key] = value


def test_hosts_agree_on_the_tick_after_the_last():
    store, stops = Store(), [preemption.Stop() for _ in range(3)]
    for stop, ticks in zip(stops, (8, 10, 9)):
        stop._hosts, stop.ticks = object(), ticks
    stops[1]._asked = True
    for agreeing in (True, False):
        for index in (1, 0, 2):
            told = {key[4:]: value for key, value in store.items()}
            stops[index].agree(store, index, 3, 'now/stop-1', told)
        assert [stop.agreeing for stop in stops] == [agreeing] * 3
    assert [[stop.reached() for _ in range(11 - ticks)] for stop, ticks in zip(stops, (8, 10, 9))] == [
        [False, False, True], [True], [False, True],
    ]  # fmt: skip


SLEEPS = """
import time
from slm_jax.training import preemption
with preemption.Stop():
    print(1, flush=True)
    time.sleep(60)
"""


def test_a_second_ctrl_c_ends_at_once_whatever_the_program_is_at():
    process = subprocess.Popen(
        [sys.executable, '-c', SLEEPS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == '1\n'
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr.read() == 'slm-jax: interrupted twice: nothing is saved any more\n'
