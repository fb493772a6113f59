//! Mistakes made on purpose, so that the tests can be seen to find them.
//!
//! Only a build with the feature `planted` can make one, and only on a thread that asked for it with
//! `plant`; in every other build [`made`] is a constant `false` that costs nothing. A test that explores
//! crashes or damage and passes proves little before it has failed on each of these (`tests/it/power/planted.rs`).
//! Syncs that are left out need no place in the code: a disk that forgets them does the same.

/// One mistake that a durable log must not make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// A record is believed without its checksum.
    NoChecksum,
    /// What an earlier use of a segment's file left behind is believed.
    StaleBytesTrusted,
    /// Whoever waits is told 202 although the commit failed.
    AckOnError,
    /// A failed sync is tried again on the same file.
    SyncRetried,
    /// The archive reports a batch before it has synced it.
    CheckpointBeforeSync,
    /// After a crash the archive keeps what stands behind its checkpoint.
    ArchiveNotCut,
    /// After a crash the archive is cut at its last whole line, and goes on behind that.
    ArchiveCutAtLastLine,
    /// Who waits for events is woken before the durable end says that there are any.
    WokenBeforePublished,
    /// Who waits for events looks first and enlists for the wake-up then, without another look.
    EnlistedAfterLook,
    /// A checkpoint is due, and the ledger is not woken for it.
    LedgerLeftAsleep,
    /// A failure is written down, and redrives under way are left to wait.
    FailureUntold,
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Mistake>> = const { std::cell::Cell::new(None) };
}

/// Makes a mistake from now on, or none any more, on this thread.
#[cfg(feature = "planted")]
pub fn plant(mistake: Option<Mistake>) {
    PLANTED.set(mistake);
}

/// Whether this mistake is to be made.
#[inline(always)]
pub fn made(mistake: Mistake) -> bool {
    #[cfg(feature = "planted")]
    let made = PLANTED.get() == Some(mistake);
    #[cfg(not(feature = "planted"))]
    let made = {
        let _ = mistake;
        false
    };
    made
}
