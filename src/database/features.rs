//! What the topics use of the format ([`crate::model::Features`]): what was met in each partition,
//! and the record that comes before the first one that needs a feature.
//!
//! Only a topic that others read has such records ([`Log::chains`](crate::log::Log::chains) tells).
//! The embedded log is read by the version that wrote it, or by a newer one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::fault::{Fault, Wait};
use super::functions;
use super::transaction::{Keys, View, known};
use super::write::Item;
use super::{Service, Transaction};
use crate::database::hot::At;
use crate::log::{ProduceError, Read, TopicPartition};
use crate::model::{FEATURES_KEY, FUNCTION, Features};

/// What one topic uses, as far as this node knows.
#[derive(Default)]
pub struct TopicFeatures {
    /// Per partition: the features, and the place of the record that names them (offset 0 if it is
    /// known from an earlier run).
    met: Mutex<BTreeMap<u32, (u64, Features)>>,
    /// Some of them are not known to this version.
    any_unknown: AtomicBool,
}

impl TopicFeatures {
    /// A record that names them became visible.
    pub(super) fn meet(&self, at: At, features: &Features) {
        let mut met = self.met.lock();
        let (offset, known) = met.entry(at.partition).or_default();
        if at.offset >= *offset {
            (*offset, *known) = (at.offset, features.clone());
        }
        let any_unknown = met.values().any(|(_, features)| !features.unknown().is_empty());
        if any_unknown && !self.any_unknown.swap(true, Ordering::AcqRel) {
            tracing::error!(
                partition = at.partition,
                offset = at.offset,
                unknown = features.unknown().join(" "),
                "a topic uses features of the format that this version does not know: it is not served"
            );
        }
        self.any_unknown.store(any_unknown, Ordering::Release);
    }

    /// Those of an earlier run of this node.
    pub(super) fn restore(&self, features: &BTreeMap<u32, Features>) {
        for (&partition, features) in features {
            self.meet(At { partition, offset: 0 }, features);
        }
    }

    pub(super) fn forget(&self) {
        self.met.lock().clear();
        self.any_unknown.store(false, Ordering::Release);
    }

    /// Per partition.
    pub(super) fn all(&self) -> BTreeMap<u32, Features> {
        let met = self.met.lock();
        met.iter()
            .map(|(&partition, (_, features))| (partition, features.clone()))
            .collect()
    }

    fn of(&self, partition: u32) -> (u64, Features) {
        self.met.lock().get(&partition).cloned().unwrap_or_default()
    }
}

impl Service {
    /// An error if the topic of a database uses what this version does not know.
    pub(super) fn check_features(&self, database: u16) -> Result<(), Fault> {
        let of = &self.databases[database as usize].features;
        if !of.any_unknown.load(Ordering::Acquire) {
            return Ok(());
        }
        let met = of.met.lock();
        let mut unknown: Vec<&str> = met.values().flat_map(|(_, features)| features.unknown()).collect();
        unknown.sort_unstable();
        unknown.dedup();
        Err(Fault::error(format!(
            "UNSUPPORTED database {database} uses features of the topic's format that this version does not know: {}; upgrade this node",
            unknown.join(" ")
        )))
    }

    /// Waits for the record that names a feature, if one of the items needs it.
    pub(super) fn features_for(&self, items: &[Item]) -> Result<(), Fault> {
        if self.log.chains() {
            return Ok(());
        }
        for item in items {
            if let Item::Function { .. } = item
                && !self.has_feature(item.database(), functions::PARTITION, FUNCTION)
            {
                return Err(Fault::Wait(Wait::Feature(item.database(), FUNCTION)));
            }
            let (Item::Key { database, key, .. }, Some(state)) = (item, item.state()) else {
                continue;
            };
            for feature in state.value.features() {
                if !self.has_feature(*database, self.log.partition(*database, key), feature) {
                    return Err(Fault::Wait(Wait::Feature(*database, feature)));
                }
            }
        }
        Ok(())
    }

    fn has_feature(&self, database: u16, partition: u32, feature: &str) -> bool {
        let met = self.databases[database as usize].features.met.lock();
        met.get(&partition).is_some_and(|(_, features)| features.has(feature))
    }

    /// Names the feature in every partition of a database's topic, in one group. Another node may
    /// do the same at that time: then it is done once more, on what that node wrote.
    pub async fn name_feature(self: &Arc<Self>, database: u16, feature: &'static str) -> Result<(), Fault> {
        // Two records of this node at one time could each lack the feature of the other.
        let _one = self.naming.lock().await;
        let named = async {
            loop {
                let partitions = self.databases[database as usize].partitions().len() as u32;
                if (0..partitions).all(|partition| self.has_feature(database, partition, feature)) {
                    return Ok(());
                }
                let computed = self.transact(
                    &Arc::default(),
                    Keys::Some(&[FEATURES_KEY]),
                    View::Update,
                    |transaction| {
                        transaction.name_feature(database, feature);
                        Ok(())
                    },
                )?;
                let Some(write) = computed.write else {
                    return Err("NOTWRITTEN the database has no partitions".into());
                };
                match write.finished().await {
                    Ok(()) => return Ok(()),
                    Err(ProduceError::Stale { after }) => {
                        if let Some((at, position)) = after {
                            self.applied_to(*at, *position).await;
                        }
                    }
                    Err(error) => return Err(Fault::error(error.to_string())),
                }
            }
        };
        let patience = self.write_timeout();
        tokio::time::timeout(patience, named).await.unwrap_or_else(|_| {
            Err(Fault::error(format!(
                "NOTWRITTEN other writers came first for {} s; try again later",
                patience.as_secs()
            )))
        })
    }
}

impl Transaction<'_> {
    fn name_feature(&mut self, database: u16, feature: &str) {
        let of = &self.service().databases[database as usize];
        for (progress, partition) in of.partitions().iter().zip(0..) {
            // In this order: what is met is at least as new as what was applied before.
            let applied = progress.applied.load(Ordering::Acquire);
            let (offset, features) = of.features.of(partition);
            let at = TopicPartition { database, partition };
            let read = Read {
                at,
                key: Some(Bytes::from_static(FEATURES_KEY)),
                added: None,
                known: known(at, applied, Some(At { partition, offset })),
            };
            let item = Item::Features {
                database,
                partition,
                features: features.with(feature),
            };
            self.add(read, item);
        }
    }
}
