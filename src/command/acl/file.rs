//! The users that the configuration defines, in lines of its own or in the file `aclfile`.

use std::path::Path;
use std::sync::Arc;

use tracing::warn;

use super::{close_all, close_deaf};
use crate::acl::{Account, DEFAULT, Loaded};
use crate::command::{Args, Fault, Outcome, Reply, Session, Shared};
use crate::files;

/// Longest file of users that is read.
const MOST_BYTES: u64 = 64 << 20;
const NO_FILE: &str = "ERR This Redis instance is not configured to use an ACL file. You may want to specify users via the ACL SETUSER command and then issue a CONFIG REWRITE (assuming you have a Redis configuration file set) in order to store users in the Redis configuration.";

/// Defines the users of the configuration, at start. The error says what to do.
pub fn load(shared: &Shared) -> Result<(), String> {
    let file = shared.config.acl_file();
    for user in shared.config.users() {
        if file.is_some() {
            return Err(format!(
                "take users from two places: {} defines one, and aclfile names a file of users; use one of both",
                user.place
            ));
        }
        let words: Vec<&[u8]> = user.words.iter().map(String::as_bytes).collect();
        let account = shared.users.configure(&words);
        let account = account.map_err(|error| format!("define a user: {}: {error}", user.place))?;
        warn_of_disabled(&account);
    }
    let Some(file) = file else {
        return Ok(());
    };
    read(shared, &file).map_err(|error| format!("read the users: {error}"))?;
    shared.users.list().iter().for_each(|account| warn_of_disabled(account));
    Ok(())
}

/// It may be a mistake.
fn warn_of_disabled(account: &Account) {
    if !account.user().is_on() {
        let user = String::from_utf8_lossy(account.name());
        warn!(%user, "a user is disabled: its rules do not say 'on'");
    }
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
        close_all(session, shared, account);
    }
    for account in default {
        close_deaf(session, shared, account);
    }
    Ok(Reply::Ok)
}

pub(super) fn acl_save(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    let file = shared.config.acl_file().ok_or(NO_FILE)?;
    match files::replace(&file, &shared.users.save()) {
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
