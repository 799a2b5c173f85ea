"""dogpile.cache with its distributed lock: one process makes a value, the others wait for it."""

import threading
import time

from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE

from support import SECOND_URL, URL, eventually


def region(url):
    arguments = {
        "url": url,
        "redis_expiration_time": 60,
        "distributed_lock": True,
        "thread_local_lock": False,
        "lock_timeout": 30,
        "lock_sleep": 0.02,
    }
    # As another process would have it: a region locks its own threads out by itself.
    return make_region().configure("dogpile.cache.redis", expiration_time=30, arguments=arguments)


def made_once():
    made, got, errors = [], [], []

    def make():
        made.append(1)
        time.sleep(0.3)
        return {"answer": 42}

    def ask(url):
        try:
            got.append(region(url).get_or_create("costly", make))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=[url]) for url in (URL, SECOND_URL) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert got == [{"answer": 42}] * 6, got
    assert len(made) == 1, f"made {len(made)} times"


def plain_values():
    first, second = region(URL), region(SECOND_URL)
    first.set("word", "ä")
    first.set_multi({f"m{i}": i for i in range(20)})
    keys = [f"m{i}" for i in range(21)]
    expected = [*range(20), NO_VALUE]
    eventually("20 values on the second node", lambda: second.get_multi(keys) == expected)
    assert second.get("word") == "ä"
    second.delete("word")
    second.delete_multi(keys)
    eventually("their end on the first node", lambda: first.get_multi(keys) == [NO_VALUE] * 21)
    assert first.get("word") is NO_VALUE


def a_decorated_function():
    cache, calls = region(URL), []

    @cache.cache_on_arguments()
    def double(number):
        calls.append(number)
        return 2 * number

    assert [double(2), double(2), double(3)] == [4, 4, 6] and calls == [2, 3]
    double.invalidate(2)
    assert double(2) == 4 and calls == [2, 3, 2]


made_once()
plain_values()
a_decorated_function()
print("OK")
