"""Rate limiters: `limits` with its Lua scripts, and fastapi-limiter in a FastAPI application."""

import threading
import time

import fastapi
import limits
import redis
from fastapi.testclient import TestClient
from fastapi_limiter.depends import RateLimiter
from limits.storage import storage_from_string
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)
from pyrate_limiter import Limiter, Rate, RedisBucket

from support import URL, eventually

STRATEGIES = [FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter]


def as_many_as_allowed(strategy):
    """Of many calls at once as many go through as are allowed, and no more."""
    hour = limits.parse("20/hour")
    passed, errors = [], []

    def call():
        try:
            limiter = strategy(storage_from_string(URL))
            for _ in range(10):
                if limiter.hit(hour, strategy.__name__, "everybody"):
                    passed.append(1)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    # A fixed window may end in between, once an hour.
    assert len(passed) == 20, f"{strategy.__name__}: {len(passed)} went through"
    limiter = strategy(storage_from_string(URL))
    stats = limiter.get_window_stats(hour, strategy.__name__, "everybody")
    assert stats.remaining == 0 and 0 < stats.reset_time - time.time() <= 3600, stats
    assert not limiter.test(hour, strategy.__name__, "everybody")
    limiter.clear(hour, strategy.__name__, "everybody")
    assert limiter.hit(hour, strategy.__name__, "everybody", cost=20)
    assert not limiter.hit(hour, strategy.__name__, "everybody")


def a_window_passes(strategy):
    limiter, second = strategy(storage_from_string(URL)), limits.parse("2 per 3 second")
    name = strategy.__name__
    assert eventually("a full window", lambda: not limiter.hit(second, name, "patient"))
    eventually("the next one", lambda: limiter.hit(second, name, "patient"), deadline=10)


def in_fastapi():
    bucket = RedisBucket.init([Rate(3, 1500)], redis.from_url(URL), "limiter")
    app = fastapi.FastAPI()
    limited = [fastapi.Depends(RateLimiter(limiter=Limiter(bucket)))]

    @app.get("/", dependencies=limited)
    def page():
        return {"page": 1}

    client = TestClient(app)
    start = time.monotonic()
    codes = [client.get("/").status_code for _ in range(5)]
    if time.monotonic() - start < 1.4:
        assert codes == [200, 200, 200, 429, 429], codes
    eventually("a free place", lambda: client.get("/").status_code == 200, deadline=10)


for strategy in STRATEGIES:
    as_many_as_allowed(strategy)
    a_window_passes(strategy)
in_fastapi()
print("OK")
