//! What users were refused: counted (INFO), and noted for ACL LOG.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Equal refusals within this time are one entry, in milliseconds.
const TOGETHER_MS: u64 = 60_000;
/// How many entries are looked at for an equal one.
const LOOKED_AT: usize = 10;
/// Most bytes of a name that an entry keeps.
const MOST_BYTES: usize = 1 << 10;

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    LogIn,
    Command,
    Key,
    Channel,
    /// The user that a client's certificate names.
    Certificate,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::LogIn => "auth",
            Reason::Command => "command",
            Reason::Key => "key",
            Reason::Channel => "channel",
            Reason::Certificate => "tls-cert",
        }
    }
}

/// Where the refused command came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// The client itself.
    TopLevel,
    /// It was queued, or EXEC was about to run it.
    Multi,
    Script,
}

impl Context {
    pub fn name(self) -> &'static str {
        match self {
            Context::TopLevel => "toplevel",
            Context::Multi => "multi",
            Context::Script => "lua",
        }
    }
}

/// An entry of ACL LOG.
#[derive(Clone, Debug)]
pub struct Denial {
    pub id: u64,
    pub count: u64,
    pub reason: Reason,
    pub context: Context,
    /// The command, key or channel.
    pub object: Vec<u8>,
    pub user: Vec<u8>,
    /// The connection, as CLIENT LIST shows it.
    pub client: String,
    /// Milliseconds since the epoch.
    pub created: u64,
    pub updated: u64,
}

/// What a script or a transaction was refused. It may be computed again, with the same refusals:
/// only those that no computation had before are new.
#[derive(Default)]
pub struct Refusals {
    refused: Vec<Refused>,
}

struct Refused {
    what: (Reason, Context),
    object: Vec<u8>,
    /// Times in the computation under way, and at most in one so far.
    now: u64,
    most: u64,
}

impl Refusals {
    /// Most different refusals that are remembered. Any more are always new.
    const MOST: usize = 128;

    /// A computation begins.
    pub fn begin(&mut self) {
        self.refused.iter_mut().for_each(|refused| refused.now = 0);
    }

    /// Whether the refusal of this object is a new one.
    pub fn is_new(&mut self, what: (Reason, Context), object: &[u8]) -> bool {
        let object = &object[..object.len().min(MOST_BYTES)];
        let same = |refused: &&mut Refused| refused.what == what && refused.object == object;
        if let Some(known) = self.refused.iter_mut().find(same) {
            known.now += 1;
            let is_new = known.now > known.most;
            known.most = known.most.max(known.now);
            return is_new;
        }
        if self.refused.len() < Self::MOST {
            self.refused.push(Refused {
                what,
                object: object.to_vec(),
                now: 1,
                most: 1,
            });
        }
        true
    }

    /// What is computed next is another thing.
    pub fn clear(&mut self) {
        self.refused.clear();
    }
}

/// See the module.
#[derive(Default)]
pub struct Denials {
    counts: [AtomicU64; 5],
    /// The newest first.
    entries: Mutex<VecDeque<Denial>>,
    next_id: AtomicU64,
}

impl Denials {
    /// Times that this was refused.
    pub fn count(&self, reason: Reason) -> u64 {
        self.counts[reason as usize].load(Ordering::Relaxed)
    }

    /// Sets the counters to 0 (CONFIG RESETSTAT).
    pub fn reset_counts(&self) {
        self.counts.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }

    /// Notes a refusal. At most `longest` entries are kept.
    pub fn note(
        &self,
        (reason, context): (Reason, Context),
        (user, object): (&[u8], &[u8]),
        client: String,
        now: u64,
        longest: usize,
    ) {
        self.counts[reason as usize].fetch_add(1, Ordering::Relaxed);
        let [user, object] = [user, object].map(|name| &name[..name.len().min(MOST_BYTES)]);
        let mut entries = self.entries.lock();
        let same = entries.iter().take(LOOKED_AT).position(|entry| {
            (entry.reason, entry.context) == (reason, context)
                && (&*entry.user, &*entry.object) == (user, object)
                && now.abs_diff(entry.updated) <= TOGETHER_MS
        });
        let entry = match same.and_then(|at| entries.remove(at)) {
            Some(mut entry) => {
                (entry.count, entry.updated, entry.client) = (entry.count + 1, now, client);
                entry
            }
            None => Denial {
                id: self.next_id.fetch_add(1, Ordering::Relaxed),
                count: 1,
                reason,
                context,
                object: object.to_vec(),
                user: user.to_vec(),
                client,
                created: now,
                updated: now,
            },
        };
        entries.push_front(entry);
        entries.truncate(longest);
    }

    /// The newest entries.
    pub fn newest(&self, most: usize) -> Vec<Denial> {
        self.entries.lock().iter().take(most).cloned().collect()
    }

    pub fn forget(&self) {
        self.entries.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_computation_had_before_is_not_new() {
        let mut refusals = Refusals::default();
        let mut compute = |objects: &str| -> String {
            refusals.begin();
            let what = (Reason::Key, Context::Script);
            objects
                .chars()
                .filter(|object| refusals.is_new(what, &[*object as u8]))
                .collect()
        };
        assert_eq!(compute("aab"), "aab");
        assert_eq!(compute("abc"), "c");
        assert_eq!(compute("aaaa"), "aa", "twice more");
        assert!(
            refusals.is_new((Reason::Key, Context::Multi), b"a"),
            "it is another thing"
        );
        refusals.clear();
        assert!(refusals.is_new((Reason::Key, Context::Script), b"a"));
    }

    #[test]
    fn equal_refusals_are_one_entry_for_a_minute() {
        let denials = Denials::default();
        let note = |object: &[u8], now| {
            let what = (Reason::Command, Context::TopLevel);
            denials.note(what, (b"ann", object), String::new(), now, 3);
        };
        note(b"get", 1_000);
        note(b"set", 2_000);
        note(b"get", 61_000);
        let entries: Vec<_> = denials
            .newest(9)
            .into_iter()
            .map(|e| (e.id, e.object, e.count))
            .collect();
        assert_eq!(entries, [(0, b"get".to_vec(), 2), (1, b"set".to_vec(), 1)]);
        note(b"get", 121_001);
        assert_eq!(denials.newest(9).len(), 3, "it is another entry after a minute");
        (0..9).for_each(|number| note(&[number], 122_000));
        assert_eq!((denials.newest(9).len(), denials.newest(2).len()), (3, 2));
        assert_eq!((denials.count(Reason::Command), denials.count(Reason::Key)), (13, 0));
        denials.forget();
        assert!(denials.newest(9).is_empty());
        note(&vec![b'x'; 1 << 20], 0);
        assert_eq!(denials.newest(1)[0].object.len(), MOST_BYTES);
    }
}
