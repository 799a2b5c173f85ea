//! Decides what a command has to wait for until this node is new enough for it. The modes are
//! explained in [`crate::database::consistency`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::key_specs::keys_of;
use super::session::Session;
use super::shared::Shared;
use super::{Args, Command, Fault, Reads, Run, args, flag};
use crate::database::Service;
use crate::database::consistency::{Consistency, Scope};
use crate::database::write::Outstanding;

/// What a command has to wait for.
pub struct Fresh {
    scope: Scope,
    wanted: Wanted,
    /// The command reads the whole store, which must then have caught up too.
    pub whole_store: bool,
}

enum Wanted {
    /// Everything that was in the log at this time.
    Since(Instant),
    /// Everything older than this.
    Within(Duration),
}

/// The mode of this connection.
pub fn mode(session: &Session, shared: &Shared) -> Consistency {
    session
        .reads
        .chosen
        .unwrap_or_else(|| shared.service.reads.default_mode())
}

/// What the command has to wait for; `None` if it may be computed at once.
pub fn needed(
    session: &Session,
    shared: &Shared,
    command: &Command,
    args: Args<'_>,
    whole_store: bool,
) -> Option<Fresh> {
    let service = &shared.service;
    let mode = mode(session, shared);
    if !matches!(mode, Consistency::Linearizable | Consistency::MaxLag(_)) || service.log.chains() {
        return None;
    }
    let scope = scope(session, service, command, args)?;
    let wanted = match mode {
        Consistency::MaxLag(lag) if service.is_within(&scope, lag) => return None,
        Consistency::MaxLag(lag) => Wanted::Within(lag),
        _ if service.is_fresh(&scope, session.reads.arrived) => return None,
        _ => Wanted::Since(session.reads.arrived),
    };
    Some(Fresh {
        scope,
        wanted,
        whole_store,
    })
}

/// What the command reads; `None` if it reads no data.
fn scope(session: &Session, service: &Service, command: &Command, args: Args<'_>) -> Option<Scope> {
    if matches!(command.run, Run::Exec) {
        let queued = session.multi.as_ref().is_some_and(|multi| !multi.queued.is_empty());
        return queued.then_some(Scope::Everything);
    }
    match command.reads {
        _ if command.has(flag::ALL_KEYS) || command.finds_keys(args) => Some(Scope::Everything),
        Reads::Store | Reads::OtherDatabases => Some(Scope::Everything),
        Reads::StoreIf(_) => None,
        Reads::KeysUnless(blind) if blind(args) => None,
        Reads::Keys | Reads::KeysUnless(_) if command.keys.is_empty() => None,
        Reads::Keys | Reads::KeysUnless(_) | Reads::KeysAndOthersIf(_) | Reads::Script => {
            Some(service.scope(session.database, keys_of(command.keys, args).into_iter()))
        }
    }
}

impl Fresh {
    /// Waits until this node is new enough. An error is the command's reply.
    pub async fn reached(self, owner: &Outstanding, service: &Arc<Service>) -> Result<(), Fault> {
        match self.wanted {
            Wanted::Since(since) => service.fresh(&self.scope, since).await?,
            Wanted::Within(lag) => service.within(&self.scope, lag).await?,
        }
        if self.whole_store {
            owner.none(service).await;
            service.store_caught_up().await?;
        }
        Ok(())
    }
}

/// Parses the words after HIGHWATER CONSISTENCY. Outer `None`: they are invalid. Inner `None`: the
/// server's own mode.
pub fn parse(words: &[&[u8]]) -> Option<Option<Consistency>> {
    let choice = |word: &[u8]| {
        let named = |name| args::is(word, name);
        match () {
            () if named("eventual") => Some(Some(Consistency::Eventual)),
            () if named("session") => Some(Some(Consistency::Session)),
            () if named("linearizable") => Some(Some(Consistency::Linearizable)),
            () if named("default") => Some(None),
            () => None,
        }
    };
    match words {
        [word] => choice(word),
        [word, lag] if args::is(word, "max-lag") || args::is(word, "maxlag") => {
            let lag = u64::try_from(args::parse_int(lag)?)
                .ok()
                .filter(|lag| (1..=3_600_000).contains(lag))?;
            Some(Some(Consistency::MaxLag(Duration::from_millis(lag))))
        }
        _ => None,
    }
}
