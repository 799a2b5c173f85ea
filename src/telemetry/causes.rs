//! Why writes failed. The replies say it in words, some of them Kafka's own; a counter needs few
//! causes.

/// How a cause is recognised: the first words that the reply contains. They are tested to be words
/// of the sources.
const CAUSES: &[(&str, &str)] = &[
    // Other writers came first, again and again.
    ("other writers", "conflict"),
    ("rested on", "conflict"),
    // What the command waited for did not come in time.
    ("what this command waits for", "waiting"),
    ("the local store is too far behind the log", "store"),
    // Too many writes are under way.
    ("queue is full", "queue"),
    ("too many writes are waiting", "queue"),
    // The log has not been reached since the start.
    ("has not been reached", "unreachable"),
    ("this node", "failed"),
];
/// Every other cause is the log's: it did not take the write, or did not say so in time.
const OF_LOG: &str = "log";

/// The cause in the reply of a write that failed: NOTWRITTEN or UNCERTAIN, and a text.
pub fn cause(reply: &str) -> &'static str {
    let known = CAUSES.iter().find(|(words, _)| reply.contains(words));
    known.map_or(OF_LOG, |(_, cause)| cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_recognised_by_words_of_the_sources() {
        let conflict = "NOTWRITTEN gave up after the write timeout: other writers kept changing these keys";
        assert_eq!(cause(conflict), "conflict");
        assert_eq!(cause("UNCERTAIN Kafka did not answer"), OF_LOG);
        let sources = [
            include_str!("../command/settle.rs"),
            include_str!("../command/execute.rs"),
            include_str!("../database/room.rs"),
            include_str!("../database/write.rs"),
            include_str!("../log/embedded/queue.rs"),
            include_str!("../log/kafka/mod.rs"),
            include_str!("../log/kafka/producer.rs"),
        ];
        for (words, _) in CAUSES {
            assert!(sources.iter().any(|source| source.contains(words)), "{words}");
        }
    }
}
