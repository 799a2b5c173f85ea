"""Celery: broker and result backend, with a worker on each node."""

import datetime
import os
import time

import celery
import redis

from support import SECOND_URL, URL, eventually, python

# The name of this module: it is in the names of the tasks, and the workers import it.
app = celery.Celery("celery_tasks", broker=URL, backend=URL)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_track_started=True,
    worker_prefetch_multiplier=1,
    result_expires=600,
    timezone="UTC",
)
node = redis.from_url(URL)


# ---- what the workers do ----


@app.task
def add(a, b):
    return a + b


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def fail():
    raise ValueError("as it should")


@app.task(bind=True, max_retries=3)
def fail_twice(self, key):
    tries = node.incr(key)
    if tries <= 2:
        raise self.retry(countdown=0.1)
    return tries


@app.task
def time_of_day():
    return time.time()


@app.task
def who():
    """Ends when both workers have such a task."""
    node.sadd("workers", os.getpid())
    eventually("a task of the other worker", lambda: node.scard("workers") == 2, deadline=30)
    return os.getpid()


# ---- what they are asked for ----

WAIT = {"timeout": 60, "interval": 0.05}


def results():
    assert add.delay(1, 2).get(**WAIT) == 3
    asked = [add.delay(i, i) for i in range(20)]
    assert [result.get(**WAIT) for result in asked] == [2 * i for i in range(20)]
    failed = fail.delay()
    try:
        failed.get(**WAIT)
    except ValueError as error:
        assert "as it should" in str(error), error
    else:
        raise AssertionError("a task that fails has a result")
    assert failed.state == "FAILURE"
    failed.forget()
    assert failed.state == "PENDING"


def canvas():
    group = celery.group(add.s(i, 1) for i in range(20))()
    assert group.get(**WAIT) == list(range(1, 21))
    assert celery.chain(add.s(1, 1), add.s(10), add.s(100))().get(**WAIT) == 112
    chords = [celery.chord((add.s(i, i) for i in range(10)), total.s())() for _ in range(3)]
    assert [chord.get(**WAIT) for chord in chords] == [90] * 3
    nested = celery.chain(celery.group(add.s(1, 1), add.s(2, 2)), total.s(), add.s(1))()
    assert nested.get(**WAIT) == 7


def again_and_later():
    assert fail_twice.delay("tries").get(**WAIT) == 3
    start = time.time()
    soon = time_of_day.apply_async(countdown=1.5)
    at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1.5)
    then = time_of_day.apply_async(eta=at)
    late = time_of_day.apply_async(countdown=0.5, expires=0.1)
    assert min(soon.get(**WAIT), then.get(**WAIT)) - start > 1.4, "it came too early"
    eventually("the end of what came too late", lambda: late.state == "REVOKED")


def both_workers():
    eventually("two workers", lambda: len(app.control.ping(timeout=2)) == 2, deadline=60)
    pids = celery.group(who.s() for _ in range(60))().get(**WAIT)
    assert len(set(pids)) == 2, "one of the workers did nothing"


def nothing_is_left():
    """What has been done is acknowledged: no message waits to be delivered again."""
    eventually("no task without its acknowledgement", lambda: node.hlen("unacked") == 0)
    assert node.llen("celery") == 0


def worker(name):
    of_its_own = ["--hostname", f"{name}@test", "--pool", "threads", "--concurrency", "4"]
    return ["-m", "celery", "-A", "celery_tasks", "worker", "--loglevel", "INFO", *of_its_own]


if __name__ == "__main__":
    with python(*worker("first"), url=URL), python(*worker("second"), url=SECOND_URL):
        for part in (both_workers, results, canvas, again_and_later, nothing_is_left):
            part()
    print("OK")
