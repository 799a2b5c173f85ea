//! Deletes expired keys in the background. Reads never show an expired key, so this only frees space. A tombstone is a conditional write: where
//! others write to the log too, it never comes after a new value. The nodes of one topic do not ask each other; each waits a
//! while of its own, and who comes second finds the key deleted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::warn;

use crate::database::transaction::{Keys, View};
use crate::database::write::Outstanding;
use crate::database::{Fault, Service, now_ms};

/// Time between looks at the databases.
const INTERVAL: Duration = Duration::from_millis(100);
/// Keys of one database that are deleted at one look; if there were so many, the next look is at once.
const KEYS: usize = 200;
/// Where others may write: longest time that a key is left expired, milliseconds.
const OTHERS_FIRST_MS: u64 = 2_000;

/// Runs for as long as the server does.
pub async fn sweep(service: Arc<Service>) {
    let owner = Arc::new(Outstanding::default());
    let mut failing = false;
    loop {
        let mut more = false;
        if service.is_serving() && service.settings.active_expire.load(Ordering::Relaxed) {
            let (service, owner) = (service.clone(), owner.clone());
            let swept = tokio::task::spawn_blocking(move || sweep_all(&service, &owner)).await;
            let failed = match swept {
                Ok(Ok(full)) => {
                    more = full;
                    None
                }
                Ok(Err(reason)) => Some(reason),
                Err(panicked) => Some(panicked.to_string()),
            };
            if let (Some(reason), false) = (&failed, failing) {
                warn!(reason, "cannot delete expired keys; trying again");
            }
            failing = failed.is_some();
        }
        // At most one look's writes are under way.
        owner.none().await;
        // The next keys to delete are found when the store has these deletes.
        if !more || service.store_caught_up().await.is_err() {
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// True if there may be more.
fn sweep_all(service: &Arc<Service>, owner: &Arc<Outstanding>) -> Result<bool, String> {
    let mut more = false;
    let patience = if service.log.chains() {
        0
    } else {
        rand::random_range(0..=OTHERS_FIRST_MS)
    };
    for database in 0..service.database_count() {
        // One that does not exist, or that is shown read-only.
        if service.log.identity(database).is_none_or(|topic| topic.read_only) {
            continue;
        }
        let keys = service
            .store
            .expired(database, now_ms().saturating_sub(patience), KEYS)
            .map_err(|e| e.to_string())?;
        let mut deleted = 0;
        for key in &keys {
            deleted += u64::from(delete_if_expired(service, owner, database, key)?);
        }
        service.counters.expired.fetch_add(deleted, Ordering::Relaxed);
        // Keys that were not deleted (their newest state is another) must not make this run without a pause.
        more |= keys.len() == KEYS && deleted > 0;
    }
    Ok(more)
}

fn delete_if_expired(
    service: &Arc<Service>,
    owner: &Arc<Outstanding>,
    database: u16,
    key: &[u8],
) -> Result<bool, String> {
    let computed = service.transact(owner, Keys::Some(&[key]), View::Update, |transaction| {
        let now = transaction.now;
        let entry = transaction.get_even_expired(database, key)?;
        let expired = entry.is_some_and(|entry| entry.meta.expire_at.is_some_and(|at| at <= now));
        if expired {
            transaction.delete(database, key);
        }
        Ok(expired)
    });
    match computed {
        Ok(computed) => Ok(computed.value),
        // Its time will come at a later look.
        Err(Fault::Wait(_)) => Ok(false),
        Err(Fault::Error(text)) => Err(String::from_utf8_lossy(&text).into_owned()),
    }
}
