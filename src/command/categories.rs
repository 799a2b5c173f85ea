//! ACL categories: which there are, and those of a command.
//! <https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/>

use super::{Command, flag};

/// ACL categories in Redis's order.
pub const CATEGORIES: &[&str] = &[
    "keyspace",
    "read",
    "write",
    "set",
    "sortedset",
    "list",
    "hash",
    "string",
    "bitmap",
    "hyperloglog",
    "geo",
    "stream",
    "pubsub",
    "admin",
    "fast",
    "slow",
    "blocking",
    "dangerous",
    "connection",
    "transaction",
    "scripting",
];

/// ACL categories of a command: those of its row, and those that its flags imply.
pub fn categories(command: &Command) -> Vec<&'static str> {
    let implied = |category: &str| match category {
        "read" => command.has(flag::READONLY),
        "write" => command.has(flag::WRITE),
        "admin" => command.has(flag::ADMIN),
        "dangerous" => command.has(flag::ADMIN),
        "pubsub" => command.has(flag::PUBSUB),
        "fast" => command.has(flag::FAST),
        "slow" => !command.has(flag::FAST),
        "blocking" => command.has(flag::BLOCKING),
        _ => false,
    };
    let is_one = |category: &&str| implied(category) || command.categories.contains(category);
    CATEGORIES.iter().copied().filter(is_one).collect()
}
