//! `notify-keyspace-events`: messages about keys that have changed, to those who listen on this
//! node. Own commands have the events that Redis gives them ([`events`]). Of what others write to
//! the log only the outcome is known.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::hub::Message;
use super::publish::deliver;
use super::{Args, Command, Fault, Shared, Transaction, events};
use crate::database::notices::{Notes, Notice};
use crate::database::visible::{Event, What};
use crate::model::{Collection, Value, class};

/// Messages that the thread adds to queues at most that makes a change.
const AT_ONCE: usize = 128;
/// Messages that the task adds to queues before others of its thread go on.
const IN_A_ROW: usize = 10_000;

/// Computes a command, and notes the events that it makes.
pub(super) fn noting<'t, T>(
    shared: &Shared,
    (command, args): (&Command, Args<'_>),
    transaction: &mut Transaction<'t>,
    f: impl FnOnce(&mut Transaction<'t>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let classes = shared.config.notify_classes();
    if classes == 0 {
        return f(transaction);
    }
    transaction.notes = Some(Box::new(Notes {
        looks_for_new: classes & class::NEW != 0,
        ..Notes::default()
    }));
    let outcome = f(transaction);
    let notes = transaction.notes.take().unwrap_or_default();
    let value = outcome?;
    if classes & class::MISSED != 0 && !notes.missed.is_empty() {
        let missed = notes.missed.into_iter().map(|(database, key)| Notice {
            database,
            key,
            class: class::MISSED,
            name: "keymiss",
        });
        written(shared, &missed.collect::<Vec<_>>());
    }
    let notices = &mut transaction.notices;
    if classes & class::STREAM != 0 {
        let made = notes.consumers_made.into_iter();
        notices.extend(made.map(|(database, key)| Notice {
            database,
            key,
            class: class::STREAM,
            name: "xgroup-createconsumer",
        }));
    }
    events::of(command.name, args, &notes.touched, &mut |class, name, key| {
        if classes & class != 0 {
            notices.push(Notice {
                database: key.database,
                key: key.key.clone(),
                class,
                name,
            });
        }
    });
    Ok(value)
}

/// The log has a write of this node that makes these events.
pub fn written(shared: &Shared, notices: &[Notice]) {
    let listeners = shared.pubsub.hub.all_listeners();
    let events = &shared.pubsub.events;
    // Each event has up to two messages.
    match notices.len().saturating_mul(2 * listeners) {
        0 => {}
        1..=AT_ONCE if events.is_idle() => notices.iter().for_each(|notice| tell(shared, notice)),
        _ => events.put_off(notices.iter().cloned()),
    }
}

/// Delivers what was put off, as long as the server runs.
pub async fn run(shared: Arc<Shared>) {
    const TICK: Duration = Duration::from_secs(1);
    let events = &shared.pubsub.events;
    loop {
        // The timeout is for what was put off before this was started again.
        let _ = tokio::time::timeout(TICK, events.has_waiting.notified()).await;
        loop {
            let listeners = shared.pubsub.hub.all_listeners();
            let some = events.take((IN_A_ROW / (2 * listeners).max(1)).max(1));
            if some.is_empty() {
                break;
            }
            some.iter().for_each(|notice| tell(&shared, notice));
            tokio::task::yield_now().await;
        }
    }
}

/// Something has become visible. What this node wrote has events of its own. The thread that reads
/// the log delivers nothing itself: nobody waits for it.
pub fn heard(shared: &Shared, event: &Event<'_>) {
    let classes = shared.config.notify_classes();
    if classes == 0 || event.own || shared.pubsub.hub.all_listeners() == 0 {
        return;
    }
    let (key, outcome) = match event.what {
        What::Deleted(key) if event.expired => (key, Some((class::EXPIRED, "expired"))),
        What::Deleted(key) => (key, Some((class::GENERIC, "del"))),
        What::Written(key) => {
            // If it cannot be read, or is gone again, another event tells of that.
            let entry = shared.service.read(event.database, key, false).map(|seen| seen.entry);
            (key, entry.ok().flatten().and_then(|entry| outcome(&entry.value)))
        }
        What::Flushed | What::Anything | What::GroupShown => return,
    };
    if let Some((class, name)) = outcome.filter(|(class, _)| classes & class != 0) {
        shared.pubsub.events.put_off([Notice {
            database: event.database,
            key: Bytes::copy_from_slice(key),
            class,
            name,
        }]);
    }
}

/// The event for what another writer left in a key.
fn outcome(value: &Value) -> Option<(u32, &'static str)> {
    let of = match value {
        Value::String(_) => return Some((class::STRING, "set")),
        Value::Packed(packed) => packed.of(),
        Value::Split(split) => split.of(),
        Value::Element(_) | Value::Unreadable(_) => return None,
    };
    Some(match of {
        Collection::Hash => (class::HASH, "hset"),
        Collection::List => (class::LIST, "rpush"),
        Collection::Set => (class::SET, "sadd"),
        Collection::SortedSet => (class::SORTED_SET, "zadd"),
        Collection::Stream => (class::STREAM, "xadd"),
    })
}

fn tell(shared: &Shared, notice: &Notice) {
    let Notice {
        database,
        key,
        class,
        name: event,
    } = notice;
    let classes = shared.config.notify_classes();
    if classes & class == 0 {
        return;
    }
    let send = |channel: &[&[u8]], payload: &[u8]| {
        let channel = channel.concat();
        let message = Message {
            channel: &channel,
            payload,
            shard: false,
        };
        deliver(shared, &message);
    };
    if classes & class::TO_KEY != 0 {
        send(&[format!("__keyspace@{database}__:").as_bytes(), key], event.as_bytes());
    }
    if classes & class::TO_EVENT != 0 {
        send(&[format!("__keyevent@{database}__:{event}").as_bytes()], key);
    }
}
