//! Repairing the event log of a queue that nobody uses, so that what is lost stays counted.
//!
//! ```text
//! open ─► read the whole log ─► its losses into the ledger, synced ─► close ─► write damaged segments anew
//! ```
//!
//! The log forgets its losses when it is repaired, so the ledger has them first; and the dedupe ring forgets
//! their tags, so that what is lost can be sent again. A crash before that
//! changes nothing but what an opening changes; a crash after it leaves damage that is known and is not counted
//! again. Runs on the caller's thread and blocks; an error ends it like a crash.

use crate::config::Config;
use crate::disk::Disk;
use crate::log::repair::{Repair, repair};
use crate::log::{Entropy, LogError};
use crate::queue::QueueError;

use super::open::wal_options;
use super::state::Shared;
use super::{Opened, read_failed};

/// Records and bytes read at once while looking for damage.
const READ_RECORDS: usize = 4096;
const READ_BYTES: usize = 1 << 20;

/// Repairs the event log of a queue just opened, which is closed for it, and returns what was done.
/// `threads` and `progress` are those of [`inspect`](crate::log::inspect::inspect).
pub fn repair_log(
    disk: &dyn Disk,
    config: &Config,
    opened: Opened,
    mut entropy: Entropy,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<Repair>, QueueError> {
    let Opened { queue, committer, mut ledger, .. } = opened;
    let shared = &queue.shared;
    note_damage(shared)?;
    while ledger.step()? {}
    if shared.state().is_dirty() {
        let reason = "the ledger has no room for what is lost; make room on the disk and try again";
        return Err(QueueError::StorageFailed(reason.to_owned()));
    }
    ledger.forget_lost_tags()?;
    queue.begin_drain();
    queue.close_appends();
    let failed = |error: LogError| QueueError::StorageFailed(error.to_string());
    committer.close().map_err(failed)?;
    queue.stop_background();
    ledger.close()?;
    let known_durable = shared.log.durable_end();
    repair(disk, &wal_options(config), known_durable, &mut entropy, threads, progress).map_err(failed)
}

/// Reads all that the log holds and takes note of what it finds, for the ledger to write.
fn note_damage(shared: &Shared) -> Result<(), QueueError> {
    let mut reader = shared.log.reader(shared.log.first_offset());
    loop {
        let at = reader.position();
        let chunk = reader.read(READ_RECORDS, READ_BYTES).map_err(|error| read_failed(error, at))?;
        if chunk.range.is_empty() {
            return Ok(());
        }
        shared.note(&mut shared.state(), &chunk);
    }
}
