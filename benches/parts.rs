//! What the parts on the way of a command cost: `cargo bench --bench parts`. For comparing a change with what was there
//! before; decisions stand on `decode.rs` and `store.rs`.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::{Buf, Bytes, BytesMut};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use highwater::database::hot::{At, Budget, HotTier};
use highwater::log::kafka::codec;
use highwater::log::{Record, TopicPartition};
use highwater::model::{Change, Entry, Meta, Payload, Value};
use highwater::resp::{self, Decoder, Limits, Version};
use highwater::store::{self, EngineKind, Options, key_hash};

const KEYS: u64 = 100_000;
/// Calls in one timed run, so that the clock is no part of the figure.
const BATCH: u64 = 1_000;

fn main() {
    divan::main();
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key:{number:012}"))
}

/// All keys in an order that no cache foresees.
fn keys() -> Vec<Bytes> {
    let mut numbers: Vec<u64> = (0..KEYS).collect();
    numbers.sort_by_key(|number| key_hash(&number.to_le_bytes()));
    numbers.into_iter().map(key).collect()
}

fn entry(offset: u64) -> Entry {
    Entry {
        meta: Meta {
            partition: 0,
            offset,
            timestamp: 1_700_000_000_000,
            expire_at: None,
        },
        value: Value::String(Bytes::from(vec![b'v'; 64])),
    }
}

/// Calls `part` with one key after the other.
fn over_keys(bencher: Bencher, keys: &[Bytes], mut part: impl FnMut(&Bytes)) {
    let mut next = keys.iter().cycle();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        for key in next.by_ref().take(BATCH as usize) {
            part(key);
        }
    });
}

#[divan::bench]
fn decode_64_gets(bencher: Bencher) {
    let request = |number| format!("*2\r\n$3\r\nGET\r\n$16\r\nkey:{number:012}\r\n");
    let bytes: String = (0..64).map(request).collect();
    let (mut buffer, mut decoder) = (BytesMut::new(), Decoder::new());
    bencher.counter(ItemsCount::new(64_u64)).bench_local(|| {
        buffer.extend_from_slice(bytes.as_bytes());
        black_box(decoder.decode(&mut buffer, &Limits::default(), 1024));
        for request in decoder.requests(&buffer) {
            black_box(&request.args()[..]);
        }
        buffer.advance(decoder.finish());
    });
}

#[divan::bench]
fn encode_64_bulk_replies(bencher: Bencher) {
    let replies = vec![resp::Reply::bulk([b'v'; 64]); 64];
    let mut out = BytesMut::new();
    bencher.counter(ItemsCount::new(64_u64)).bench_local(|| {
        out.clear();
        for reply in &replies {
            resp::encode(black_box(reply), Version::Resp2, &mut out);
        }
    });
}

/// A tier with all keys in it, as after the store has taken them in.
fn hot_tier(keys: &[Bytes]) -> HotTier {
    let budget = Budget {
        limit: AtomicUsize::new(1 << 30),
        ..Budget::default()
    };
    let hot = HotTier::new(Arc::new(budget));
    for (offset, key) in (1..).zip(keys) {
        let at = At { partition: 0, offset };
        hot.apply(key, at, Some(entry(offset)), true, None);
        hot.stored(key, at);
    }
    hot
}

#[divan::bench]
fn hot_tier_get(bencher: Bencher) {
    let keys = keys();
    let hot = hot_tier(&keys);
    over_keys(bencher, &keys, |key| drop(black_box(hot.get(key, false))));
}

#[divan::bench]
fn hot_tier_insert(bencher: Bencher) {
    let keys = keys();
    let (hot, mut offset) = (hot_tier(&keys), KEYS);
    let entry = entry(KEYS);
    over_keys(bencher, &keys, |key| {
        offset += 1;
        let at = At { partition: 0, offset };
        hot.apply(key, at, Some(entry.clone()), true, None);
    });
}

#[divan::bench(args = [EngineKind::Sled, EngineKind::Fjall])]
fn store_get(bencher: Bencher, engine: EngineKind) {
    let directory = tempfile::tempdir().expect("a directory");
    let options = Options {
        cache_bytes: 256 << 20,
        databases: 16,
        keeps_hidden: false,
    };
    let store = store::open(engine, directory.path(), &options).expect("opens").store;
    let keys = keys();
    let changes: Vec<Change> = (1..).zip(&keys).map(|(offset, key)| put(key, offset)).collect();
    changes
        .chunks(1_000)
        .for_each(|changes| store.apply(changes).expect("applies"));
    over_keys(bencher, &keys, |key| {
        black_box(store.get(0, key).expect("reads").expect("is there"));
    });
}

fn put(key: &Bytes, offset: u64) -> Change {
    Change::of_key(0, 0, offset, key.clone(), Some(entry(offset)))
}

fn record(expire_at: Option<u64>) -> Record {
    Record {
        to: TopicPartition {
            database: 0,
            partition: 0,
        },
        key: key(1),
        payload: Payload::string(Bytes::from(vec![b'v'; 64]), expire_at),
    }
}

#[divan::bench(args = [None, Some(1_900_000_000_000)])]
fn record_encode(bencher: Bencher, expire_at: Option<u64>) {
    let record = record(expire_at);
    bencher.counter(ItemsCount::new(BATCH)).bench(|| {
        for _ in 0..BATCH {
            drop(black_box(codec::encode(black_box(&record), None)));
        }
    });
}

#[divan::bench(args = [None, Some(1_900_000_000_000)])]
fn record_decode(bencher: Bencher, expire_at: Option<u64>) {
    let record = record(expire_at);
    let wire = codec::encode(&record, None).expect("encodes");
    bencher.counter(ItemsCount::new(BATCH)).bench(|| {
        for _ in 0..BATCH {
            let headers = wire
                .headers
                .iter()
                .map(|(name, value)| (name.as_bytes(), Some(&value[..])));
            drop(black_box(codec::decode(
                black_box(wire.key),
                wire.value.as_deref(),
                headers,
            )));
        }
    });
}
