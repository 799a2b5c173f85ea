//! Tells connections which of the keys that they track have changed ([`tracking`](super::tracking)
//! knows them).
//!
//! The thread that makes a change delivers it, so that it is in the queues of those who track the
//! key before the writer has its reply. If that would take long, because many connections track
//! the key, a task of its own does it ([`run`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{BufMut, Bytes, BytesMut};

use super::Shared;
use super::clients::Client;
use super::key_specs::keys_of;
use super::pushes::{Added, Push};
use super::session::Session;
use super::tracking::{Change, Changed};
use super::tracking_modes::mode;
use super::{Args, Command, flag};
use crate::database::visible::Event;
use crate::resp::{write_bulk, write_length};

/// The thread that makes a change tells at most so many connections.
const AT_ONCE: usize = 64;
/// Keys, and bytes of their names, in one push.
const PUSH_KEYS: usize = 1_024;
const PUSH_BYTES: usize = 64 << 10;

/// Something has become visible.
pub fn heard(shared: &Shared, event: &Event<'_>) {
    let is_not_told = |id| {
        let writer = shared.clients.get(id);
        writer.is_some_and(|writer| writer.tracking.has(mode::NOLOOP))
    };
    let changes = shared.tracking.heard(event, is_not_told);
    if !changes.is_empty() {
        deliver_or_put_off(shared, changes);
    }
}

/// Keeps the table within its bounds, which may have become narrower.
pub fn shrink(shared: &Shared) {
    let evicted = shared.tracking.shrink(shared.config.tracking_table_max_keys());
    if !evicted.is_empty() {
        deliver_or_put_off(shared, evicted);
    }
}

/// Delivers what was put off, as long as the server runs.
pub async fn run(shared: Arc<Shared>) {
    let ticks = std::time::Duration::from_secs(1);
    loop {
        // The timeout is for what was put off before this was started again.
        let _ = tokio::time::timeout(ticks, shared.tracking.has_waiting.notified()).await;
        loop {
            let changes = shared.tracking.take_waiting();
            if changes.is_empty() {
                break;
            }
            deliver(&shared, &changes);
            tokio::task::yield_now().await;
        }
    }
}

fn deliver_or_put_off(shared: &Shared, changes: Vec<Change>) {
    let all = |change: &Change| change.key.is_none();
    let readers: usize = changes.iter().map(|change| change.readers.len()).sum();
    let everybody = usize::from(changes.iter().any(all)) * shared.tracking.clients();
    match readers + everybody + shared.tracking.broadcasting() <= AT_ONCE {
        true => deliver(shared, &changes),
        false => shared.tracking.put_off(changes),
    }
}

fn deliver(shared: &Shared, changes: &[Change]) {
    for Change { key, writer, readers } in changes {
        let Some(key) = key else {
            let clients = shared.clients.list();
            let tracking = clients.iter().filter(|client| client.tracking.has(mode::ON));
            tracking.for_each(|client| send(shared, client, None));
            continue;
        };
        let keys = encode([key]);
        for client in readers.iter().filter_map(|id| shared.clients.get(*id)) {
            let modes = &client.tracking;
            let is_own = client.id == *writer && modes.has(mode::NOLOOP);
            if modes.has(mode::ON) && !modes.has(mode::BCAST) && !is_own {
                send(shared, &client, Some(&keys));
            }
        }
    }
    for (clients, changed) in shared.tracking.broadcasts(changes) {
        let everything = in_pushes(&changed, |_| true);
        for client in clients.iter() {
            let made_some = || changed.values().any(|writer| *writer == client.id);
            if client.tracking.has(mode::NOLOOP) && made_some() {
                let of_others = in_pushes(&changed, |writer| writer != client.id);
                of_others.iter().for_each(|keys| send(shared, client, Some(keys)));
            } else {
                everything.iter().for_each(|keys| send(shared, client, Some(keys)));
            }
        }
    }
}

/// The keys of some writers, encoded for as many pushes as they need.
fn in_pushes(changed: &Changed, is_meant: impl Fn(u64) -> bool) -> Vec<Bytes> {
    let mut pushes = Vec::new();
    let (mut keys, mut bytes) = (Vec::new(), 0);
    for (key, _) in changed.iter().filter(|(_, writer)| is_meant(**writer)) {
        if keys.len() == PUSH_KEYS || (bytes + key.len() > PUSH_BYTES && bytes > 0) {
            pushes.push(encode(std::mem::take(&mut keys)));
            bytes = 0;
        }
        bytes += key.len();
        keys.push(key);
    }
    if !keys.is_empty() {
        pushes.push(encode(keys));
    }
    pushes
}

fn encode<'k>(keys: impl IntoIterator<Item = &'k Bytes, IntoIter: ExactSizeIterator>) -> Bytes {
    let keys = keys.into_iter();
    let mut out = BytesMut::new();
    out.put_u8(b'*');
    write_length(&mut out, keys.len());
    keys.for_each(|key| write_bulk(&mut out, key));
    out.freeze()
}

/// Tells a connection, or the one that it redirects to. `keys`: encoded; `None` for all keys.
fn send(shared: &Shared, client: &Arc<Client>, keys: Option<&Bytes>) {
    let push = |redirected| Push::Changed {
        keys: keys.cloned(),
        redirected,
    };
    let Some(id) = client.tracking.redirect() else {
        // In RESP2 there is no form for it.
        if client.resp3.load(Ordering::Relaxed) {
            add(shared, client, &push(false));
        }
        return;
    };
    let target = shared.clients.get(id).filter(|target| !target.is_killed());
    if target.is_some_and(|target| add(shared, &target, &push(true))) {
        return;
    }
    client.tracking.set_broken();
    let mut broken = BytesMut::new();
    write_length(&mut broken, 2);
    write_bulk(&mut broken, b"tracking-redir-broken");
    broken.extend_from_slice(format!(":{id}\r\n").as_bytes());
    add(shared, client, &Push::Resp3(broken.freeze()));
}

/// Adds a push to the queue of a connection. False if the connection is about to end.
pub(super) fn add(shared: &Shared, client: &Arc<Client>, push: &Push) -> bool {
    let limit = shared.config.output_limits().pubsub;
    match client.pushes.add(push, client.listener_output(), &limit) {
        Added::First => client.wake(),
        Added::Behind => {}
        Added::AboveLimit => {
            shared.stats.above_output_limit(client.id);
            client.kill();
        }
        Added::Closed => return false,
    }
    true
}

impl Session {
    /// A script begins, or ends if there are no arguments.
    pub(super) fn declares(&mut self, command: &Command, args: Args<'_>) {
        if let Some(tracks) = &mut self.tracks {
            tracks.declare(&keys_of(command.keys, args));
        }
    }

    /// EXEC is about to compute its commands. If CLIENT CACHING YES is among them, it runs too late
    /// for those after it, so it holds for all of them. CLIENT CACHING NO has no effect there.
    pub(super) fn caches_in_exec(&mut self, mut requests: impl Iterator<Item = (&'static str, bool)>) {
        if let Some(tracks) = &mut self.tracks
            && tracks.has(mode::OPTIN)
        {
            tracks.caching |= requests.any(|(name, is_yes)| name == "client|caching" && is_yes);
        }
    }

    /// A command is over, or was refused; `None` if there is no such command. As in Redis, what
    /// CLIENT CACHING said holds for one command, or a whole transaction.
    pub(super) fn ends(&mut self, command: Option<&Command>) {
        let is_of_client = || command.is_some_and(|command| command.name.starts_with("client|"));
        if let Some(tracks) = &mut self.tracks {
            tracks.caching &= self.multi.is_some() || is_of_client();
        }
    }

    /// A command is about to read its keys: from now on their changes are told, if the connection
    /// tracks them.
    #[inline]
    pub(super) fn reads(&self, shared: &Shared, command: &Command, args: Args<'_>) {
        if let Some(tracks) = &self.tracks
            && command.has(flag::READONLY)
        {
            let keys = keys_of(command.keys, args);
            let most = shared.config.tracking_table_max_keys();
            if tracks.reads(&keys, most, |id| shared.clients.get(id).is_some()) {
                shrink(shared);
            }
        }
    }
}
