//! PUBLISH: from the request to the connections that listen, on this node and on others.
//!
//! A message is sent only after every earlier write of its connection has ended, and inside MULTI
//! only when the log has the transaction. It carries the position of its node, and another node
//! delivers it when it has got that far. So who hears of a write can read it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tracing::warn;

use super::broadcasts::{Counters, Ticket};
use super::hub::Message;
use super::session::Session;
use super::shared::Shared;
use super::step::{Before, Exec, PendingReply, Step};
use super::{Args, Reply, Run};
use crate::database::Wait;
use crate::database::transaction::Posted;
use crate::log::broadcast::{Broadcasted, Receiver};

/// How long a message is held back while this node is behind: long enough for a node that has
/// caught up again.
const CATCHES_UP: Duration = Duration::from_millis(50);

/// Adds the message to the queues of all that listen to it here. Returns how many these are.
pub fn deliver(shared: &Shared, message: &Message<'_>) -> usize {
    let limit = shared.config.output_limits().pubsub;
    let delivered = shared.pubsub.hub.deliver(message, &limit);
    for client in &delivered.above_limit {
        shared.stats.above_output_limit(client.id);
        client.kill();
    }
    if delivered.given_up > 0 {
        Counters::add(&shared.pubsub.counters.patterns_given_up, delivered.given_up);
        shared.stats.patterns_given_up.warn(|suppressed| {
            warn!(
                suppressed,
                "a pattern of PSUBSCRIBE takes too long to match; its connections miss messages"
            );
        });
    }
    delivered.receivers
}

/// Closes connections that have been above the soft limit for too long.
pub fn close_overdue(shared: &Shared) {
    let limit = shared.config.output_limits().pubsub;
    if limit.soft == 0 {
        return;
    }
    for client in shared.clients.list() {
        if client.pushes.is_overdue(client.listener_output(), &limit) {
            shared.stats.above_output_limit(client.id);
            client.kill();
        }
    }
}

/// What became of a message at first.
enum Sent {
    Here(usize),
    /// The topic has been given it.
    Away(Arc<Ticket>),
}

/// Publishes as a request asks.
pub(super) fn begin(session: &Session, shared: &Arc<Shared>, args: Args<'_>, shard: bool) -> Step {
    if session.outstanding.count() > 0 || session.outstanding.is_unsettled() {
        return Step::Before(Before::Wait(Wait::Own));
    }
    match publish(shared, args[1], args[2], shard) {
        Sent::Here(receivers) => Step::Reply(Reply::Int(receivers as i64)),
        Sent::Away(ticket) => Step::Pending(PendingReply::of_message(ticket, session.database)),
    }
}

fn publish(shared: &Shared, channel: &[u8], payload: &[u8], shard: bool) -> Sent {
    let message = Message {
        channel,
        payload,
        shard,
    };
    let Some(topic) = &shared.pubsub.topic else {
        return Sent::Here(deliver(shared, &message));
    };
    let ticket = Ticket::new(shared.pubsub.hub.receivers(&message));
    let message = Broadcasted {
        channel: Bytes::copy_from_slice(channel),
        payload: Bytes::copy_from_slice(payload),
        shard,
        position: shared.service.token(),
    };
    topic.send(&message, ticket.clone());
    Sent::Away(ticket)
}

impl PendingReply {
    /// Whether a message is still to be sent.
    pub(super) fn publishes(&self) -> bool {
        !self.messages.is_empty()
    }

    /// Sends the messages of scripts and of EXEC, in the order in which they were computed. What
    /// MULTI has queued gets its reply. The error says what became of a script's message that may
    /// be lost: never that nothing was written, if something was.
    pub(super) async fn send_messages(&mut self, shared: &Shared) -> Result<(), Reply> {
        let mut away = Vec::new();
        for message in std::mem::take(&mut self.messages) {
            match publish(shared, &message.channel, &message.payload, message.shard) {
                Sent::Here(receivers) => self.published(message.queued, Reply::Int(receivers as i64)),
                Sent::Away(ticket) => away.push((message.queued, ticket)),
            }
        }
        let mut lost = None;
        for (queued, ticket) in away {
            match ticket.reply(shared.service.write_timeout()).await {
                Reply::Error(error) if queued.is_none() => lost = lost.or(Some(error)),
                reply => self.published(queued, reply),
            }
        }
        match (lost, &self.write) {
            (None, _) => Ok(()),
            (Some(error), None) => Err(Reply::Error(error)),
            (Some(error), Some(_)) => Err(Reply::error(
                [
                    b"UNCERTAIN what the script wrote is in the log, but a message may be lost: ",
                    &error[..],
                ]
                .concat(),
            )),
        }
    }

    /// A message that MULTI queued has its reply.
    fn published(&mut self, queued: Option<usize>, reply: Reply) {
        if let (Some(place), Reply::Array(replies)) = (queued, &mut self.reply)
            && let Some(its_own) = replies.get_mut(place)
        {
            *its_own = reply;
        }
    }
}

/// What PUBLISH answers in a script: how many listen on this node.
pub(super) fn receivers(shared: &Shared, message: &Posted) -> usize {
    let Posted {
        shard,
        channel,
        payload,
        queued: _,
    } = message;
    shared.pubsub.hub.receivers(&Message {
        channel,
        payload,
        shard: *shard,
    })
}

impl Exec {
    /// Whether a message is to be sent when the transaction is in the log.
    pub(super) fn publishes(&self) -> bool {
        let mut queued = self.multi.queued.iter();
        queued.any(|queued| matches!(queued.command.run, Run::Publish { .. }))
    }
}

/// Delivers here what the topic brings.
pub struct Receiving {
    shared: Weak<Shared>,
    runtime: Handle,
    /// The message before came too early. While this node is behind, the next one is waited for
    /// less.
    is_behind: AtomicBool,
}

impl Receiving {
    /// Must be called on the runtime.
    pub fn new(shared: &Arc<Shared>) -> Receiving {
        Receiving {
            shared: Arc::downgrade(shared),
            runtime: Handle::current(),
            is_behind: AtomicBool::new(false),
        }
    }
}

impl Receiver for Receiving {
    fn receive(&self, message: Broadcasted, patience: Duration) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        if !message.position.is_empty() {
            let is_behind = self.is_behind.load(Ordering::Relaxed);
            let patience = if is_behind { CATCHES_UP } else { patience };
            let reached = self.runtime.block_on(shared.service.reach(&message.position, patience));
            if reached.is_err() {
                Counters::add(&shared.pubsub.counters.early, 1);
            }
            self.is_behind.store(reached.is_err(), Ordering::Relaxed);
        }
        let message = Message {
            channel: &message.channel,
            payload: &message.payload,
            shard: message.shard,
        };
        deliver(&shared, &message);
    }

    fn gap(&self, cause: &str) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let listeners = shared
            .clients
            .list()
            .into_iter()
            .filter(|client| client.pushes.listens());
        let closed = listeners.map(|client| client.kill()).count();
        Counters::add(&shared.pubsub.counters.closed, closed);
        warn!(
            cause,
            closed, "messages may be lost: closing the connections that listen to channels"
        );
    }
}
