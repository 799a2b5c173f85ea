//! Who hears of changes: those who track keys, those who listen to keyspace events, and of settings
//! the users and the connections that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::command::{Shared, acl, invalidations, notify};
use crate::database::visible::What;

/// From now on changes are told to those who want to know of them.
pub(super) fn follow(shared: &Arc<Shared>) {
    let to = Arc::downgrade(shared);
    shared.service.listeners.add_idle(move |event| {
        if let Some(shared) = to.upgrade() {
            // A node that loads shows nothing yet. When it serves, everything may have changed.
            let is_of_key = matches!(event.what, What::Written(_) | What::Deleted(_));
            if is_of_key && !shared.service.is_serving() {
                return;
            }
            invalidations::heard(&shared, event);
            notify::heard(&shared, event);
        }
    });
    let to = Arc::downgrade(shared);
    shared.service.listeners.on_notices(move |notices| {
        if let Some(shared) = to.upgrade() {
            notify::written(&shared, notices);
        }
    });
    let (to, wanted) = (shared.service.clone(), AtomicBool::new(false));
    shared.config.on_change("notify-keyspace-events", move |config| {
        let wants = config.notify_classes() != 0;
        match (wanted.swap(wants, Ordering::SeqCst), wants) {
            (false, true) => to.listeners.want(),
            (true, false) => to.listeners.unwant(),
            _ => {}
        }
    });
    let to = Arc::downgrade(shared);
    shared.config.on_change("tracking-table-max-keys", move |_| {
        if let Some(shared) = to.upgrade() {
            invalidations::shrink(&shared);
        }
    });
    let to = Arc::downgrade(shared);
    shared.config.on_change("timeout", move |_| {
        if let Some(shared) = to.upgrade() {
            shared.clients.list().iter().for_each(|client| client.wake());
        }
    });
}

/// From now on the settings about users hold.
pub(super) fn follow_users(shared: &Arc<Shared>) {
    let to = Arc::downgrade(shared);
    shared.config.on_change("acl-pubsub-default", move |config| {
        if let Some(shared) = to.upgrade() {
            shared.users.set_every_channel(config.acl_every_channel());
        }
    });
    let to = Arc::downgrade(shared);
    // A value that is set again changes nothing: the default user may have got another password.
    let applied = Mutex::new(None);
    shared.config.on_change("requirepass", move |config| {
        let password = config.requirepass();
        let before = applied.lock().replace(password.clone());
        if let Some(shared) = to.upgrade().filter(|_| before != Some(password.clone())) {
            shared.users.set_default_password(password.as_deref());
        }
    });
    let to = Arc::downgrade(shared);
    shared.config.on_users_change(move |lines| match to.upgrade() {
        Some(shared) => acl::prepare(&shared, lines),
        None => Ok(Box::new(|| {})),
    });
}
