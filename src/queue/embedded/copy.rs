//! A copy of the queue's files in another data directory, while it works: what a crash would have left.
//!
//! ```text
//! hold everything ─► ledger, dedupe ring ─► failure table ─► hold events only ─► event log ─► end of hold
//! ```
//!
//! Why the copy opens like a directory after a crash, and misses nothing that was accepted before it
//! began:
//!
//! * Each log is copied as it was durable at one moment ([`Log::copy_to`](crate::log::Log::copy_to)),
//!   and these moments come in this order. So the ledger is the oldest of them, and the rest is ahead
//!   of it, as after any crash: rows it does not count yet are news to it, and events it does not count
//!   are delivered again.
//! * The ledger is never ahead. What it says of the failure table (`rows_end`) and of the event log (the
//!   durable end; the end of the ring) was durable in those before it was written down, and they are
//!   copied later.
//! * Nothing that the copied ledger needs is freed before it was copied: neither rows (no segment of
//!   the failure table is cleaned until it was copied) nor events (none of their segments is released
//!   until the end), and the ledger's own segments and the ring stay as they are while they are copied.
//! * What was accepted before the copy began is below the durable end that the event log has when its
//!   turn comes.
//!
//! Runs on the caller's thread and blocks on the disk; committer, workers and checkpoints go on. When
//! the hold's time runs out first, the copy fails and the queue frees what it kept.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::disk::{Disk, copy_file};
use crate::log::{Copied as CopiedLog, LogError, OfflineReader, ReadError, Stream};
use crate::sink::Resume;

use super::hold::What;
use super::ledger;
use super::open::{failures_options, ledger_options, wal_options};
use super::{EmbeddedQueue, ring};

/// A copy of a queue.
#[derive(Debug, Clone, Default)]
pub struct Copied {
    /// The oldest event in it.
    pub first_offset: u64,
    /// It holds every event below this offset that was not freed before.
    pub next_offset: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Where each sink, by name, goes on when the copy is opened.
    pub resumes: Vec<(String, Resume)>,
}

/// The queue could not be copied. What is there of the copy is worth nothing.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Another copy is under way.
    #[error("another copy is being made; wait until it is done")]
    Busy,
    /// It took longer than freeing may wait.
    #[error("it took longer than {}: raise `snapshot.max_hold`, or copy to a faster disk", humantime::format_duration(*.0))]
    TooSlow(Duration),
    /// A log could not be copied.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A file could not be copied.
    #[error("copying {} failed: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The copied ledger cannot be read back.
    #[error("the copied ledger cannot be read: {0}")]
    Ledger(ReadError),
}

/// A copy under way. Dropping it ends the hold.
#[derive(Debug)]
pub(super) struct Copying<'a> {
    queue: &'a EmbeddedQueue,
    disk: &'a dyn Disk,
    from: &'a Config,
    to: Config,
    max_hold: Duration,
    is_ended: bool,
    copied: Copied,
}

impl EmbeddedQueue {
    /// Copies the queue of `config.data_dir` into the data directory `to`, and syncs it. Nothing is
    /// freed meanwhile, for `max_hold` at most.
    pub fn copy_to(
        &self,
        disk: &dyn Disk,
        config: &Config,
        to: &Path,
        max_hold: Duration,
    ) -> Result<Copied, CopyError> {
        let mut copying = Copying::begin(self, disk, config, to, max_hold)?;
        copying.ledger()?;
        copying.failures()?;
        copying.events()?;
        copying.finish()
    }
}

impl<'a> Copying<'a> {
    pub fn begin(
        queue: &'a EmbeddedQueue,
        disk: &'a dyn Disk,
        config: &'a Config,
        to: &Path,
        max_hold: Duration,
    ) -> Result<Self, CopyError> {
        if !queue.shared.hold.take(Instant::now() + max_hold) {
            return Err(CopyError::Busy);
        }
        let to = Config { data_dir: to.to_owned(), ..config.clone() };
        Ok(Self { queue, disk, from: config, to, max_hold, is_ended: false, copied: Copied::default() })
    }

    pub fn ledger(&mut self) -> Result<(), CopyError> {
        let dir = ledger_options(&self.to).dir;
        let copied = self.queue.shared.ledger.copy_to(&dir)?;
        self.copied.bytes += copied.bytes;
        let ring = ledger_options(self.from).dir.join(ring::FILE_NAME);
        match copy_file(self.disk, &ring, &dir.join(ring::FILE_NAME)) {
            Ok(bytes) => self.copied.bytes += bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // the dedupe window is off
            Err(source) => return Err(CopyError::File { path: ring, source }),
        }
        self.disk.sync_dir(&dir).map_err(|source| CopyError::File { path: dir, source })
    }

    pub fn failures(&mut self) -> Result<(), CopyError> {
        let copied = self.queue.shared.failures.copy_to(&failures_options(&self.to).dir)?;
        self.copied.bytes += copied.bytes;
        self.queue.shared.hold.narrow(What::Events);
        Ok(())
    }

    pub fn events(&mut self) -> Result<(), CopyError> {
        let CopiedLog { first_offset, durable_end, bytes } =
            self.queue.shared.log.copy_to(&wal_options(&self.to).dir)?;
        self.copied.bytes += bytes;
        (self.copied.first_offset, self.copied.next_offset) = (first_offset, durable_end);
        Ok(())
    }

    pub fn finish(mut self) -> Result<Copied, CopyError> {
        self.is_ended = true;
        if !self.end_hold() {
            return Err(CopyError::TooSlow(self.max_hold));
        }
        let mut copied = std::mem::take(&mut self.copied);
        copied.resumes = self.resumes(copied.first_offset)?;
        Ok(copied)
    }

    fn end_hold(&self) -> bool {
        let in_time = self.queue.shared.hold.end();
        self.queue.shared.wake_ledger();
        in_time
    }

    /// What opening the copy will hand each configured sink.
    fn resumes(&self, first_offset: u64) -> Result<Vec<(String, Resume)>, CopyError> {
        let dir = ledger_options(&self.to).dir;
        let mut reader = OfflineReader::open(self.disk, &dir, Stream::Ledger)?;
        let mut at = reader.first_offset();
        let (memory, _) = ledger::replay(|records, bytes| {
            let chunk = reader.read(at, records, bytes)?;
            at = chunk.range.end;
            Ok(chunk)
        })
        .map_err(CopyError::Ledger)?;
        let resume = |name: &str| match memory.checkpoints.get(name) {
            Some(known) => Resume { token: known.token.clone(), next_offset: known.acked },
            None => Resume { token: None, next_offset: first_offset },
        };
        Ok(self.from.sinks.iter().map(|sink| (sink.name.clone(), resume(&sink.name))).collect())
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        if !self.is_ended {
            self.end_hold();
        }
    }
}
