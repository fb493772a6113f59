//! The single owner of the active segment.

use std::sync::Arc;

use super::catalog::{Resume, Shared};
use super::frame::Record;
use super::{AppendError, Entropy, LogError};

/// Appends frames and makes them durable.
pub struct Writer {
    _private: (),
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    /// Encodes one frame into the group and returns its first record's offset. No I/O unless the
    /// active segment is full. Durable only after [`Writer::commit`].
    pub fn append<'a>(
        &mut self,
        accepted_at_micros: i64,
        records: impl ExactSizeIterator<Item = Record<'a>> + Clone,
    ) -> Result<u64, AppendError> {
        let _ = (accepted_at_micros, records);
        Err(LogError::Failed("not built yet".to_owned()).into())
    }

    /// Writes and syncs everything appended since the last commit; returns the durable end.
    pub fn commit(&mut self) -> Result<u64, LogError> {
        Err(LogError::Failed("not built yet".to_owned()))
    }

    /// Records, while the log idles, that everything is durable: one small synced frame.
    pub fn mark_idle(&mut self) -> Result<(), LogError> {
        Err(LogError::Failed("not built yet".to_owned()))
    }

    /// Commits and leaves the mark of an orderly stop.
    pub fn close(self) -> Result<(), LogError> {
        Err(LogError::Failed("not built yet".to_owned()))
    }

    pub(super) fn new(
        shared: Arc<Shared>,
        entropy: Entropy,
        next_offset: u64,
        resume: Option<Resume>,
    ) -> Self {
        let _ = (shared, entropy, next_offset, resume);
        Self { _private: () }
    }

    /// For recovery: leaves the offsets from the next one up to `next` void. Never goes back.
    pub(super) fn skip_to(&mut self, next: u64) {
        let _ = next;
    }

    /// For recovery: begins a new segment at the next offset and makes it durable, even empty.
    pub(super) fn begin(&mut self, now_micros: i64) -> Result<(), AppendError> {
        let _ = now_micros;
        Err(LogError::Failed("not built yet".to_owned()).into())
    }
}
