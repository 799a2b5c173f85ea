//! Import of an RDB file.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::time::SystemTime;

use super::sample::Sample;
use super::source::Expiry;
use super::target::Target;
use super::{INTERRUPTED, Imported, Problem, how_to_go_on, stopped};
use crate::rdb::{self, File, Found, Limits};
use crate::telemetry::logging::Logging;
use crate::telemetry::progress::Progress;

/// Of one value. Redis has strings of up to 512 MB.
const LIMITS: Limits = Limits {
    string: 1 << 30,
    memory: 8 << 30,
};
/// So many values are sent before it is noted how far the target has come.
const STEP: u64 = 10_000;

pub async fn import(
    path: &str,
    resume: Option<(u64, u64)>,
    target: &mut Target,
    logging: &Logging,
) -> Result<Imported, Problem> {
    let failed = |error: &dyn std::fmt::Display| format!("read {path}: {error}");
    let (input, bytes): (Box<dyn Read>, u64) = match path {
        "-" => (Box::new(io::stdin()), 0),
        _ => {
            let file = fs::File::open(path).map_err(|error| failed(&error))?;
            let bytes = file.metadata().map_err(|error| failed(&error))?.len();
            (Box::new(file), bytes)
        }
    };
    let mut file = File::open(input, LIMITS).map_err(|problem| failed(&problem))?;
    if let Some((database, position)) = resume {
        file.resume(database, position).map_err(|problem| failed(&problem))?;
    }
    let mut reading = Reading {
        file,
        settled: resume.unwrap_or((0, 0)),
        imported: Imported::default(),
        sample: Sample::default(),
        counts: BTreeMap::new(),
    };
    let progress = &mut Progress::new(logging, "importing", "bytes");
    let done = tokio::select! {
        done = reading.all(target, |position| progress.show(position, bytes)) => done,
        () = stopped() => Err(INTERRUPTED.into()),
    };
    done.map_err(|problem| match reading.settled {
        (_, 0) => failed(&problem),
        place => failed(&format!("{problem}{}", how_to_go_on(place, target.failures()))),
    })?;
    let Reading {
        mut imported,
        sample,
        counts,
        ..
    } = reading;
    imported.sample = sample.picked;
    imported.counts = counts.into_iter().collect();
    Ok(imported)
}

struct Reading<R> {
    file: File<R>,
    /// A database and a place in the file: what comes before was written.
    settled: (u64, u64),
    imported: Imported,
    sample: Sample,
    counts: BTreeMap<u64, u64>,
}

impl<R: Read> Reading<R> {
    async fn all(&mut self, target: &mut Target, mut show: impl FnMut(u64)) -> Result<(), Problem> {
        while let Some(found) = self.file.next_found().map_err(|problem| self.told(&problem))? {
            self.take(found, target).await?;
            show(self.file.position());
            if self.imported.keys.is_multiple_of(STEP) {
                target.settle().await?;
                self.settled = (self.file.database(), self.file.position());
            }
        }
        target.settle().await
    }

    fn told(&self, problem: &rdb::Problem) -> Problem {
        let (database, position) = (self.file.database(), self.file.position());
        format!("{problem} (database {database}, about byte {position})")
    }

    async fn take(&mut self, found: Found, target: &mut Target) -> Result<(), Problem> {
        match found {
            Found::Key {
                expire_at: Some(at), ..
            } if at <= now() => self.imported.left_out += 1,
            Found::Key { key, object, expire_at } => {
                let (database, payload) = (self.file.database(), rdb::dump(&object));
                let expiry = expire_at.map_or(Expiry::Never, Expiry::At);
                target.restore(database, &key, expiry, &payload).await?;
                self.imported.keys += 1;
                *self.counts.entry(database).or_default() += 1;
                // What expires may have gone when values are compared.
                if expire_at.is_none() {
                    self.sample.show(database, &key, &payload);
                }
            }
            Found::Library(text) => {
                target
                    .idle()
                    .await?
                    .ask(&[b"FUNCTION", b"LOAD", b"REPLACE", &text])
                    .await?;
                self.imported.libraries += 1;
            }
            Found::OfModule(_) => self.imported.of_modules += 1,
            Found::Empty => self.imported.left_out += 1,
        }
        Ok(())
    }
}

/// Milliseconds since the epoch.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
