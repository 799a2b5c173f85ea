//! `notify-keyspace-events`: messages about keys that have changed, to those who listen on this
//! node. Own commands have the events that Redis gives them ([`events`]). Of what others write to
//! the log only the outcome is known.

use super::hub::Message;
use super::publish::deliver;
use super::{Args, Command, Fault, Shared, Transaction, events};
use crate::database::notices::{Notes, Notice};
use crate::database::visible::{Event, What};
use crate::model::{Collection, Value, class};

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
    for (database, key) in &notes.missed {
        tell(shared, classes, *database, key, (class::MISSED, "keymiss"));
    }
    let notices = &mut transaction.notices;
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
    let classes = shared.config.notify_classes();
    for Notice {
        database,
        key,
        class,
        name,
    } in notices
    {
        tell(shared, classes, *database, key, (*class, name));
    }
}

/// Something has become visible. What this node wrote has events of its own.
pub fn heard(shared: &Shared, event: &Event<'_>) {
    let classes = shared.config.notify_classes();
    if classes == 0 || event.own {
        return;
    }
    match event.what {
        What::Deleted(key) if event.expired => tell(shared, classes, event.database, key, (class::EXPIRED, "expired")),
        What::Deleted(key) => tell(shared, classes, event.database, key, (class::GENERIC, "del")),
        What::Written(key) => {
            // If it cannot be read, or is gone again, another event tells of that.
            let entry = shared.service.read(event.database, key, false).map(|seen| seen.entry);
            if let Ok(Some(entry)) = entry
                && let Some(outcome) = outcome(&entry.value)
            {
                tell(shared, classes, event.database, key, outcome);
            }
        }
        What::Flushed | What::Anything | What::GroupShown => {}
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

fn tell(shared: &Shared, classes: u32, database: u16, key: &[u8], (class, event): (u32, &str)) {
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
