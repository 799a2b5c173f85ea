//! Access control. Every listener (RESP, gRPC) asks [`admit`], and nothing else decides: a check
//! that is added here holds for all of them.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::clients::Client;
use super::shared::Shared;
use super::{Command, flag};

/// Delay after a connection's first failed login. It doubles with each further one, up to
/// [`MAX_LOGIN_DELAY`].
const LOGIN_DELAY: Duration = Duration::from_millis(50);
const MAX_LOGIN_DELAY: Duration = Duration::from_secs(2);
/// The only user.
pub const DEFAULT_USER: &[u8] = b"default";

/// A request for permission.
pub enum Wants<'a> {
    /// To connect, from this address.
    Connect(Option<SocketAddr>),
    /// To log in on a connection.
    LogIn {
        client: &'a Client,
        user: &'a [u8],
        password: &'a [u8],
    },
    /// To ask whether this node serves (gRPC's health service). Probes have no password, and the
    /// reply says nothing else.
    Health,
    /// To run a command, logged in or not.
    Run { authenticated: bool, command: &'a Command },
}

/// Why permission is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    TooManyClients,
    Protected,
    WrongPassword,
    NotAuthenticated,
}

impl Refusal {
    /// The error reply: its code, then the reason.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::TooManyClients => "ERR max number of clients reached",
            Refusal::Protected => concat!(
                "DENIED Highwater is running in protected mode because protected mode is enabled and no password is set. ",
                "In this mode connections are only accepted from the loopback interface. To connect from elsewhere, set a password ",
                "(requirepass), or turn protected mode off (protected-mode no) if the network is trusted."
            ),
            Refusal::WrongPassword => "WRONGPASS invalid username-password pair or user is disabled.",
            Refusal::NotAuthenticated => "NOAUTH Authentication required.",
        }
    }
}

/// Gives permission, or says why not. After [`Refusal::WrongPassword`] the caller waits for
/// [`login_delay`] before it answers.
pub fn admit(shared: &Shared, wants: Wants<'_>) -> Result<(), Refusal> {
    match wants {
        Wants::Connect(_) if shared.clients.len() >= shared.config.maxclients() => Err(Refusal::TooManyClients),
        Wants::Connect(peer) if is_protected(shared, peer) => Err(Refusal::Protected),
        Wants::Connect(_) => Ok(()),
        // There is one user. If no password is set, any password is right.
        Wants::LogIn { client, user, password } => {
            if user == DEFAULT_USER && shared.config.password_is(password) {
                client.failed_logins.store(0, Ordering::Relaxed);
                return Ok(());
            }
            client.failed_logins.fetch_add(1, Ordering::Relaxed);
            Err(Refusal::WrongPassword)
        }
        Wants::Run { authenticated, command } if !authenticated && !command.has(flag::NO_AUTH) => {
            Err(Refusal::NotAuthenticated)
        }
        Wants::Health | Wants::Run { .. } => Ok(()),
    }
}

/// Whether a connection counts as logged in from the start.
pub fn needs_no_login(shared: &Shared) -> bool {
    shared.config.requirepass().is_none()
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

fn is_protected(shared: &Shared, peer: Option<SocketAddr>) -> bool {
    shared.config.protected_mode()
        && needs_no_login(shared)
        && !peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback())
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
}
