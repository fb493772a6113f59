//! What must not be freed, compacted or written over for now, because a copy of the files is made.
//!
//! The ledger thread asks at the beginning of a round and keeps the lock until its end, so a hold that
//! was taken holds from that moment on: no round that began before it is still freeing. Every hold has
//! a deadline; past it the ledger thread frees again, whatever became of the copy, and the copy finds
//! out and is given up. Meanwhile the logs only grow, and at their budgets they push back as always.

use std::sync::PoisonError;
use std::time::Instant;

use crate::waits::{Mutex, MutexGuard};

/// How much is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Ledger, failure table, dedupe ring and event log.
    Everything,
    /// The event log: none of its segments is released.
    Events,
}

/// The hold of one queue; at most one at a time.
#[derive(Debug, Default)]
pub(super) struct Hold(Mutex<Option<Held>>);

#[derive(Debug, Clone, Copy)]
struct Held {
    what: What,
    until: Instant,
}

/// One round of the ledger thread: nothing changes about the hold while it lasts.
pub(super) struct Round<'a>(MutexGuard<'a, Option<Held>>);

impl Hold {
    /// Begins a round; waits while a hold is being taken or changed.
    pub fn round(&self) -> Round<'_> {
        Round(self.lock())
    }

    /// Takes the hold; `false` when somebody has it.
    pub fn take(&self, until: Instant) -> bool {
        let mut held = self.lock();
        if held.is_some_and(|held| Instant::now() < held.until) {
            return false;
        }
        *held = Some(Held { what: What::Everything, until });
        true
    }

    /// From now on only this much of it is held.
    pub fn narrow(&self, what: What) {
        if let Some(held) = &mut *self.lock() {
            held.what = what;
        }
    }

    /// Ends it; `false` when its time was over before.
    pub fn end(&self) -> bool {
        self.lock().take().is_some_and(|held| Instant::now() < held.until)
    }

    /// The lock. What it guards is whole at any time.
    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Round<'_> {
    /// Whether the files of the ledger's directory may be freed and written over.
    pub fn may_change_ledger(&self) -> bool {
        self.held() != Some(What::Everything)
    }

    /// Whether segments of the event log may be released.
    pub fn may_release_events(&self) -> bool {
        self.held().is_none()
    }

    fn held(&self) -> Option<What> {
        self.0.filter(|held| Instant::now() < held.until).map(|held| held.what)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_hold_narrows_ends_and_lapses_and_nobody_takes_it_twice() {
        let hold = Hold::default();
        let later = Instant::now() + Duration::from_secs(3600);
        assert!(hold.round().may_change_ledger() && hold.round().may_release_events());
        assert!(hold.take(later) && !hold.take(later));
        assert!(!hold.round().may_change_ledger() && !hold.round().may_release_events());
        hold.narrow(What::Events);
        assert!(hold.round().may_change_ledger() && !hold.round().may_release_events());
        assert!(hold.end());
        assert!(hold.round().may_release_events());
        assert!(hold.take(Instant::now()), "its time is over at once");
        assert!(hold.round().may_change_ledger() && hold.round().may_release_events());
        assert!(!hold.end(), "so whoever copied is told");
    }
}
