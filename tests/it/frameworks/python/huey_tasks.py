"""huey: its consumer is a process of its own, on another node than the one that asks."""

import sys
import time

from huey import PriorityRedisHuey, RedisHuey
from huey.exceptions import TaskException, TaskLockedException

from support import SECOND_URL, URL, eventually, python

huey = RedisHuey("tasks", url=URL, store_intermediate_errors=False)
ranked = PriorityRedisHuey("ranked", url=URL)


# ---- what the consumers do ----


@huey.task()
def add(a, b):
    return a + b


@huey.task(retries=3, retry_delay=0)
def fail_twice(key):
    tries = huey.storage.conn.incr(key)
    if tries <= 2:
        raise ValueError("not yet")
    return tries


@huey.task()
def fail():
    raise ValueError("as it should")


@huey.task()
@huey.lock_task("alone")
def alone(seconds):
    time.sleep(seconds)
    return True


@ranked.task()
def note(name):
    ranked.storage.conn.rpush("order", name)


# ---- what they are asked for ----


def answer(result):
    return result(blocking=True, timeout=30, preserve=True)


def results():
    asked = [add(i, i) for i in range(20)]
    assert [answer(result) for result in asked] == [2 * i for i in range(20)]
    chain = add.s(1, 1).then(add, 10).then(add, 100)
    assert [answer(result) for result in huey.enqueue(chain)] == [2, 12, 112]


def failures():
    assert answer(fail_twice("tries")) == 3
    try:
        answer(fail())
    except TaskException as error:
        assert "as it should" in str(error), error
    else:
        raise AssertionError("a task that fails has an answer")


def later():
    start = time.time()
    result = add.schedule((1, 2), delay=2)
    never = add.schedule((0, 0), delay=1)
    never.revoke()
    assert answer(result) == 3
    assert time.time() - start > 1.5, "it came too early"
    assert never.get() is None


def one_at_a_time():
    first = alone(2)
    eventually("the lock", lambda: huey.is_locked("alone"))
    try:
        answer(alone(0))
    except TaskException as error:
        assert TaskLockedException.__name__ in str(error), error
    else:
        raise AssertionError("two tasks had the lock at once")
    assert answer(first)
    eventually("the end of the lock", lambda: not huey.is_locked("alone"))


def by_priority():
    for priority in (1, 3, 2, 5, 4):
        note(f"{priority}", priority=priority)
    with python("huey_tasks.py", "ranked", url=SECOND_URL):
        eventually("five tasks", lambda: ranked.storage.conn.llen("order") == 5)
    order = ranked.storage.conn.lrange("order", 0, -1)
    assert order == [b"5", b"4", b"3", b"2", b"1"], order


if __name__ == "__main__":
    if sys.argv[1:] == ["tasks"]:
        huey.create_consumer(workers=4, periodic=False, scheduler_interval=1).run()
        sys.exit()
    if sys.argv[1:] == ["ranked"]:
        ranked.create_consumer(workers=1, periodic=False).run()
        sys.exit()
    with python("huey_tasks.py", "tasks", url=SECOND_URL):
        for part in (results, failures, later, one_at_a_time):
            part()
    by_priority()
    print("OK")
