//! Removes what has expired for good: keys, and fields of hashes ([`crate::sweep`] finds them).

use std::sync::Arc;

use bytes::Bytes;

use super::notices::Notice;
use super::transaction::{Keys, View};
use super::write::Write;
use super::{Fault, Service};
use crate::model::{ElementName, State, Value, class};

/// What has begun to be removed of a key.
pub struct Removal {
    /// The write under way; `None` if nothing has expired.
    pub write: Option<Arc<Write>>,
    /// The key goes, and not only fields of its hash.
    pub is_whole: bool,
}

impl Service {
    /// Removes a key that has expired, or the fields of its hash that have; the key goes with its
    /// last field. Where others write too, it is done only if no newer record of the key came.
    pub fn remove_expired(self: &Arc<Self>, database: u16, key: &[u8]) -> Result<Removal, Fault> {
        if let Some(name) = ElementName::parse(key) {
            return self.remove_expired_element(database, name);
        }
        // It has an owner of its own: it rests on no other write.
        let computed = self.transact(&Arc::default(), Keys::Some(&[key]), View::Update, |transaction| {
            let now = transaction.now;
            let Some(entry) = transaction.get_even_expired(database, key)? else {
                return Ok(false);
            };
            if !entry.is_live(now) {
                transaction.delete(database, key);
                transaction.notices.extend(self.notice_of_expiry(database, key));
                return Ok(true);
            }
            if let Value::Packed(packed) = &entry.value {
                transaction.works(packed.bytes().len())?;
                let left = packed.without_expired(now).map_err(|why| entry.unreadable(why))?;
                if let Some(left) = left {
                    let value = Value::Packed(left);
                    let expire_at = entry.meta.expire_at;
                    transaction.put(database, key, State { value, expire_at });
                }
            }
            Ok(false)
        })?;
        Ok(Removal {
            write: computed.write,
            is_whole: computed.value,
        })
    }

    fn notice_of_expiry(&self, database: u16, key: &[u8]) -> Option<Notice> {
        self.notice(database, key, (class::EXPIRED, "expired"))
    }

    /// A hash has lost its last field.
    fn notice_of_last_field(&self, database: u16, key: &[u8]) -> Option<Notice> {
        self.notice(database, key, (class::GENERIC, "del"))
    }

    /// `None` if nobody listens.
    fn notice(&self, database: u16, key: &[u8], (class, name): (u32, &'static str)) -> Option<Notice> {
        let key = self.listeners.any().then(|| Bytes::copy_from_slice(key))?;
        Some(Notice {
            database,
            key,
            class,
            name,
        })
    }

    /// As [`Service::remove_expired`], for an element of a split collection. What has lost its head
    /// is left to [`super::orphans`].
    fn remove_expired_element(self: &Arc<Self>, database: u16, name: ElementName<'_>) -> Result<Removal, Fault> {
        let ElementName { key, version, sub_key } = name;
        let computed = self.transact(&Arc::default(), Keys::Some(&[key]), View::Update, |transaction| {
            let entry = transaction.get_even_expired(database, key)?;
            let Some(Value::Split(split)) = entry.map(|entry| entry.value) else {
                return Ok(false);
            };
            if split.version() != version || !transaction.has_expired_element(database, key, &split, sub_key)? {
                return Ok(false);
            }
            transaction.put_element(database, key, &split, sub_key, None);
            let is_whole = !transaction.keeps_elements(database, key, &split)?;
            if is_whole {
                transaction.delete(database, key);
                transaction.notices.extend(self.notice_of_last_field(database, key));
            }
            Ok(is_whole)
        })?;
        Ok(Removal {
            write: computed.write,
            is_whole: computed.value,
        })
    }
}
