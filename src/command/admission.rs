//! Access control. Every listener (RESP, gRPC, HTTP) asks [`admit`], and nothing else decides: a
//! check that is added here holds for all of them.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::args::text;
use super::clients::{Address, Client};
use super::rights::{self, Lack};
use super::shared::Shared;
use super::table::CommandEntry;
use super::{Args, flag};
use crate::acl::{Account, Context, DEFAULT, Reason};
use crate::database::now_ms;

/// Delay after a connection's first failed login. It doubles with each further one, up to
/// [`MAX_LOGIN_DELAY`]. A success between them changes nothing: who knows the password of one user
/// may try those of others.
const LOGIN_DELAY: Duration = Duration::from_millis(50);
const MAX_LOGIN_DELAY: Duration = Duration::from_secs(2);

/// A request for permission.
pub enum Wants<'a> {
    /// To connect, from this address.
    Connect(Option<&'a Address>),
    /// To ask whether this node serves (gRPC's health service, `/livez` and `/readyz`). Probes have
    /// no password, and the reply says nothing else.
    Health,
    /// To run a command.
    Run {
        caller: Caller<'a>,
        command: &'a CommandEntry,
        args: Args<'a>,
    },
}

/// Who wants to run a command, and where the command comes from.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub client: &'a Client,
    pub user: &'a Account,
    /// It has logged in, or was let in without.
    pub authenticated: bool,
    pub context: Context,
    /// The command may be checked again, since it is part of what may be computed again. What it is
    /// refused is noted once.
    pub may_repeat: bool,
}

/// Why permission is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    TooManyClients,
    Protected,
    WrongPassword,
    NotAuthenticated,
    /// The user's rights do not allow the command, a key or a channel; the text says which, without
    /// a code.
    NotAllowed(Reason, String),
    /// The user may not read every key, which this option of SORT needs.
    OtherKeys(&'static str),
}

impl Refusal {
    /// The error reply: its code, then the reason.
    pub fn text(&self) -> Cow<'static, str> {
        let text = match self {
            Refusal::TooManyClients => "ERR max number of clients reached",
            Refusal::Protected => concat!(
                "DENIED Highwater is running in protected mode because protected mode is enabled and no password is set. ",
                "In this mode connections are only accepted from the loopback interface. To connect from elsewhere, set a password ",
                "(requirepass), or turn protected mode off (protected-mode no) if the network is trusted."
            ),
            Refusal::WrongPassword => "WRONGPASS invalid username-password pair or user is disabled.",
            Refusal::NotAuthenticated => "NOAUTH Authentication required.",
            Refusal::NotAllowed(_, text) => return format!("NOPERM {text}").into(),
            Refusal::OtherKeys(option) => {
                return format!("ERR {option} option of SORT denied due to insufficient ACL permissions.").into();
            }
        };
        text.into()
    }
}

/// Gives permission, or says why not.
pub fn admit(shared: &Shared, wants: Wants<'_>) -> Result<(), Refusal> {
    match wants {
        Wants::Connect(_) if shared.clients.len() >= shared.config.maxclients() => Err(Refusal::TooManyClients),
        Wants::Connect(peer) if is_protected(shared, peer) => Err(Refusal::Protected),
        Wants::Connect(_) => Ok(()),
        Wants::Health => Ok(()),
        Wants::Run { caller, command, .. }
            if !caller.authenticated && !command.has(flag::NO_AUTH) && !shared.users.needs_no_login() =>
        {
            Err(Refusal::NotAuthenticated)
        }
        Wants::Run { caller, .. } if caller.user.may_everything() => Ok(()),
        Wants::Run { caller, command, args } => check_rights(shared, caller, command, args),
    }
}

/// Checks what the user may do, and notes what it may not.
fn check_rights(shared: &Shared, caller: Caller<'_>, command: &CommandEntry, args: Args<'_>) -> Result<(), Refusal> {
    let Err(lack) = rights::check(&caller.user.rights(), command, args) else {
        return Ok(());
    };
    let (name, client) = (caller.user.name(), caller.client);
    if let Some((reason, object)) = lack.logged(command) {
        let what = (reason, caller.context);
        if !caller.may_repeat || client.refusals.lock().is_new(what, object) {
            note(shared, what, (name, object), client.describe_for(name));
        }
    }
    let user = text(name);
    Err(match lack {
        Lack::Command => {
            let told = format!("User {user} has no permissions to run the '{}' command", command.name);
            Refusal::NotAllowed(Reason::Command, told)
        }
        Lack::Key(_) => Refusal::NotAllowed(Reason::Key, "No permissions to access a key".into()),
        Lack::Channel(_) => Refusal::NotAllowed(Reason::Channel, "No permissions to access a channel".into()),
        Lack::OtherKeys(option) => Refusal::OtherKeys(option),
    })
}

fn note(shared: &Shared, what: (Reason, Context), of: (&[u8], &[u8]), client: String) {
    let longest = shared.config.acllog_max_len();
    shared.users.denials.note(what, of, client, now_ms(), longest);
}

/// The user that a connection becomes by logging in. `by`: the word with which it does so. After an
/// error the caller waits for [`login_delay`] before it answers.
pub fn log_in(
    shared: &Shared,
    (client, context): (&Client, Context),
    (user, password): (&[u8], &[u8]),
    by: &[u8],
) -> Result<Arc<Account>, Refusal> {
    if let Some(account) = shared.users.log_in(user, password) {
        return Ok(account);
    }
    client.failed_logins.fetch_add(1, Ordering::Relaxed);
    note(shared, (Reason::LogIn, context), (user, by), client.describe());
    Err(Refusal::WrongPassword)
}

/// Who makes a call that has its own `authorization` (HTTP Basic), or none. Without one it is the
/// user of the client's certificate, if there is such a user and it is on. `None`: nobody has
/// logged in. CLIENT LIST shows the caller from then on. The reply to a wrong password is delayed.
pub async fn log_in_by_call(
    shared: &Shared,
    client: &Client,
    authorization: Option<&[u8]>,
) -> Result<Option<Arc<Account>>, Refusal> {
    let user = match authorization {
        Some(given) => log_in_as(shared, client, given).await?,
        None => {
            let named = client.by_certificate.get();
            named.filter(|account| account.user().is_on()).cloned()
        }
    };
    let acts = user.as_ref().unwrap_or(shared.users.default_account());
    client.details.lock().user = Some(acts.clone());
    Ok(user)
}

async fn log_in_as(shared: &Shared, client: &Client, authorization: &[u8]) -> Result<Option<Arc<Account>>, Refusal> {
    let Some(given) = credentials(authorization) else {
        return Ok(None);
    };
    let colon = given.iter().position(|&byte| byte == b':').unwrap_or(given.len());
    let user = if colon == 0 { DEFAULT } else { &given[..colon] };
    let password = given.get(colon + 1..).unwrap_or_default();
    match log_in(shared, (client, Context::TopLevel), (user, password), b"AUTH") {
        Ok(user) => Ok(Some(user)),
        Err(refusal) => {
            tokio::time::sleep(login_delay(client)).await;
            Err(refusal)
        }
    }
}

/// What `authorization: Basic` encodes: user, colon, password.
fn credentials(value: &[u8]) -> Option<Vec<u8>> {
    let (scheme, encoded) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let encoded = scheme.eq_ignore_ascii_case("basic").then_some(encoded)?;
    STANDARD.decode(encoded.trim()).ok()
}

/// Gives a client the user that its certificate names (`tls-auth-clients-user`, as in Redis 8.6).
/// Without such a user, or while it is off, the client has the default user, as others have.
pub fn log_in_by_certificate(shared: &Shared, client: &Client, name: &str) {
    let Some(account) = shared
        .users
        .get(name.as_bytes())
        .filter(|account| account.user().is_on())
    else {
        let what = (Reason::Certificate, Context::TopLevel);
        return note(shared, what, (name.as_bytes(), b""), client.describe());
    };
    client.details.lock().user = Some(account.clone());
    let is_first = client.by_certificate.set(account).is_ok();
    debug_assert!(is_first, "a connection has one handshake");
}

/// Whether connections need not log in.
pub fn needs_no_login(shared: &Shared) -> bool {
    shared.users.needs_no_login()
}

/// How long the answer to a failed login is delayed, so that a connection cannot try many
/// passwords. Other connections do not wait.
pub fn login_delay(client: &Client) -> Duration {
    delay_after(client.failed_logins.load(Ordering::Relaxed))
}

fn delay_after(failed: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failed.saturating_sub(1));
    LOGIN_DELAY.saturating_mul(doubled).min(MAX_LOGIN_DELAY)
}

fn is_protected(shared: &Shared, peer: Option<&Address>) -> bool {
    shared.config.protected_mode() && needs_no_login(shared) && !peer.is_some_and(Address::is_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_logins_are_answered_later_and_later() {
        let after = |failed| delay_after(failed).as_millis();
        assert_eq!(
            [1, 2, 3, 6, 7, u32::MAX].map(after),
            [50, 100, 200, 1_600, 2_000, 2_000]
        );
    }

    #[test]
    fn credentials_are_those_of_basic_authentication() {
        let read = |value: &str| credentials(value.as_bytes());
        assert_eq!(
            read("Basic ZGVmYXVsdDpzOmVjcmV0").as_deref(),
            Some(&b"default:s:ecret"[..])
        );
        assert_eq!(read("basic OnNlY3JldA==").as_deref(), Some(&b":secret"[..]));
        for other in ["Bearer ZGVmYXVsdDpzOmVjcmV0", "Basic", "Basic ???", ""] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
