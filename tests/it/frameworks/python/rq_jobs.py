"""RQ: a worker with its scheduler as a process of its own."""

import datetime
import logging
import sys
import time

import redis
from rq import Queue, Retry, Worker
from rq.job import Job

from support import SECOND_URL, URL, eventually, python

node = redis.from_url(URL)
queue = Queue("work", connection=node)


# ---- what the worker does ----


def add(a, b):
    return a + b


def fail():
    raise ValueError("as it should")


def fail_twice(key):
    if node.incr(key) <= 2:
        raise ValueError("not yet")
    return "third time"


def note(name):
    node.rpush("notes", name)


def work():
    Worker([queue], connection=node, maintenance_interval=5).work(with_scheduler=True)


# ---- what it is asked for ----


def ended(job, status):
    eventually(f"{job.func_name}: {status}", lambda: job.get_status() == status)


def results():
    jobs = [queue.enqueue("rq_jobs.add", i, i) for i in range(10)]
    for i, job in enumerate(jobs):
        ended(job, "finished")
        assert job.return_value() == 2 * i, job.return_value()
    many = queue.enqueue_many([Queue.prepare_data("rq_jobs.add", [i, 1]) for i in range(3)])
    for i, job in enumerate(many):
        ended(job, "finished")
        assert job.return_value() == i + 1
    registered = queue.finished_job_registry
    eventually("13 finished jobs", lambda: len(registered.get_job_ids()) == 13)


def failures():
    job = queue.enqueue("rq_jobs.fail")
    ended(job, "failed")
    eventually("it in the registry", lambda: job.id in queue.failed_job_registry.get_job_ids())
    assert "as it should" in job.latest_result().exc_string
    patient = queue.enqueue("rq_jobs.fail_twice", "tries", retry=Retry(max=3))
    ended(patient, "finished")
    assert patient.return_value() == "third time" and node.get("tries") == b"3"


def one_after_the_other():
    first = queue.enqueue("rq_jobs.note", "first")
    second = queue.enqueue("rq_jobs.note", "second", depends_on=first)
    third = queue.enqueue("rq_jobs.note", "third", depends_on=[first, second])
    ended(third, "finished")
    assert node.lrange("notes", 0, -1) == [b"first", b"second", b"third"]


def later():
    start = time.time()
    job = queue.enqueue_in(datetime.timedelta(seconds=2), "rq_jobs.add", 1, 1)
    assert job.get_status() == "scheduled"
    canceled = queue.enqueue_in(datetime.timedelta(seconds=1), "rq_jobs.note", "never")
    canceled.cancel()
    ended(job, "finished")
    assert time.time() - start > 1.5, "it came too early"
    assert canceled.get_status() == "canceled"
    assert b"never" not in node.lrange("notes", 0, -1)


def bookkeeping():
    assert [worker.queue_names() for worker in Worker.all(connection=node)] == [["work"]]
    assert queue.count == 0 and Queue.all(connection=node) == [queue]
    job = queue.enqueue("rq_jobs.add", 1, 2)
    ended(job, "finished")
    assert Job.fetch(job.id, connection=node).return_value() == 3
    job.delete()
    assert not Job.exists(job.id, connection=node)


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        logging.getLogger().setLevel(logging.INFO)
        work()
        sys.exit()
    with python("rq_jobs.py", "worker", url=SECOND_URL):
        for part in (results, failures, one_after_the_other, later, bookkeeping):
            part()
    print("OK")
