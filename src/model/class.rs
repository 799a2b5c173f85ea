//! The classes of keyspace events, as bits, and their letters in `notify-keyspace-events`.

pub const GENERIC: u32 = 1 << 0;
pub const STRING: u32 = 1 << 1;
pub const LIST: u32 = 1 << 2;
pub const SET: u32 = 1 << 3;
pub const HASH: u32 = 1 << 4;
pub const SORTED_SET: u32 = 1 << 5;
pub const EXPIRED: u32 = 1 << 6;
pub const EVICTED: u32 = 1 << 7;
pub const STREAM: u32 = 1 << 8;
pub const MODULE: u32 = 1 << 9;
pub const MISSED: u32 = 1 << 10;
pub const NEW: u32 = 1 << 11;
/// Not classes: which channels get the events.
pub const TO_KEY: u32 = 1 << 12;
pub const TO_EVENT: u32 = 1 << 13;

/// The letters of `notify-keyspace-events`.
pub const LETTERS: &[(char, u32)] = &[
    ('g', GENERIC),
    ('$', STRING),
    ('l', LIST),
    ('s', SET),
    ('h', HASH),
    ('z', SORTED_SET),
    ('x', EXPIRED),
    ('e', EVICTED),
    ('t', STREAM),
    ('d', MODULE),
    ('m', MISSED),
    ('n', NEW),
    ('K', TO_KEY),
    ('E', TO_EVENT),
    (
        'A',
        GENERIC | STRING | LIST | SET | HASH | SORTED_SET | EXPIRED | EVICTED | STREAM | MODULE,
    ),
];
