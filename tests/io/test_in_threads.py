from __future__ import annotations

import threading
import time

from ccfnet_tf.io.in_threads import in_threads


def test_threads_keep_the_order_and_read_few_items_ahead() -> None:
    taken: list[int] = []
    lock = threading.Lock()

    def items() -> object:
        for i in range(500):
            with lock:
                taken.append(i)
            yield i

    def slow_at_first(i: int) -> int:
        time.sleep(0.02 if i % 7 == 0 else 0.0)
        return i * i

    ahead = []
    for done, result in enumerate(in_threads(slow_at_first, items(), 3)):  # type: ignore[arg-type]
        assert result == done * done
        ahead.append(len(taken) - done)
    assert max(ahead) <= 4 * 3 + 2
    assert len(ahead) == 500


def test_threads_stop_if_the_generator_is_closed() -> None:
    started: list[int] = []
    results = in_threads(lambda i: started.append(i) or i, range(10_000), 2)
    assert next(iter(results)) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(started) < 100
