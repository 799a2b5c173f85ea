//! PUBLISH: from the request to the connections that listen.
//!
//! A message is sent only after every earlier write of its connection has ended, and inside MULTI
//! only when the log has the transaction. So who hears of a write can read it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::warn;

use super::hub::Message;
use super::session::{Queued, Session};
use super::shared::Shared;
use super::step::{Before, Exec, Step};
use super::{Args, Reply, Run};
use crate::database::Wait;

/// Adds the message to the queues of all that listen to it here. Returns how many these are.
pub fn deliver(shared: &Shared, message: &Message<'_>) -> usize {
    let limit = shared.config.output_limits().pubsub;
    let delivered = shared.pubsub.hub.deliver(message, &limit);
    for client in &delivered.above_limit {
        shared.stats.above_output_limit(client.id);
        client.kill();
    }
    if delivered.given_up > 0 {
        let pubsub = &shared.pubsub;
        let count = delivered.given_up as u64;
        pubsub.counters.patterns_given_up.fetch_add(count, Ordering::Relaxed);
        pubsub.patterns_told.warn(|suppressed| {
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
        let output = client.output_bytes.load(Ordering::Relaxed);
        if client.pushes.is_overdue(output, &limit) {
            shared.stats.above_output_limit(client.id);
            client.kill();
        }
    }
}

/// Publishes as a request asks.
pub(super) fn begin(session: &Session, shared: &Arc<Shared>, args: Args<'_>, shard: bool) -> Step {
    if session.outstanding.count() > 0 {
        return Step::Before(Before::Wait(Wait::Own));
    }
    Step::Reply(publish(shared, args[1], args[2], shard))
}

fn publish(shared: &Shared, channel: &[u8], payload: &[u8], shard: bool) -> Reply {
    let message = Message {
        channel,
        payload,
        shard,
    };
    Reply::Int(deliver(shared, &message) as i64)
}

impl Exec {
    /// Whether a message is to be sent when the transaction is in the log.
    pub(super) fn publishes(&self) -> bool {
        let mut queued = self.multi.queued.iter();
        queued.any(|queued| matches!(queued.command.run, Run::Publish { .. }))
    }

    /// Sends the messages of a transaction that is in the log, and puts their replies in their
    /// places.
    pub(super) fn publish(&self, shared: &Arc<Shared>, replies: &mut [Reply]) {
        for (Queued { command, args }, reply) in self.multi.queued.iter().zip(replies) {
            if let (Run::Publish { shard }, [_, channel, payload]) = (command.run, &args[..]) {
                *reply = publish(shared, channel, payload, shard);
            }
        }
    }
}
