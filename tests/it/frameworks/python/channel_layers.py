"""channels-redis: both layers of Django Channels, between two nodes."""

import asyncio
import time

from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

from support import SECOND_URL, URL


async def eventually(what, reached):
    end = time.monotonic() + 30
    while not await reached():
        assert time.monotonic() < end, f"waited in vain for {what}"
        await asyncio.sleep(0.02)


async def received(layer, channel):
    return await asyncio.wait_for(layer.receive(channel), 30)


async def to_one(first, second):
    channel = await second.new_channel()
    for i in range(20):
        await first.send(channel, {"type": "one", "number": i, "bytes": b"\0\xff"})
    numbers = [(await received(second, channel))["number"] for _ in range(20)]
    assert numbers == list(range(20)), numbers


async def to_groups(first, second):
    """Who is in a group on one node gets what is sent on the other."""
    channels = [await second.new_channel() for _ in range(3)]
    for channel in channels:
        await second.group_add("room", channel)

    async def all_get_it():
        """The first node hears of the group a moment later."""
        await first.group_send("room", {"type": "ping"})
        got = [asyncio.wait_for(second.receive(channel), 1) for channel in channels]
        answers = await asyncio.gather(*got, return_exceptions=True)
        return all(answer == {"type": "ping"} for answer in answers)

    await eventually("a message for all of the group", all_get_it)
    await second.group_discard("room", channels[0])

    async def only_two_get_it():
        await first.group_send("room", {"type": "pong"})
        for channel in channels[1:]:
            while await received(second, channel) != {"type": "pong"}:
                pass
        gone = asyncio.wait_for(second.receive(channels[0]), 0.5)
        answer = (await asyncio.gather(gone, return_exceptions=True))[0]
        return isinstance(answer, asyncio.TimeoutError)

    await eventually("a group of two", only_two_get_it)


async def a_full_channel(layer):
    from channels.exceptions import ChannelFull

    for i in range(3):
        await layer.send("narrow", {"type": "n", "i": i})
    try:
        await layer.send("narrow", {"type": "n"})
    except ChannelFull:
        pass
    else:
        raise AssertionError("a channel took more than its capacity")
    assert [(await received(layer, "narrow"))["i"] for _ in range(3)] == [0, 1, 2]


async def main():
    first, second = RedisChannelLayer(hosts=[URL]), RedisChannelLayer(hosts=[SECOND_URL])
    await to_one(first, second)
    await to_groups(first, second)
    await a_full_channel(RedisChannelLayer(hosts=[URL], capacity=3, prefix="narrow"))
    await first.flush()
    first = RedisPubSubChannelLayer(hosts=[URL])
    second = RedisPubSubChannelLayer(hosts=[SECOND_URL])
    await to_one(first, second)
    await to_groups(first, second)
    await first.flush()
    await second.flush()


asyncio.run(main())
print("OK")
