//! What becomes of a request: its reply, or what it waits for.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::blocking::Resolved;
use super::broadcasts::{Need, Ticket};
use super::consistency::Fresh;
use super::session::{Multi, Watch};
use super::shared::Shared;
use super::table::CommandEntry;
use super::{Fault, Reply, Waiting};
use crate::acl::{Account, Refusals};
use crate::database::Wait;
use crate::database::transaction::Posted;
use crate::database::write::{Outstanding, Write};
use crate::log::LogError;
use crate::script::Kind;
use crate::supervise;

/// The reply to a command whose keys a long script has locked, and to a script that waits for a
/// turn which others do not give back.
pub(super) const BUSY_SCRIPT: &str =
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.";

pub(super) const BUSY_FUNCTION: &str =
    "BUSY Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.";
pub(super) const NOT_BUSY: &str = "NOTBUSY No scripts in execution right now.";

/// What became of a request.
pub enum Step {
    Reply(Reply),
    /// The reply may be sent when the writes are acknowledged.
    Pending(PendingReply),
    /// Await [`Before::happened`], then execute again.
    Before(Before),
    /// Answers later, by itself.
    Later(Waiting),
    /// Waits for elements: await [`serve`](super::blocked::serve).
    Blocks(Blocks),
}

/// A reply that waits for the log.
pub struct PendingReply {
    pub reply: Reply,
    pub write: Option<Arc<Write>>,
    pub depends: SmallVec<[Arc<Write>; 1]>,
    /// The connection must not go on before the writes are acknowledged.
    pub barrier: bool,
    /// The connection's database when the command was computed.
    pub database: u16,
    /// The message that was sent: the topic must have it.
    pub sent: Option<Arc<Ticket>>,
    /// Messages of scripts and of EXEC, to be sent now.
    pub messages: Vec<Posted>,
    /// What EXEC ran, so that it can be run again.
    pub exec: Option<Box<Exec>>,
    /// The command, and since when its client waits.
    pub asked: Option<(&'static CommandEntry, Instant)>,
    /// Times that it was computed again.
    pub repeated: u64,
    /// What its user may not do, if it is a script or EXEC: that was noted.
    pub refusals: Refusals,
}

/// A command that waits for elements.
pub struct Blocks {
    /// When its timeout is over.
    pub(super) deadline: Option<Instant>,
    /// It has found elements at once. Its write is under way.
    pub(super) taken: Option<PendingReply>,
    /// What the first look has found, for the later ones.
    pub(super) resolved: Resolved,
    /// The writes under way that the first look was computed on.
    pub(super) resolved_on: Vec<Arc<Write>>,
}

/// What MULTI queued and WATCH found, so that EXEC can be computed again.
pub struct Exec {
    pub multi: Multi,
    pub(super) watch: Watch,
    /// The database that was selected at first, and the user.
    pub(super) database: u16,
    pub(super) user: Arc<Account>,
    /// Replies of the commands that are not about data, with their places, once they have run.
    pub(super) others: Option<Vec<(usize, Reply)>>,
    /// What the users by then make of each command.
    pub(super) admitted: Vec<Admitted>,
}

/// What became of a queued command when EXEC came.
#[derive(Default)]
pub(super) struct Admitted {
    /// Its reply, if the user may not run it any more.
    pub(super) refused: Option<Reply>,
    /// The user of the commands after it: it logs in.
    pub(super) becomes: Option<Arc<Account>>,
}

/// What must happen before a command can be computed.
pub enum Before {
    /// Own writes acknowledged, and in the store.
    WholeStore,
    /// This node new enough, as the read consistency in force asks.
    Fresh(Fresh),
    Unpaused,
    /// Earlier commands of the connection answered.
    Settled,
    /// Endless scripts leave no turn to this one.
    Busy,
    /// The topic of messages ready for this.
    Messages(Need),
    Wait(Wait),
}

impl PendingReply {
    /// All that it waits for is in the log.
    pub(super) fn is_acknowledged(&self) -> bool {
        let mut writes = self.write.iter().chain(&self.depends);
        writes.all(|write| matches!(write.outcome(), Some(Ok(()))))
    }

    /// The reply of PUBLISH, which rests on no write.
    pub(super) fn of_message(ticket: Arc<Ticket>, database: u16) -> PendingReply {
        PendingReply {
            reply: Reply::None,
            write: None,
            depends: SmallVec::new(),
            barrier: false,
            database,
            sent: Some(ticket),
            messages: Vec::new(),
            exec: None,
            asked: None,
            repeated: 0,
            refusals: Refusals::default(),
        }
    }

    /// The reply, now that all is in the log. Scripts and transactions send their messages. If one
    /// of a script cannot be sent, that error is the reply.
    pub(super) async fn finish(mut self, shared: &Arc<Shared>) -> Reply {
        let sent = self.send_messages(shared).await;
        let mut reply = self.reply;
        if let Some(ticket) = self.sent {
            reply = ticket.reply(shared.service.write_timeout()).await;
        }
        sent.err().unwrap_or(reply)
    }
}

impl Before {
    /// Waits for it, or until this node has failed; an error is the command's reply.
    pub async fn happened(self, owner: &Outstanding, shared: &Arc<Shared>) -> Result<(), Fault> {
        // Commands that need the topic of messages are admitted while the node loads, and would be
        // again when it has failed.
        let is_for_messages = matches!(self, Before::Messages(_) | Before::Wait(Wait::Messages));
        tokio::select! {
            biased;
            happened = self.happens(owner, shared) => happened,
            // The command is executed again, and answers why.
            () = shared.service.failed() => match shared.service.failure() {
                Some(why) if is_for_messages => Err(Fault::error(format!("ERR this node {why}"))),
                _ => Ok(()),
            },
        }
    }

    async fn happens(self, owner: &Outstanding, shared: &Arc<Shared>) -> Result<(), Fault> {
        let service = &shared.service;
        match self {
            Before::WholeStore => {
                owner.none(service).await;
                service.store_caught_up().await
            }
            Before::Fresh(fresh) => fresh.reached(owner, service).await,
            // The connection has seen to it.
            Before::Settled => Ok(()),
            Before::Busy => Err(busy(shared)),
            Before::Messages(need) => shared.pubsub.provide(need, service.write_timeout()).await,
            Before::Unpaused => {
                shared.pause.ended().await;
                Ok(())
            }
            Before::Wait(Wait::Write(write)) => {
                let _ = write.finished().await;
                Ok(())
            }
            Before::Wait(Wait::Messages) => shared.pubsub.provide(Need::Send, service.write_timeout()).await,
            Before::Wait(Wait::Own) => {
                owner.none(service).await;
                Ok(())
            }
            Before::Wait(Wait::Room(size)) => service.room(size).await,
            Before::Wait(Wait::Locked(taken)) => {
                let patience = shared.config.busy_reply_threshold();
                loop {
                    if tokio::time::timeout(patience, service.unlocked(taken)).await.is_ok() {
                        return Ok(());
                    }
                    if shared.scripts.is_busy(patience) {
                        return Err(busy(shared));
                    }
                }
            }
            // The command is executed again, and finds out. Turns are taken by `take_turn`.
            Before::Wait(Wait::Loading | Wait::Changed | Wait::Turn(_)) => Ok(()),
            Before::Wait(Wait::CreateDatabase(database)) if !shared.config.create_databases() => {
                Err(Fault::error(format!(
                    "ERR database {database} has no topic, and create-databases is no: create the topic first, compacted"
                )))
            }
            Before::Wait(Wait::Feature(database, feature)) if !shared.config.may_use(feature) => {
                Err(Fault::error(format!(
                    "ERR a {feature} is not written to database {database}: max-features holds it back until all nodes know it"
                )))
            }
            Before::Wait(Wait::Feature(database, feature)) => service.name_feature(database, feature).await,
            Before::Wait(Wait::CreateDatabase(database)) => {
                let creating = service.clone();
                supervise::blocking(&supervise::CREATE_DATABASE, move || creating.create_database(database))
                    .await
                    .map_err(|e| Fault::error(format!("ERR database {database}: {e}")))?
                    .map_err(|e| match e {
                        LogError::Unreachable(_) => Fault::error(format!("NOTWRITTEN {e}")),
                        _ => Fault::error(format!("ERR database {database}: {e}")),
                    })
            }
        }
    }
}

/// The error names what stops that which has been running for the longest time.
fn busy(shared: &Shared) -> Fault {
    match shared.scripts.longest(shared.config.busy_reply_threshold()) {
        Some((Kind::Function { .. }, _)) => BUSY_FUNCTION.into(),
        Some((Kind::Script, _)) | None => BUSY_SCRIPT.into(),
    }
}

/// The step of a command that was not computed.
pub(super) fn refused(fault: Fault) -> Step {
    match fault {
        Fault::Wait(wait) => Step::Before(Before::Wait(wait)),
        fault => Step::Reply(error_reply(fault)),
    }
}

/// The reply of a command that was not computed, and is not going to be.
pub(super) fn error_reply(fault: Fault) -> Reply {
    match fault {
        Fault::Error(text) => Reply::Error(text),
        Fault::Wait(_) => Reply::error("NOTWRITTEN the command could not be computed"),
    }
}
