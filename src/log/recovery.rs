//! Opening a log: what is on the disk, what of it counts, and where to go on.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Entropy, Log, LogError, Options, Stock, Writer};
use crate::disk::Disk;

/// An opened log: the shared handle, the two owners, and what recovery found.
#[derive(Debug)]
pub struct Recovered {
    /// The shared handle.
    pub log: Log,
    /// The one who appends.
    pub writer: Writer,
    /// The one who prepares and recycles segments.
    pub stock: Stock,
    /// What was found.
    pub report: Report,
}

/// What recovery found and decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The last process stopped in order; nothing had to be decided.
    pub clean_stop: bool,
    /// The oldest offset held.
    pub first_offset: u64,
    /// The offset the next record gets.
    pub next_offset: u64,
    /// E: every offset below it had been synced, for all that is known.
    pub known_durable: u64,
    /// Offsets found without a record that nobody was promised.
    pub voids: Vec<Range<u64>>,
    /// Damage to what was durable.
    pub damage: Vec<Damage>,
    /// The unacknowledged tail that was cut off, if there was one.
    pub torn_tail: Option<TornTail>,
    /// Intact records beyond E that were written anew into the new segment.
    pub rewritten: u64,
    /// Segments that hold records, the new one included.
    pub segments: u64,
    /// Names in the directory that are none of ours.
    pub foreign: Vec<String>,
}

/// A damaged range of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment's file.
    pub file: PathBuf,
    /// Bytes of the file; empty when the file is missing.
    pub bytes: Range<u64>,
    /// Offsets whose records are lost.
    pub lost: Range<u64>,
    /// Where a copy of the bytes was put, if there were any and it worked.
    pub quarantined: Option<PathBuf>,
    /// What is wrong, for people.
    pub reason: String,
}

/// Bytes after the last intact frame that nobody was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The segment's file.
    pub file: PathBuf,
    /// Where the tail begins.
    pub position: u64,
    /// How many bytes of it are not zero.
    pub non_zero_bytes: u64,
    /// Where a bounded copy of them was put, if there were any and it worked.
    pub quarantined: Option<PathBuf>,
}

/// Opens the log in `options.dir`, creating it when there is none. Blocks.
///
/// `known_durable` is what is known about E from elsewhere, 0 if nothing. `now_micros` goes into
/// the header of a segment begun here. `entropy` gives the salts.
pub fn recover(
    disk: Arc<dyn Disk>,
    options: Options,
    known_durable: u64,
    entropy: Entropy,
    now_micros: i64,
) -> Result<Recovered, LogError> {
    let _ = (disk, options, known_durable, entropy, now_micros);
    Err(LogError::Failed("recovery is not built yet".to_owned()))
}
