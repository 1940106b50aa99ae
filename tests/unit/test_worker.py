"""A thread that does what it is given, in turn."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from llm_grpc.engine.worker import Worker
from tests.unit.scripted_runner import HANG_S


def test_calls_are_made_in_turn_by_one_thread_until_the_end() -> None:
    worker, made = Worker("w"), list[int]()

    def call(number: int) -> int:
        made.append(number)
        return threading.get_ident()

    futures = [worker.submit(partial(call, number)) for number in range(5)]
    worker.end()
    assert len({future.result(HANG_S) for future in futures}) == 1
    worker.join()
    assert made == list(range(5))
    assert not worker.is_alive


def test_who_asked_gets_what_a_call_raises_and_the_thread_goes_on() -> None:
    def fail() -> None:
        raise SystemExit(3)

    worker = Worker("w")
    failed, good = worker.submit(fail), worker.submit(lambda: 7)
    with pytest.raises(SystemExit):
        failed.result(HANG_S)
    assert good.result(HANG_S) == 7
    assert worker.is_alive
    worker.end()
    worker.join()


def test_the_end_comes_after_what_was_given_before_and_may_come_twice() -> None:
    gate, worker = threading.Event(), Worker("w")
    held = worker.submit(lambda: gate.wait(HANG_S))
    worker.end()
    worker.end()
    assert worker.is_alive
    gate.set()
    worker.join()
    assert held.result(0) is True


def test_the_thread_has_its_name_and_no_process_waits_for_it() -> None:
    worker = Worker("llm-grpc-test")
    thread = worker.submit(threading.current_thread).result(HANG_S)
    assert (thread.name, thread.daemon) == ("llm-grpc-test", True)
    worker.end()
    worker.join()
