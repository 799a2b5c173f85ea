//! What is compared in the end: some values, picked at random among all.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::Problem;
use super::target::Target;
use crate::model::Elements;
use crate::rdb::{self, Limits, Object};

/// The most values that are compared.
pub const SIZE: usize = 200;
/// Longer values are not compared.
pub const MOST_BYTES: usize = 64 << 10;

pub struct Sampled {
    pub database: u64,
    pub key: Bytes,
    pub payload: Bytes,
}

/// Picks so many of all that it is shown, each as likely as any other.
#[derive(Default)]
pub struct Sample {
    seen: usize,
    pub picked: Vec<Sampled>,
}

impl Sample {
    pub fn show(&mut self, database: u64, key: &Bytes, payload: &Bytes) {
        if payload.len() > MOST_BYTES {
            return;
        }
        self.seen += 1;
        let sampled = || Sampled {
            database,
            key: key.clone(),
            payload: payload.clone(),
        };
        if self.picked.len() < SIZE {
            self.picked.push(sampled());
        } else {
            let place = rand::random_range(0..self.seen);
            if let Some(old) = self.picked.get_mut(place) {
                *old = sampled();
            }
        }
    }
}

/// Compares the values with those of the target. Returns how many were compared.
pub async fn compare(target: &mut Target, sample: Vec<Sampled>) -> Result<usize, Problem> {
    let compared = sample.len();
    let mut others = Vec::new();
    for Sampled { database, key, payload } in sample {
        let copied = target.dump(database, &key).await?;
        let wanted = read(&payload);
        // What has expired since is in neither.
        let copied = copied.as_ref().map_or(Ok(None), |copied| read(copied));
        if !matches!((&wanted, &copied), (Ok(wanted), Ok(copied)) if wanted == copied) {
            others.push(String::from_utf8_lossy(&key).into_owned());
        }
    }
    match &others[..] {
        [] => Ok(compared),
        [first, ..] => Err(format!(
            "take the import for a good one: {} of {compared} compared keys hold something else at the target, {first:?} for one; if the source \
             was written to, or keys have expired meanwhile, import again",
            others.len()
        )),
    }
}

/// A value, brought into a form that is the same on all servers. `None` if nothing is left of it.
fn read(payload: &[u8]) -> Result<Option<Object>, Problem> {
    const LIMITS: Limits = Limits {
        string: 1 << 30,
        memory: 1 << 30,
    };
    let verified = rdb::verified(payload).ok_or("read a dumped value: its checksum is wrong")?;
    let object = rdb::read(verified, LIMITS).map_err(|problem| format!("read a dumped value: {problem}"))?;
    Ok(match object {
        Object::Hash(mut fields) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            fields.forget_expired(now.unwrap_or(Duration::ZERO).as_millis() as u64);
            (!fields.0.is_empty()).then_some(Object::Hash(fields))
        }
        Object::Stream(mut stream) => {
            // Not every server keeps consumers that have nothing to confirm, nor the same times.
            stream.groups.iter_mut().for_each(|group| group.consumers.clear());
            stream.groups.sort_by(|one, other| one.name.cmp(&other.name));
            Some(Object::Stream(stream))
        }
        other => Some(other),
    })
}
