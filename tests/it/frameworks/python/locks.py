"""The lock of redis-py, taken on two nodes."""

import threading
import time

import redis
from redis.exceptions import LockError, LockNotOwnedError

from support import SECOND_URL, URL, eventually

first = redis.from_url(URL)
second = redis.from_url(SECOND_URL)


def one_at_a_time():
    mine, other = first.lock("one"), second.lock("one")
    assert mine.acquire(blocking=False)
    assert not other.acquire(blocking=False), "the other node gave the lock out again"
    assert mine.locked() and mine.owned()
    mine.release()
    assert other.acquire(blocking_timeout=10), "it was not released"
    assert not mine.acquire(blocking=False)
    other.release()


def only_the_owner_releases():
    mine, other = first.lock("owner"), second.lock("owner")
    assert mine.acquire()
    try:
        other.release()
    except LockError:
        pass
    else:
        raise AssertionError("a lock was released that was never taken")
    other.local.token = b"wrong"
    try:
        other.release()
    except LockNotOwnedError:
        pass
    else:
        raise AssertionError("a lock was released with another token")
    assert mine.owned()
    mine.release()


def it_expires():
    mine, other = first.lock("expires", timeout=0.3), second.lock("expires")
    assert mine.acquire()
    start = time.monotonic()
    assert other.acquire(blocking_timeout=10)
    assert time.monotonic() - start > 0.2, "it was taken before it expired"
    try:
        mine.release()
    except LockNotOwnedError:
        pass
    else:
        raise AssertionError("an expired lock was released")
    token = other.local.token
    eventually("the other's lock on the first node", lambda: first.get("expires") == token)
    other.release()


def it_is_prolonged():
    lock = first.lock("longer", timeout=10)
    assert lock.acquire()
    assert lock.extend(20)
    assert 20_000 < first.pttl("longer") <= 30_000
    assert lock.extend(5, replace_ttl=True)
    assert first.pttl("longer") <= 5_000
    assert lock.reacquire()
    assert 5_000 < first.pttl("longer") <= 10_000
    lock.release()


def a_counter_under_the_lock():
    """What was written under the lock is seen by the next one who has it, on every node."""
    rounds, errors = 8, []

    def count(node):
        try:
            for _ in range(rounds):
                with node.lock("counter lock", sleep=0.01):
                    seen = int(node.get("counter") or 0)
                    node.set("counter", seen + 1)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=count, args=[node]) for node in (first, second) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    total = rounds * len(threads)
    for node in (first, second):
        eventually(f"the counter at {total}", lambda: int(node.get("counter")) == total)


one_at_a_time()
only_the_owner_releases()
it_expires()
it_is_prolonged()
a_counter_under_the_lock()
print("OK")
