//! The disaster: the log of a snapshot is gone. What the snapshot holds is produced to a new one.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::Problem;
use super::archive::Manifest;
use crate::config::Config;
use crate::config::copy::CopyOptions;
use crate::copy;
use crate::copy::writer::Writer;
use crate::database::copies::databases_with_copies;
use crate::database::now_ms;
use crate::datadir::{Owner, Unpacking};
use crate::log::Log;
use crate::log::embedded::EmbeddedLog;
use crate::model::{Control, ElementName, Payload, Value, Version, function_key};
use crate::open::embedded_options;
use crate::store::{self, Checkpoint, EngineKind, Options, Store};
use crate::telemetry::logging::Logging;
use crate::telemetry::progress::Progress;

/// Keys and elements that are read at once.
const PART: usize = 1000;

/// Writes what the snapshot of a topic holds to a new embedded log, which is ready to be taken
/// over. Returns the number of records, and the owner of the log.
pub(super) fn to_embedded(
    config: &Config,
    manifest: &Manifest,
    unpacked: &Unpacking,
    logging: &Logging,
) -> Result<(u64, Owner), Problem> {
    let log = EmbeddedLog::open(&unpacked.log(), embedded_options(config)).map_err(|e| format!("create a log: {e}"))?;
    let records = rewrite(config, manifest, unpacked, &*log, logging)?;
    let id = log.identity(0).map(|topic| topic.id).unwrap_or_default();
    log.close(super::ASK);
    let owner = Owner::Embedded {
        id: id.split('.').next().unwrap_or_default().to_owned(),
    };
    // It is not the store of the new log.
    let store = unpacked.store();
    std::fs::remove_dir_all(&store).map_err(|e| format!("remove {}: {e}", store.display()))?;
    Ok((records, owner))
}

/// Writes what the snapshot of a topic holds to another topic. Returns the number of records.
pub(super) fn to_topic(
    config: &Config,
    to: &CopyOptions,
    manifest: &Manifest,
    unpacked: &Unpacking,
    logging: &Logging,
) -> Result<u64, Problem> {
    let target = copy::open_target(config, to, &[])?;
    let records = rewrite(config, manifest, unpacked, &*target, logging).map_err(|problem| {
        format!("{problem}; what was written by then is in topic {}: delete it first, or do the same again with --into-existing", to.to_topic)
    })?;
    target.close(super::ASK);
    Ok(records)
}

fn rewrite(
    config: &Config,
    manifest: &Manifest,
    unpacked: &Unpacking,
    target: &dyn Log,
    logging: &Logging,
) -> Result<u64, Problem> {
    if manifest.databases > config.databases() {
        return Err(format!("write {0} databases: say --databases {0}", manifest.databases));
    }
    let (store, checkpoint) = open_store(config, manifest, &unpacked.store())?;
    let failed = |e: store::StoreError| format!("read the snapshot: {e}");
    let mut writer = Writer::new(target);
    let libraries = checkpoint.databases.get(&0).map(|of_database| &of_database.functions);
    for (name, (_, text)) in libraries.into_iter().flatten() {
        let library = Payload::Control(Control::Function(Some(text.clone())));
        writer.take(0, function_key(name), library)?;
    }
    let counts = (0..manifest.databases).map(|database| store.count(database));
    let total = counts.sum::<Result<u64, _>>().map_err(failed)?;
    let (mut done, mut progress) = (0, Progress::new(logging, "restoring", "keys"));
    for database in 0..manifest.databases {
        let mut from = Some(0);
        while let Some(hash) = from {
            let mut keys = Vec::new();
            let visit = &mut |scanned: store::Scanned<'_>| keys.push(Bytes::copy_from_slice(scanned.key));
            from = store.scan(database, hash, PART, visit).map_err(failed)?;
            for key in keys {
                key_of(&*store, database, key, &mut writer)?;
                done += 1;
                progress.show(done, total);
            }
        }
    }
    Ok(writer.finish()?.keys)
}

/// Writes a key, and its elements if it has any.
fn key_of(store: &dyn Store, database: u16, key: Bytes, writer: &mut Writer<'_>) -> Result<(), Problem> {
    let failed = |e: store::StoreError| format!("read the snapshot: {e}");
    let Some(entry) = store.get(database, &key).map_err(failed)? else {
        return Ok(());
    };
    if let Value::Unreadable(reason) = &entry.value {
        tracing::warn!(database, %reason, "a key cannot be read and is not restored: {}", key.escape_ascii());
        return Ok(());
    }
    // An expired one is left out whole.
    let is_live = entry.is_live(now_ms());
    if let Value::Split(split) = &entry.value
        && is_live
    {
        elements(store, database, (&key, split.version()), writer)?;
    }
    writer.take(database, key, Payload::Key(Some(entry.into_state())))
}

fn elements(store: &dyn Store, database: u16, of: (&[u8], Version), writer: &mut Writer<'_>) -> Result<(), Problem> {
    let mut from = Some(Bytes::new());
    while let Some(sub_key) = from {
        let mut found = Vec::new();
        let visit = &mut |sub_key: &[u8], entry| {
            let (key, version) = of;
            found.push((ElementName { key, version, sub_key }.record_key(), entry));
        };
        from = store
            .elements(database, of, &sub_key, PART, visit)
            .map_err(|e| format!("read the snapshot: {e}"))?;
        for (record_key, entry) in found {
            let entry: crate::model::Entry = entry;
            writer.take(database, record_key, Payload::Key(Some(entry.into_state())))?;
        }
    }
    Ok(())
}

/// The store that is in the snapshot.
fn open_store(config: &Config, manifest: &Manifest, path: &Path) -> Result<(Arc<dyn Store>, Checkpoint), Problem> {
    let engine = match manifest.engine.as_deref() {
        Some("sled") => EngineKind::Sled,
        Some("fjall") => EngineKind::Fjall,
        Some(other) => {
            return Err(format!(
                "read the snapshot: its store was kept by {other}, which this version does not have"
            ));
        }
        None => {
            return Err(
                "write it to another log: it is the snapshot of an embedded log; restore it into a directory with --dir alone, \
                 then move it with highwater copy --dir"
                    .into(),
            );
        }
    };
    let options = Options {
        cache_bytes: config.store_cache(),
        databases: databases_with_copies(manifest.databases),
        keeps_hidden: true,
    };
    let opened = store::open(engine, path, &options).map_err(|e| format!("open the snapshot: {e}"))?;
    match opened.rebuilt {
        Some(reason) => Err(format!(
            "read the snapshot: {reason}; highwater {} made it: restore it with that version",
            manifest.version
        )),
        None => Ok((opened.store, opened.checkpoint)),
    }
}
