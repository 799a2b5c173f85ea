//! What keeps the sources readable: files are not too long, and what was rewritten in plain English
//! stays so. How long a function may be is clippy's (`too_many_lines` in clippy.toml).

use std::fs;

use crate::support::tree::{files, root};

/// Lines of a file.
const MOST_LINES: usize = 800;
/// Longer files that are still to be split. The list only shrinks.
const STILL_LONG: &[&str] = &[
    "src/database/mod.rs",
    "src/database/tests.rs",
    "src/database/write_behind.rs",
    "tests/it/kafka_log.rs",
    "tests/it/transactions.rs",
];

/// Columns of a line of prose. What cannot wrap may be longer: rows of tables, links, a long name.
const MOST_COLUMNS: usize = 100;
/// Files that are in plain English. The list only grows.
const PLAIN: &[&str] = &[
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "docs/README.md",
    "docs/architecture.md",
    "docs/glossary.md",
    "docs/guarantees.md",
    "docs/kafka-rights.md",
    "docs/topic-format.md",
    "docs/write-errors.md",
    "docs/decisions/allocator.md",
    "docs/decisions/dependencies.md",
    "docs/decisions/eviction.md",
    "docs/decisions/handlers.md",
    "docs/decisions/mutants.md",
    "docs/decisions/request-decoder.md",
    "docs/decisions/scripts.md",
    "docs/decisions/static-build.md",
    "docs/decisions/store-fjall.md",
    "docs/decisions/store-sled.md",
    "docs/decisions/streams.md",
    "docs/decisions/transaction-lane.md",
    "docs/decisions/workers.md",
    "src/command/admission.rs",
    "src/command/args.rs",
    "src/command/bits.rs",
    "src/command/bits/field.rs",
    "src/command/blocked.rs",
    "src/command/blocking.rs",
    "src/command/broadcasts.rs",
    "src/command/categories.rs",
    "src/command/checks.rs",
    "src/command/clients.rs",
    "src/command/collections.rs",
    "src/command/compat_doc.rs",
    "src/command/compute.rs",
    "src/command/connection.rs",
    "src/command/connection/client.rs",
    "src/command/connection/listing.rs",
    "src/command/connection/tracking.rs",
    "src/command/consistency.rs",
    "src/command/data.rs",
    "src/command/events.rs",
    "src/command/exec.rs",
    "src/command/execute.rs",
    "src/command/execute_tests.rs",
    "src/command/geo.rs",
    "src/command/geo/cells.rs",
    "src/command/geo/search.rs",
    "src/command/hashes.rs",
    "src/command/changing.rs",
    "src/command/hashes/expiry.rs",
    "src/command/float.rs",
    "src/command/highwater.rs",
    "src/command/hub.rs",
    "src/command/hyperloglog.rs",
    "src/command/hyperloglog/sketch.rs",
    "src/command/info.rs",
    "src/command/info/log.rs",
    "src/command/introspection.rs",
    "src/command/introspection/docs.rs",
    "src/command/introspection/facts.rs",
    "src/command/invalidations.rs",
    "src/command/key_specs.rs",
    "src/command/keys.rs",
    "src/command/keys/dump.rs",
    "src/command/keys/expiry.rs",
    "src/command/keys/moving.rs",
    "src/command/keys/object.rs",
    "src/command/keys/scan.rs",
    "src/command/lists.rs",
    "src/command/lists/blocking.rs",
    "src/command/lists/ends.rs",
    "src/command/functions.rs",
    "src/command/scripts.rs",
    "src/command/scripts/host.rs",
    "src/command/mod.rs",
    "src/command/monitor.rs",
    "src/command/monitors.rs",
    "src/command/not_implemented.rs",
    "src/command/notify.rs",
    "src/command/pattern.rs",
    "src/command/publish.rs",
    "src/command/pubsub.rs",
    "src/command/pushes.rs",
    "src/command/server.rs",
    "src/command/server/observe.rs",
    "src/command/server/settings.rs",
    "src/command/server/users.rs",
    "src/command/session.rs",
    "src/command/sets.rs",
    "src/command/settle.rs",
    "src/command/shared.rs",
    "src/command/sort.rs",
    "src/command/streams.rs",
    "src/command/streams/claims.rs",
    "src/command/streams/entries.rs",
    "src/command/streams/groups.rs",
    "src/command/streams/ids.rs",
    "src/command/streams/info.rs",
    "src/command/streams/reading.rs",
    "src/command/streams/view.rs",
    "src/database/consumers.rs",
    "src/model/stream.rs",
    "src/command/sorted_sets.rs",
    "src/command/tracking.rs",
    "src/command/tracking_modes.rs",
    "src/database/notices.rs",
    "src/model/class.rs",
    "src/run/changes.rs",
    "tests/it/tracking.rs",
    "src/command/sorted_sets/blocking.rs",
    "src/command/sorted_sets/bounds.rs",
    "src/command/sorted_sets/members.rs",
    "src/command/sorted_sets/operations.rs",
    "src/command/sorted_sets/ranges.rs",
    "src/command/sorted.rs",
    "src/command/step.rs",
    "src/command/strings.rs",
    "src/command/strings/lcs.rs",
    "src/command/strings/long_double.rs",
    "src/command/strings/options.rs",
    "src/command/table.rs",
    "src/command/tally.rs",
    "src/command/transactions.rs",
    "src/command/undeclared.rs",
    "src/command/wait.rs",
    "src/config/checks.rs",
    "src/config/cli.rs",
    "src/config/getters.rs",
    "src/config/kind.rs",
    "src/config/machine.rs",
    "src/config/mod.rs",
    "src/config/sources.rs",
    "src/config/table.rs",
    "src/config/tests.rs",
    "src/config/values.rs",
    "src/config/without_effect.rs",
    "src/copy/index.rs",
    "src/copy/mod.rs",
    "src/copy/writer.rs",
    "src/database/applier.rs",
    "src/database/as_of.rs",
    "src/database/consistency.rs",
    "src/database/contention.rs",
    "src/database/copies.rs",
    "src/database/digest.rs",
    "src/database/transaction/elements.rs",
    "src/database/transaction/known_elements.rs",
    "src/database/source.rs",
    "src/database/orphans.rs",
    "src/database/elements.rs",
    "src/database/elements/filling.rs",
    "src/database/elements/indexed.rs",
    "src/database/expired.rs",
    "src/database/fault.rs",
    "src/database/features.rs",
    "src/database/flushed.rs",
    "src/database/functions.rs",
    "src/database/hot/mod.rs",
    "src/database/waiters.rs",
    "src/database/hot/slot.rs",
    "src/database/hot/table.rs",
    "src/database/hot/tests.rs",
    "src/database/mod.rs",
    "src/database/own.rs",
    "src/database/preload.rs",
    "src/database/stripes.rs",
    "src/database/tests.rs",
    "src/database/tests/conditions.rs",
    "src/database/tests/consistency.rs",
    "src/database/tests/events.rs",
    "src/database/tests/faults.rs",
    "src/database/tests/long.rs",
    "src/database/together.rs",
    "src/database/transaction/compute.rs",
    "src/database/transaction/mod.rs",
    "src/database/transaction/moment.rs",
    "src/database/transaction/whole.rs",
    "src/database/visible.rs",
    "src/database/waiting.rs",
    "src/database/watch.rs",
    "src/database/write.rs",
    "src/database/write_behind.rs",
    "src/datadir.rs",
    "src/files.rs",
    "src/grpc/codec.rs",
    "src/grpc/connection.rs",
    "src/grpc/memory.rs",
    "src/grpc/mod.rs",
    "src/grpc/status.rs",
    "src/lib.rs",
    "src/log/broadcast.rs",
    "src/log/embedded/compaction/mod.rs",
    "src/log/embedded/compaction/rewrite.rs",
    "src/log/embedded/compaction/rule.rs",
    "src/log/embedded/compaction/schedule.rs",
    "src/log/embedded/disk.rs",
    "src/log/embedded/fault_disk.rs",
    "src/log/embedded/follower.rs",
    "src/log/embedded/frame.rs",
    "src/log/embedded/lock.rs",
    "src/log/embedded/meta.rs",
    "src/log/embedded/mod.rs",
    "src/log/embedded/queue.rs",
    "src/log/embedded/recovery.rs",
    "src/log/embedded/segment.rs",
    "src/log/embedded/tests.rs",
    "src/log/embedded/tests/compacted.rs",
    "src/log/embedded/tests/damage.rs",
    "src/log/embedded/tests/failing_disk.rs",
    "src/log/embedded/tests/power.rs",
    "src/log/embedded/tests/witnesses.rs",
    "src/log/embedded/writer.rs",
    "src/log/kafka/admin.rs",
    "src/log/kafka/broadcast/mod.rs",
    "src/log/kafka/broadcast/reader.rs",
    "src/log/kafka/codec.rs",
    "src/log/kafka/config.rs",
    "src/log/kafka/context.rs",
    "src/log/kafka/ffi/mod.rs",
    "src/log/kafka/ffi/producer.rs",
    "src/log/kafka/follower.rs",
    "src/log/kafka/gate.rs",
    "src/log/kafka/mod.rs",
    "src/log/kafka/open_transactions.rs",
    "src/log/kafka/partitioner.rs",
    "src/log/kafka/polled.rs",
    "src/log/kafka/producer.rs",
    "src/log/kafka/topics/create.rs",
    "src/log/kafka/topics/mod.rs",
    "src/log/kafka/topics/offsets.rs",
    "src/log/kafka/topics/refresh.rs",
    "src/log/kafka/transactions/client.rs",
    "src/log/kafka/transactions/mod.rs",
    "src/log/kafka/transactions/tail.rs",
    "src/log/mod.rs",
    "src/log/record.rs",
    "src/main.rs",
    "src/model/features.rs",
    "src/model/functions.rs",
    "src/model/mod.rs",
    "src/model/tree.rs",
    "src/model/split.rs",
    "src/model/msgpack.rs",
    "src/model/packed/hash.rs",
    "src/model/packed/list.rs",
    "src/model/packed/mod.rs",
    "src/model/packed/set.rs",
    "src/model/packed/sorted_set.rs",
    "src/model/packed/tests.rs",
    "src/probe.rs",
    "src/resp/decode.rs",
    "src/resp/decode_tests.rs",
    "src/resp/double.rs",
    "src/resp/inline.rs",
    "src/resp/mod.rs",
    "src/resp/reply.rs",
    "src/resp/reply_tests.rs",
    "src/room.rs",
    "src/run/listen.rs",
    "src/run/mod.rs",
    "src/run/open.rs",
    "src/run/signals.rs",
    "src/server/connection.rs",
    "src/server/mod.rs",
    "src/server/wire.rs",
    "src/store/checkpoint.rs",
    "src/store/engine.rs",
    "src/store/entries/meta.rs",
    "src/store/entries/mod.rs",
    "src/store/entries/open.rs",
    "src/store/entries/spaces.rs",
    "src/store/entries/tests.rs",
    "src/store/entries/walk.rs",
    "src/store/entries/writer.rs",
    "src/store/entry.rs",
    "src/store/files.rs",
    "src/store/fjall_engine/files.rs",
    "src/store/fjall_engine/found.rs",
    "src/store/fjall_engine/long.rs",
    "src/store/fjall_engine/mod.rs",
    "src/store/mod.rs",
    "src/store/renewing.rs",
    "src/store/sled_engine/closer.rs",
    "src/store/sled_engine/mod.rs",
    "src/store/sled_engine/open.rs",
    "src/store/sled_engine/position.rs",
    "src/store/sled_engine/verify.rs",
    "src/store/tests.rs",
    "src/store/tests/damage.rs",
    "src/store/tests/elements.rs",
    "src/store/tests/engine.rs",
    "src/store/tests/flushes.rs",
    "src/store/tests/model.rs",
    "src/store/tests/on_fjall.rs",
    "src/store/tests/on_sled.rs",
    "src/striped.rs",
    "src/supervise.rs",
    "src/sweep.rs",
    "src/telemetry/histogram.rs",
    "src/telemetry/latency.rs",
    "src/telemetry/logging.rs",
    "src/telemetry/mod.rs",
    "src/telemetry/process.rs",
    "src/telemetry/progress.rs",
    "src/telemetry/slowlog.rs",
    "src/telemetry/sparing.rs",
    "tests/it/architecture.rs",
    "tests/it/blocking.rs",
    "tests/it/examples.rs",
    "tests/it/frameworks.rs",
    "tests/it/frameworks/python.rs",
    "tests/it/redis_py.rs",
    "tests/it/pubsub.rs",
    "tests/it/functions.rs",
    "tests/it/sort.rs",
    "tests/it/side_by_side/lives.rs",
    "tests/it/split.rs",
    "tests/it/split_compaction.rs",
    "tests/it/split_sorted_sets.rs",
    "tests/it/field_expiry.rs",
    "tests/it/tidy.rs",
];
/// Written another way in plain English: see CONTRIBUTING.md.
const NOT_PLAIN: &[&str] = &[
    "made anew",
    "built anew",
    "from behind it",
    "is told of",
    "are told of",
    "is about to be told",
    "what it lacks",
    "whoever",
    "cannot serve anybody",
];

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

#[test]
fn files_are_not_too_long() {
    let mut wrong = Vec::new();
    let files = files(&["src", "tests/it", "benches", "bench/src"], ".rs");
    assert!(files.len() > 100, "the sources were not found");
    for path in files {
        let path = path.strip_prefix(root()).expect("below the root").display().to_string();
        let lines = read(&path).lines().count();
        match (lines > MOST_LINES, STILL_LONG.contains(&path.as_str())) {
            (true, false) => wrong.push(format!("{path} has {lines} lines: split it by its subjects")),
            (false, true) => wrong.push(format!("{path} is short now: take it off the list")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether the line is too long, and could be shorter.
fn is_wide(line: &str, is_code: bool) -> bool {
    let text = line.trim_start().trim_start_matches(['/', '!']).trim();
    let is_prose = !is_code || line.trim_start().starts_with("//");
    let cannot_wrap = text.starts_with('|') || text.contains("https://") || !text.contains(' ');
    line.chars().count() > MOST_COLUMNS && is_prose && !cannot_wrap
}

/// Whether these words are in the line, and not only in a name such as `whoever_watches`.
fn says(line: &str, words: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(words).any(|(at, _)| {
        let (before, after) = (line[..at].chars().next_back(), line[at + words.len()..].chars().next());
        !before.is_some_and(is_name) && !after.is_some_and(is_name)
    })
}

#[test]
fn wide_lines_and_words_are_told() {
    let wide = "word ".repeat(25);
    assert!(is_wide(&wide, false) && is_wide(&format!("    /// {wide}"), true));
    assert!(!is_wide(&wide, true) && !is_wide(&format!("| {wide}"), false) && !is_wide("short", false));
    assert!(says("to whoever reads", "whoever") && !says("`whoever_watches_is_told`", "whoever"));
}

#[test]
fn plain_english_stays_plain() {
    let mut wrong = Vec::new();
    for path in PLAIN {
        let is_code = path.ends_with(".rs");
        let is_itself = path.ends_with("tidy.rs");
        for (number, line) in (1..).zip(read(path).lines()) {
            if is_wide(line, is_code) {
                wrong.push(format!("{path}:{number}: more than {MOST_COLUMNS} columns"));
            }
            let lower = line.to_lowercase();
            for words in NOT_PLAIN.iter().filter(|words| !is_itself && says(&lower, words)) {
                wrong.push(format!("{path}:{number}: {words:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
