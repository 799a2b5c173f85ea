"""Writes a hash to the topic of a Highwater database, and shows a hash that is there.

    pip install -r requirements.txt
    python hashes.py BOOTSTRAP TOPIC write KEY SECONDS
    python hashes.py BOOTSTRAP TOPIC show KEY

docs/topic-format.md describes the records.
"""

import struct
import sys
import time

import msgpack
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

FLUSH = b"\0highwater:flush"
ELEMENT = b"\0highwater:e"


def now():
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


# ---- write ----


def write(bootstrap, topic, key, seconds):
    """Replaces the hash. Its field `token` expires after so many seconds."""
    fields = {"name": "Ada", "visits": 5, "raw": b"\xff", "token": ["abc", now() + seconds * 1000]}
    failures = []

    def delivered(error, _record):
        if error is not None:
            failures.append(error)

    # The partitioner must be that of all other producers of the topic.
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2", "enable.idempotence": True})
    value = msgpack.packb(fields)
    producer.produce(topic, key=key, value=value, headers={"redis-type": b"hash"}, on_delivery=delivered)
    left = producer.flush(30)
    if failures or left:
        sys.exit(f"not written: {failures or 'Kafka did not answer within 30 seconds'}")


# ---- show ----


def show(bootstrap, topic, key):
    """Prints the fields that have not expired, in the order of their names."""
    consumer = Consumer({
        "bootstrap.servers": bootstrap,
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        # The library requires a group. `assign` does not join it.
        "group.id": "unused",
        "enable.auto.commit": False,
    })
    fields = {}
    for partition in sorted(consumer.list_topics(topic, timeout=30).topics[topic].partitions):
        # All records of a key are in one partition, so each can be read by itself.
        fields = read_hash(consumer, TopicPartition(topic, partition, OFFSET_BEGINNING), key)
        if fields:
            break
    consumer.close()
    if not fields:
        sys.exit("no such hash")
    for field, value in sorted(fields.items()):
        print(text(field), "=", text(value))


def read_hash(consumer, partition, wanted):
    """The fields of a hash, by the records of one partition."""
    prefix = ELEMENT + leb128(len(wanted)) + wanted
    head, elements = None, {}
    for record in records(consumer, partition):
        key = record.key()
        if key is None:
            continue
        if key == wanted:
            head = record
        elif key.startswith(prefix):
            version, field = key[len(prefix):][:12], key[len(prefix) + 12:]
            elements[version, field] = record
        elif key == FLUSH and header(record, "redis-control") == b"flush":
            head, elements = None, {}

    if head is None or head.value() is None:
        return {}
    if header(head, "redis-type") != b"hash":
        sys.exit("the key holds no hash")
    expires = header(head, "redis-expire-at")
    if expires is not None and int(expires) <= now():
        return {}
    version = header(head, "redis-split")
    if version is None:
        fields = unpack(head.value())
    else:
        # Elements of other versions belong to hashes that no longer exist.
        version = bytes.fromhex(version.decode())
        fields = {
            field: unpack_element(record)
            for (its_version, field), record in elements.items()
            if its_version == version and record.value() is not None
        }
    return {field: value for field, (value, until) in fields.items() if until is None or until > now()}


def records(consumer, partition):
    """The records of a partition, from its beginning to its present end."""
    consumer.assign([partition])
    while True:
        record = consumer.poll(30)
        if record is None:
            sys.exit("Kafka did not answer within 30 seconds")
        if record.error() is None:
            yield record
        elif record.error().code() == KafkaError._PARTITION_EOF:
            return
        else:
            raise KafkaException(record.error())


def header(record, name):
    """The value of a header, or None. If it occurs twice, the last one counts."""
    return dict(record.headers() or []).get(name)


def unpack(value):
    """The fields of a packed hash, each with its value and the time when it expires, or None."""
    fields = {}
    # With `raw`, strings stay bytes. A list of pairs keeps fields that occur twice.
    for field, item in msgpack.unpackb(value, raw=True, strict_map_key=False, object_pairs_hook=list):
        item, until = item if isinstance(item, list) else (item, None)
        fields[to_bytes(field)] = (to_bytes(item), until)
    return fields


def to_bytes(item):
    """A field or value. Producers may write integers, which stand for their decimal digits."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, int) and not isinstance(item, bool):
        return b"%d" % item
    raise ValueError(f"neither bytes nor an integer: {item!r}")


def unpack_element(record):
    """The value of an element of a split hash, and the time when it expires, or None."""
    value = record.value()
    if header(record, "redis-type") != b"element" or value[:2] not in (b"\x01\x00", b"\x01\x01"):
        raise ValueError("an element that this program does not understand")
    if value[1] == 0:
        return value[2:], None
    return value[10:], struct.unpack(">Q", value[2:10])[0]


def leb128(number):
    """The number in groups of 7 bits, the lowest first; all groups but the last have the high bit."""
    groups = bytearray()
    while number >= 128:
        groups.append(number % 128 + 128)
        number //= 128
    groups.append(number)
    return bytes(groups)


def text(value):
    return value.decode("utf-8", "backslashreplace")


match sys.argv[1:]:
    case [bootstrap, topic, "write", key, seconds]:
        write(bootstrap, topic, key.encode(), int(seconds))
    case [bootstrap, topic, "show", key]:
        show(bootstrap, topic, key.encode())
    case _:
        sys.exit(__doc__)
