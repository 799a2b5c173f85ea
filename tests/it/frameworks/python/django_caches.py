"""Django with django-redis and with its own Redis cache: values, hashes, locks, sessions."""

import threading

import django
from django.conf import settings

from support import URL

settings.configure(
    CACHES={
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": URL,
            "KEY_PREFIX": "plain",
        },
        "packed": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": URL,
            "KEY_PREFIX": "packed",
            "OPTIONS": {
                "COMPRESSOR": "django_redis.compressors.zlib.ZlibCompressor",
                "SERIALIZER": "django_redis.serializers.json.JSONSerializer",
            },
        },
        "own": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": URL,
            "KEY_PREFIX": "own",
        },
    },
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    SECRET_KEY="a test",
)
django.setup()

from django.contrib.sessions.backends.cache import SessionStore  # noqa: E402
from django.core.cache import caches  # noqa: E402


def any_cache(cache):
    assert cache.get("absent", 7) == 7
    cache.set("a", {"list": [1, 2, 3], "text": "ä" * 5000})
    assert cache.get("a")["list"] == [1, 2, 3]
    assert cache.add("a", 1) is False and cache.add("b", 1) is True
    assert cache.incr("b", 10) == 11 and cache.decr("b") == 10
    try:
        cache.incr("absent")
    except ValueError:
        pass
    else:
        raise AssertionError("INCR of an absent key went well")
    assert cache.get_or_set("c", lambda: "made") == "made"
    assert cache.get_or_set("c", lambda: "again") == "made"
    assert cache.set_many({f"m{i}": i for i in range(50)}) in ([], None)
    many = cache.get_many([f"m{i}" for i in range(60)])
    assert many == {f"m{i}": i for i in range(50)}, many
    cache.set("v", "one", version=1)
    cache.set("v", "two", version=2)
    assert (cache.get("v", version=1), cache.get("v", version=2)) == ("one", "two")
    assert cache.incr_version("v", version=2) == 3 and cache.get("v", version=3) == "two"
    assert cache.touch("a", 100) is True and cache.touch("absent", 100) is False
    cache.set("gone", 1, timeout=0)
    assert "gone" not in cache and "a" in cache
    assert cache.delete("a") is True and cache.delete("a") is False
    cache.delete_many(["b", "c"])
    assert cache.get_many(["a", "b", "c"]) == {}


def more_of_django_redis(cache):
    cache.set("t", 1, timeout=100)
    assert 90 < cache.ttl("t") <= 100 and 90_000 < cache.pttl("t") <= 100_000
    assert cache.persist("t") and cache.ttl("t") is None and cache.ttl("absent") == 0
    assert cache.expire("t", timeout=50) and 40 < cache.ttl("t") <= 50
    assert cache.set("t", 2, nx=True) is False and cache.get("t") == 1
    for i in range(200):
        cache.set(f"page:{i}", i)
    assert len(cache.keys("page:*")) == 200
    assert len(set(cache.iter_keys("page:1*"))) == 111
    assert cache.delete_pattern("page:1*", itersize=20) == 111
    assert len(cache.keys("page:*")) == 89
    assert cache.hset("h", "f", "v") == 1 and cache.hset("h", mapping={"f": 1, "g": 2}) == 1
    assert cache.hlen("h") == 2 and cache.hexists("h", "g") and not cache.hexists("h", "x")
    assert sorted(cache.hkeys("h")) == ["f", "g"] and cache.hdel("h", "f") == 1
    assert cache.sadd("s", "x", "y") == 2 and cache.smembers("s") == {"x", "y"}
    assert cache.zadd("z", {"x": 1.5, "y": 0.5}) == 2 and cache.zrange("z", 0, -1) == ["y", "x"]


def locks(cache):
    held, entered = [], []

    def enter(i):
        with cache.lock("door", timeout=10, sleep=0.01):
            held.append(i)
            entered.append(len(held))
            held.remove(i)

    threads = [threading.Thread(target=enter, args=[i]) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered == [1] * 5, entered


def sessions():
    session = SessionStore()
    session["user"] = 42
    session.save()
    assert SessionStore(session.session_key)["user"] == 42
    old = session.session_key
    session.cycle_key()
    assert SessionStore(session.session_key)["user"] == 42
    assert not SessionStore().exists(old)
    session.flush()
    assert not SessionStore().exists(old)


for name in caches.settings:
    any_cache(caches[name])
more_of_django_redis(caches["default"])
locks(caches["default"])
sessions()
caches["default"].clear()
assert not caches["own"].has_key("m1"), "clear() empties the database"
print("OK")
