//! A durable, segmented log of opaque records over a [`Disk`](crate::disk::Disk).
//!
//! Used three times: for the event log (`wal/`), the ledger (`ledger/`) and the failure table
//! (`ledger/failures/`). It knows offsets, frames and segments, and nothing about events, sinks or
//! checkpoints.
//!
//! # The format, byte for byte
//!
//! All integers are little-endian. `crc32` is CRC-32/ISO-HDLC.
//!
//! A **segment** is a file of a fixed, preallocated and already-written size, named by its base
//! offset in 20 digits: `00000000000000000042.seg`. Names order segments for people; the header
//! decides. A freed segment becomes a spare, `spare-00000000000000.seg` (a 14-digit running number).
//! The next segment is written into a spare, synced, and only then given its name; `stock.rs` tells
//! why no crash can show a name over another segment's header.
//!
//! ```text
//! segment        0 ┌───────────────────────────────┐
//!                  │ header, copy A       (64 used)│ 512 bytes = one sector
//!              512 ├───────────────────────────────┤
//!                  │ header, copy B, identical     │
//!             1024 ├───────────────────────────────┤
//!                  │ zero                          │
//!             4096 ├───────────────────────────────┤
//!                  │ frame │ frame │ frame │ …     │ each starts on a multiple of 8
//!                  │ zeros, or stale bytes of an   │
//!                  │ earlier use (other salt)      │
//!             size └───────────────────────────────┘
//!
//! header    0  8  magic "EVFLSEG1" (the 1 is the format version)
//!           8  4  crc32 of bytes 12..64
//!          12  4  stream: 1 event log, 2 ledger, 3 failure table
//!          16  8  base offset
//!          24  8  salt: random, new at every use of the file, never zero
//!          32  8  segment size in bytes
//!          40  8  created, microseconds since the Unix epoch
//!          48  8  durable: every offset below it was synced when the segment was begun
//!          56  8  zero
//!
//! frame     0  4  magic "EVFR"
//!           4  4  crc32 of bytes 8..64 and the table
//!           8  8  salt of the segment
//!          16  8  base offset (of the first record; without records: the next offset)
//!          24  8  durable: every offset below it was synced when this frame was written
//!          32  8  accepted at, microseconds since the Unix epoch
//!          40  4  records
//!          44  4  payload bytes
//!          48  4  kind: 1 records, 2 idle marker, 3 clean stop, 4 void (no records: the offsets from
//!                 base up to the number at 32 hold nothing; written by recovery for a gap it kept, and by a
//!                 repair for events that were lost)
//!          52 12  zero
//!          64     table, 24 bytes a record: tag (16), length (4), crc (4)
//!                 crc = crc32(record) ^ crc32(salt ‖ offset)
//!           …     the records, end to end
//!           …     zeros up to a multiple of 8
//! ```
//!
//! A frame is one append: all its records or none. Frames of one group commit are written with one
//! call and made durable by one sync. A header's checksum covers the table, so a flipped bit in one
//! record's bytes costs that record and no other. An all-zero header is invalid by its magic, and one
//! with an offset beyond 2^63 whatever its checksum says.
//!
//! # Watermarks
//!
//! ```text
//! first ≤ … ≤ durable end ≤ written end = next offset
//!   │             │              └ handed to the kernel
//!   │             └ a sync has returned; readers and 202s stop here
//!   └ the base of the oldest segment; everything below was released
//! ```
//!
//! # Who does what, and what happens when it fails
//!
//! * [`Writer`]: single owner of the active segment; `append` encodes into the group, `commit`
//!   writes and syncs it. A failed write or sync latches the log: nothing on that file is retried,
//!   every later call fails, the process must end (contract, promise 8).
//! * [`Stock`]: spares prepared ahead and freed segments taken back, by `Stock::step` on a
//!   thread of its own (or called by a test). Out of space or descriptors, it says so and tries
//!   again later; only preparation meets a full disk, never an accepted record.
//! * [`Reader`]: reads committed frames in large chunks, never past the durable end. Damage is an
//!   item it yields, not an error that ends it.
//! * [`recover`]: the only way to open; follows rules R1–R10 (`docs/RELIABILITY.md`) and returns
//!   a report of what it found. Reads headers of sealed segments and scans only the last one, so its
//!   time does not grow with the backlog.
//! * [`Log::copy_to`]: a copy of the log in another directory, as a crash would have left it.
//! * [`OfflineReader`]: reads the records of a log that another process has open, or nobody.
//! * [`inspect`]: the same scan, read-only, for `wal inspect` and `wal verify`.
//! * [`repair`]: writes damaged segments anew without their damage, for `wal repair`.

mod catalog;
mod copy;
mod cursor;
mod error;
pub mod frame;
mod handle;
pub mod inspect;
mod mend;
mod offline;
#[cfg(test)]
pub(crate) mod power_loss;
mod quarantine;
mod reader;
mod recovery;
pub mod repair;
mod scan;
pub mod segment;
mod stock;
mod survey;
mod window;
mod writer;

use std::path::PathBuf;

pub use copy::Copied;
pub use error::{AppendError, LogError, NoRoom, ReadError};
pub use handle::{Log, Usage};
pub use offline::OfflineReader;
pub use reader::{Chunk, ReadRecord, Reader};
pub use recovery::{Damage, Recovered, Report, TornTail, recover};
pub use stock::{Step, Stock};
pub use writer::Writer;

/// Gives the salts. The daemon's is seeded by the system, the simulation's by its seed.
pub type Entropy = Box<dyn FnMut() -> u64 + Send>;

/// Which log a file belongs to; a file of the one in the directory of the other is no segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The event log.
    Events,
    /// The ledger.
    Ledger,
    /// The failure table.
    Failures,
}

impl Stream {
    fn code(self) -> u32 {
        match self {
            Stream::Events => 1,
            Stream::Ledger => 2,
            Stream::Failures => 3,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Stream::Events),
            2 => Some(Stream::Ledger),
            3 => Some(Stream::Failures),
            _ => None,
        }
    }
}

/// Where a log lives and what it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The directory of its segments; beside `owners_files` nobody else's files belong there.
    pub dir: PathBuf,
    /// Where copies of damaged bytes go.
    pub quarantine_dir: PathBuf,
    /// Which log it is.
    pub stream: Stream,
    /// Bytes of a segment, a multiple of 4096 and at least 8192. Segments of another size, from
    /// an earlier configuration, are read and released but not used again.
    pub segment_bytes: u64,
    /// Most bytes all files in `dir` may take, at least two segments.
    pub budget_bytes: u64,
    /// Spares kept ready, at least 1.
    pub spares: u32,
    /// Room left to others on the disk: no file is made that would take it below this.
    pub min_free_disk_bytes: u64,
    /// Names in `dir` that are files of the log's owner, and nothing to wonder about.
    pub owners_files: &'static [&'static str],
}
