"""The loads that rxbus and its peers carry, beyond those of `rxbus bench`."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from time import sleep

from rxbus._bench.peers import LIMIT, Handler, Peer, Publish, Tally


def attach_async(tally: Tally, peer: Peer, topic: str, observers: int) -> None:
    """Attaches `async def` handlers that count."""
    for _ in range(observers):
        peer.attach(topic, _coroutine_function(tally.handler()))


def attach_sleepers(tally: Tally, peer: Peer, topic: str, observers: int, seconds: float) -> None:
    """Attaches handlers that sleep, and count."""
    for _ in range(observers):
        peer.attach(topic, _after(seconds, tally.handler()))


def _coroutine_function(handler: Handler) -> Handler:
    async def handle(message: object) -> None:
        handler(message)

    return handle


def _after(seconds: float, handler: Handler) -> Handler:
    def handle(message: object) -> None:
        sleep(seconds)
        handler(message)

    return handle


def publish_many(publish: Publish, times: int) -> None:
    for payload in repeat(1, times):
        publish(payload)


def publish_together(publish: Publish, threads: int, times: int) -> None:
    """Publishes from several threads at once, `times` from each."""
    ready = threading.Barrier(threads)

    def work() -> None:
        ready.wait(LIMIT)
        publish_many(publish, times)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            future.result()


def memory(publish: Publish, times: int) -> tuple[int, int]:
    """Gives the bytes that publishing so often leaves behind, and the most that it held at a time."""
    publish_many(publish, times // 100)  # what is made once and kept
    tracemalloc.start()
    try:
        publish_many(publish, times)
        gc.collect()
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
