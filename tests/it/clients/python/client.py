"""Round-trips through redis-py with its defaults. Usage: python client.py URL"""

import sys

import redis

URL = sys.argv[1]


def binary(client):
    every_byte = bytes(range(256))
    key = b"py:" + every_byte
    assert client.set(key, every_byte) is True
    assert client.get(key) == every_byte
    large = every_byte * 2048
    client.set("py:large", large)
    assert client.get("py:large") == large


def plain(client):
    assert client.get("py:absent") is None
    client.set("py:ttl", "v", ex=100)
    assert 90 < client.ttl("py:ttl") <= 100
    assert client.delete("py:ttl", "py:absent") == 1
    assert client.mget("py:absent", "py:large")[0] is None
    assert b"py:large" in set(client.scan_iter(match="py:*"))
    assert client.info()["redis_version"]


def pipeline(client):
    with client.pipeline(transaction=False) as pipe:
        for i in range(100):
            pipe.set(f"py:p{i}", i)
        for i in range(100):
            pipe.get(f"py:p{i}")
        replies = pipe.execute()
    assert replies == [True] * 100 + [str(i).encode() for i in range(100)], replies


def transaction(client):
    with client.pipeline() as pipe:
        assert pipe.set("py:n", 41).incr("py:n").execute() == [True, 42]
    with client.pipeline() as pipe:
        pipe.watch("py:n")
        client.set("py:n", 1)
        pipe.multi()
        pipe.set("py:n", 2)
        try:
            pipe.execute()
        except redis.WatchError:
            return
    raise AssertionError("a watched key changed, and EXEC went on")


def failure(client):
    client.set("py:word", "abc")
    try:
        client.incr("py:word")
    except redis.ResponseError as error:
        assert "not an integer" in str(error), error
        return
    raise AssertionError("INCR of a word went well")


def database():
    with redis.from_url(f"{URL}/1") as client:
        client.set("py:one", 1)
        assert client.delete("py:one") == 1


with redis.from_url(URL) as client:
    for part in (binary, plain, pipeline, transaction, failure):
        part(client)
database()
print("OK")
