//! What connections need to publish and to listen ([`PubSub`]): the hub of this node, and what
//! carries messages to the other nodes, if anything does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;

use super::event_queue::EventQueue;
use super::hub::Hub;
use super::{Fault, Reply};
use crate::log::broadcast::{Broadcast, Receiver};
use crate::log::{Appended, Completion, LogError, ProduceError};
use crate::supervise;

/// Longer than the log takes to report what became of a message.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct PubSub {
    pub hub: Arc<Hub>,
    pub counters: Counters,
    /// Keyspace events that wait to be delivered.
    pub events: EventQueue,
    /// `None`: messages stay on this node.
    pub topic: Option<Arc<dyn Broadcast>>,
    /// Takes in what the topic brings. Set at the start, if there is a topic.
    pub receiver: OnceLock<Arc<dyn Receiver>>,
}

#[derive(Default)]
pub struct Counters {
    /// Times that a pattern took too long to match, so that its connections did not get a message.
    pub patterns_given_up: AtomicU64,
    /// Messages that were delivered before this node had what their publishers had.
    pub early: AtomicU64,
    /// Connections that were closed because they may have missed messages.
    pub closed: AtomicU64,
}

/// What a command needs of the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Messages can be sent.
    Send,
    /// Messages are received from now on.
    Hear,
}

impl PubSub {
    /// Whether the command would have to wait.
    pub fn lacks(&self, need: Need) -> bool {
        self.topic.as_ref().is_some_and(|topic| match need {
            Need::Send => !topic.is_open(),
            Need::Hear => !topic.is_heard(),
        })
    }

    /// Makes sure of it; the error is the command's reply.
    pub async fn provide(&self, need: Need, patience: Duration) -> Result<(), Fault> {
        let (Some(topic), Some(receiver)) = (self.topic.clone(), self.receiver.get().cloned()) else {
            return Ok(());
        };
        let provided = supervise::blocking(&supervise::PUBSUB_TOPIC, move || match need {
            Need::Send => topic.open(patience),
            Need::Hear => topic.listen(&receiver, patience),
        });
        let provided = provided
            .await
            .unwrap_or_else(|lost| Err(LogError::Failed(lost.to_string())));
        provided.map_err(|error| match need {
            Need::Send => Fault::error(format!("NOTWRITTEN {error}")),
            Need::Hear => Fault::error(format!("ERR cannot listen: {error}")),
        })
    }
}

/// A message that was handed to the topic, and is not acknowledged yet.
pub struct Ticket {
    /// How many listen on this node.
    receivers: usize,
    outcome: OnceLock<Result<(), ProduceError>>,
    done: Notify,
}

impl Ticket {
    pub fn new(receivers: usize) -> Arc<Ticket> {
        Arc::new(Ticket {
            receivers,
            outcome: OnceLock::new(),
            done: Notify::new(),
        })
    }

    /// The reply, once the topic has the message, or certainly or possibly will not have it.
    pub async fn reply(&self, write_timeout: Duration) -> Reply {
        let outcome = async {
            loop {
                let done = self.done.notified();
                if let Some(outcome) = self.outcome.get() {
                    return outcome;
                }
                done.await;
            }
        };
        match tokio::time::timeout(write_timeout + GRACE, outcome).await {
            Ok(Ok(())) => Reply::Int(self.receivers as i64),
            Ok(Err(error)) => Reply::error(error.to_string()),
            Err(_) => Reply::error("UNCERTAIN Kafka did not say what became of the message"),
        }
    }
}

impl Completion for Ticket {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        let outcome = match outcome {
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        // It is completed once.
        let _ = self.outcome.set(outcome);
        self.done.notify_waiters();
    }
}

impl Counters {
    pub fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_is_answered_by_what_became_of_it() {
        let sent = |outcome: Result<(), ProduceError>| {
            let ticket = Ticket::new(3);
            ticket.clone().complete(outcome.map(|()| &[][..]));
            ticket
        };
        let time = Duration::from_secs(1);
        assert_eq!(sent(Ok(())).reply(time).await, Reply::Int(3));
        let refused = sent(Err(ProduceError::NotWritten("no".into())));
        assert_eq!(refused.reply(time).await, Reply::error("NOTWRITTEN no"));
        let lost = sent(Err(ProduceError::Uncertain("why".into())));
        assert_eq!(lost.reply(time).await, Reply::error("UNCERTAIN why"));
    }
}
