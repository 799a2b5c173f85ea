//! Why writes failed. The replies say it in words, some of them Kafka's own; a counter needs few
//! causes.

/// How a cause is recognised: the first words that the reply contains. They are tested to be words
/// of the sources.
const CAUSES: &[(&str, &str)] = &[
    // Other writers came first, again and again.
    ("other writers", "conflict"),
    ("rested on has changed", "conflict"),
    // What the command waited for did not come in time.
    ("what this command waits for", "waiting"),
    ("the local store is too far behind the log", "store"),
    // Too many writes are under way.
    ("queue is full", "queue"),
    ("too many writes are waiting", "queue"),
    // The log has not been reached since the start.
    ("has not been reached", "unreachable"),
    ("NOTWRITTEN this node ", "failed"),
    ("UNCERTAIN this node ", "failed"),
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
        assert_eq!(cause("UNCERTAIN this node is about to end"), "failed");
        for text in [
            "UNCERTAIN Kafka did not answer",
            "UNCERTAIN a write that this one rested on failed",
            "NOTWRITTEN a quota of Kafka holds this node's requests up",
            "UNCERTAIN another process that uses this node's transactional id ended the transaction",
        ] {
            assert_eq!(cause(text), OF_LOG, "{text}");
        }
        let sources = [
            include_str!("../command/settle.rs"),
            include_str!("../command/execute.rs"),
            include_str!("../database/room.rs"),
            include_str!("../database/write.rs"),
            include_str!("../log/mod.rs"),
            include_str!("../log/embedded/queue.rs"),
            include_str!("../log/kafka/mod.rs"),
            include_str!("../log/kafka/producer.rs"),
        ];
        let lines = sources.iter().flat_map(|source| source.lines());
        let code: String = lines.filter(|line| !line.trim_start().starts_with("//")).collect();
        for (words, cause) in CAUSES {
            // The code of the error is put before the text.
            let codes = ["NOTWRITTEN ", "UNCERTAIN "];
            let said = codes.iter().find_map(|code| words.strip_prefix(code)).unwrap_or(words);
            assert!(code.contains(said), "{cause}: {said}");
        }
    }
}
