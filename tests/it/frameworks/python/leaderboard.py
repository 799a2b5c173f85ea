"""A leaderboard in sorted sets, compared with a list that Python sorts."""

import os
import random
import threading

import redis

from support import URL

node = redis.from_url(URL, decode_responses=True)
seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
print("seed", seed)
chance = random.Random(seed)


def ranking(scores):
    """Best first; among equals the greater name, as ZREVRANGE has it."""
    return sorted(scores.items(), key=lambda entry: (entry[1], entry[0]), reverse=True)


def one_board():
    # Few different scores, so that many players have the same.
    scores = {f"player:{i}": float(chance.randrange(100)) for i in range(1000)}
    assert node.zadd("board", scores) == 1000
    with node.pipeline(transaction=False) as pipe:
        for player in chance.sample(sorted(scores), 300):
            points = chance.randrange(-20, 20)
            scores[player] += points
            pipe.zincrby("board", points, player)
        pipe.execute()
    best = ranking(scores)
    assert node.zrevrange("board", 0, 9, withscores=True) == best[:10]
    assert node.zrange("board", 0, -1, desc=True, withscores=True) == best
    for place in chance.sample(range(1000), 50):
        player, score = best[place]
        assert node.zrevrank("board", player) == place
        assert node.zscore("board", player) == score
        around = node.zrevrange("board", max(place - 2, 0), place + 2, withscores=True)
        assert around == best[max(place - 2, 0) : place + 3]
    middle = [player for player, score in best if 40 <= score < 60]
    assert node.zrevrangebyscore("board", "(60", 40) == middle
    assert node.zcount("board", 40, "(60") == len(middle)
    assert node.zremrangebyrank("board", 0, -101) == 900, "all but the best hundred"
    assert node.zrange("board", 0, -1, desc=True, withscores=True) == best[:100]


def boards_of_days():
    def one_day():
        return {f"p{chance.randrange(50)}": chance.randrange(100) for _ in range(40)}

    days = [one_day() for _ in range(7)]
    for day, scores in enumerate(days):
        node.zadd(f"day:{day}", scores)
    keys = [f"day:{day}" for day in range(7)]
    node.zunionstore("week", keys)
    week = {}
    for scores in days:
        for player, score in scores.items():
            week[player] = week.get(player, 0.0) + score
    assert node.zrange("week", 0, -1, desc=True, withscores=True) == ranking(week)
    node.zunionstore("best", keys, aggregate="MAX")
    best = {player: float(max(day.get(player, 0) for day in days)) for player in week}
    assert node.zrange("best", 0, -1, desc=True, withscores=True) == ranking(best)
    always = [player for player in week if all(player in day for day in days)]
    assert node.zinterstore("always", keys) == len(always)


def points_for_all_at_once():
    def play(player):
        for _ in range(50):
            with node.pipeline() as pipe:
                pipe.zincrby("race", 1, player)
                pipe.zincrby("race", 1, "all")
                pipe.execute()

    threads = [threading.Thread(target=play, args=[f"p{i}"]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    race = dict(node.zrange("race", 0, -1, withscores=True))
    assert race == {"all": 200, "p0": 50, "p1": 50, "p2": 50, "p3": 50}, race


one_board()
boards_of_days()
points_for_all_at_once()
print("OK")
