//! Messages between the nodes of one log (publish and subscribe). They are no data: nothing is kept
//! of them for long, and nobody reads them twice.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;

use super::{Completion, LogError};

/// A message on its way from its publisher to all nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broadcasted {
    pub channel: Bytes,
    pub payload: Bytes,
    /// It is for a channel of the shard.
    pub shard: bool,
    /// What its publisher had written or seen, as the service's tokens say it; empty if the
    /// publisher is another program.
    pub position: String,
}

/// Carries messages to all nodes, those of one channel in one order.
pub trait Broadcast: Send + Sync {
    /// Whether a message can be sent without [`Broadcast::open`]. Cheap.
    fn is_open(&self) -> bool;

    /// Makes sure that messages can be sent. Blocking.
    fn open(&self, timeout: Duration) -> Result<(), LogError>;

    /// Sends a message and returns at once. Messages of one caller keep their order.
    fn send(&self, message: &Broadcasted, completion: Arc<dyn Completion>);

    /// Whether every message that is sent from now on is received here. Cheap.
    fn is_heard(&self) -> bool;

    /// Begins to receive, unless that was done before, and waits until every message that is sent
    /// from then on is received. Blocking.
    fn listen(&self, receiver: &Arc<dyn Receiver>, timeout: Duration) -> Result<(), LogError>;

    fn counters(&self) -> &BroadcastCounters;

    /// Sends and receives no more. Blocking.
    fn close(&self);
}

#[derive(Default)]
pub struct BroadcastCounters {
    pub received: AtomicU64,
    /// Records of the topic that are no messages.
    pub skipped: AtomicU64,
    /// Times that messages may have been lost.
    pub gaps: AtomicU64,
}

/// Takes the messages in, in their order, on one thread.
pub trait Receiver: Send + Sync {
    /// `patience`: how long it may be held back until this node has what its publisher had.
    fn receive(&self, message: Broadcasted, patience: Duration);

    /// Messages may have been lost, for this reason.
    fn gap(&self, cause: &str);
}
