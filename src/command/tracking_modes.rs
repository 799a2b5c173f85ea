//! How the keys of a connection are tracked, as the code that invalidates them, CLIENT LIST and
//! CLIENT TRACKINGINFO see it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Modes of CLIENT TRACKING, as bits.
pub mod mode {
    pub const ON: u8 = 1 << 0;
    /// All keys with one of some prefixes are tracked, read or not.
    pub const BCAST: u8 = 1 << 1;
    /// Only what a command reads that CLIENT CACHING YES came before.
    pub const OPTIN: u8 = 1 << 2;
    /// All but what a command reads that CLIENT CACHING NO came before.
    pub const OPTOUT: u8 = 1 << 3;
    /// Not for own writes.
    pub const NOLOOP: u8 = 1 << 4;
    /// The connection that gets the invalidations is gone.
    pub const BROKEN: u8 = 1 << 5;
}

#[derive(Default)]
pub struct Modes {
    modes: AtomicU8,
    /// The connection that gets the invalidations; 0 if that is the tracking one itself.
    redirect: AtomicU64,
}

impl Modes {
    /// Whether the connection is in all of these modes.
    pub fn has(&self, modes: u8) -> bool {
        self.modes.load(Ordering::Acquire) & modes == modes
    }

    pub(super) fn set(&self, modes: u8, redirect: u64) {
        self.redirect.store(redirect, Ordering::Release);
        self.modes.store(modes, Ordering::Release);
    }

    /// Notes that the connection is gone that gets the invalidations.
    pub(super) fn set_broken(&self) {
        self.modes.fetch_or(mode::BROKEN, Ordering::AcqRel);
    }

    /// The connection that gets the invalidations instead; `None` if none does.
    pub fn redirect(&self) -> Option<u64> {
        Some(self.redirect.load(Ordering::Acquire)).filter(|id| *id > 0)
    }
}
