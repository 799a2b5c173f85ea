//! The users that the configuration defines, in lines of its own or in the file `aclfile`.

use std::path::Path;
use std::sync::Arc;

use tracing::{info, warn};

use super::{close, deaf, end, of};
use crate::acl::{DEFAULT, Defined, Loaded};
use crate::command::{Args, Fault, Outcome, Reply, Session, Shared};
use crate::config::UserLine;
use crate::files;

/// Longest file of users that is read.
const MOST_BYTES: u64 = 64 << 20;
const NO_FILE: &str = "ERR This Redis instance is not configured to use an ACL file. You may want to specify users via the ACL SETUSER command and then issue a CONFIG REWRITE (assuming you have a Redis configuration file set) in order to store users in the Redis configuration.";

/// Defines the users of the configuration, at start. The error says what to do.
pub fn load(shared: &Shared) -> Result<(), String> {
    let defined = defined(shared, shared.config.users()).map_err(|error| format!("define a user: {error}"))?;
    shared.users.put(defined);
    if let Some(file) = shared.config.acl_file() {
        read(shared, &file).map_err(|error| format!("read the users: {error}"))?;
        if shared.config.requirepass().is_some() && shared.users.needs_no_login() {
            let file = file.display();
            warn!("requirepass has no effect: without another line in {file} the user default needs no password");
        }
    }
    // It may be a mistake.
    for account in shared.users.list().iter().filter(|account| !account.user().is_on()) {
        let user = String::from_utf8_lossy(account.name());
        warn!(%user, "a user is disabled: its rules do not say 'on'");
    }
    Ok(())
}

/// The users that lines of the configuration define.
fn defined(shared: &Shared, lines: &[UserLine]) -> Result<Defined, String> {
    let mut defined = Defined::new();
    for UserLine { words, place } in lines {
        if shared.config.acl_file().is_some() {
            return Err(format!(
                "{place}: users from two places: aclfile names a file of them; use one of both"
            ));
        }
        let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
        let added = shared.users.define(&words, &mut defined);
        added.map_err(|error| format!("{place}: {error}"))?;
    }
    Ok(defined)
}

/// Prepares the users of a configuration that is read again. They are in force once the result is
/// called. Users without a line stay as they are.
pub fn prepare(shared: &Arc<Shared>, lines: &[UserLine]) -> Result<Box<dyn FnOnce()>, String> {
    let (shared, defined) = (shared.clone(), defined(shared, lines)?);
    Ok(Box::new(move || {
        for account in shared.users.put(defined) {
            info!(user = %String::from_utf8_lossy(account.name()), "a user has changed");
            deaf(&shared, &account).iter().for_each(|client| end(&shared, client));
        }
    }))
}

fn read(shared: &Shared, file: &Path) -> Result<Loaded, String> {
    let name = file.display().to_string();
    let cannot = |error: &dyn std::fmt::Display| format!("Error loading ACLs, opening file '{name}': {error}");
    let size = std::fs::metadata(file).map_err(|error| cannot(&error))?.len();
    if size > MOST_BYTES {
        return Err(cannot(&format!("it has {size} bytes, more than {MOST_BYTES}")));
    }
    let text = std::fs::read(file).map_err(|error| cannot(&error))?;
    shared.users.load(&name, &text)
}

pub(super) fn acl_load(session: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    let file = shared.config.acl_file().ok_or(NO_FILE)?;
    let loaded = read(shared, &file).map_err(|error| Fault::error(format!("ERR {error}")))?;
    // As a user that was removed and created: its connections have to log in again.
    let (default, changed): (Vec<_>, Vec<_>) = loaded.changed.iter().partition(|account| account.name() == DEFAULT);
    for account in loaded.removed.iter().chain(changed) {
        let clients: Vec<_> = of(shared, account).collect();
        close(session, shared, &clients);
    }
    for account in default {
        close(session, shared, &deaf(shared, account));
    }
    Ok(Reply::Ok)
}

pub(super) fn acl_save(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    let file = shared.config.acl_file().ok_or(NO_FILE)?;
    match files::rewrite(&file, &shared.users.save()) {
        Ok(()) => Ok(Reply::Ok),
        Err(error) => {
            warn!(%error, file = %file.display(), "cannot write the users");
            Err(
                "ERR There was an error trying to save the ACLs. Please check the server logs for more information"
                    .into(),
            )
        }
    }
}
