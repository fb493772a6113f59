//! Reading committed records in large chunks, never past the durable end.

use std::ops::Range;

use bytes::Bytes;

use super::{Damage, Log, ReadError};

/// A cursor over the log; many may exist at a time, each with its own position.
#[derive(Debug)]
pub struct Reader {
    log: Log,
    position: u64,
}

/// A run of offsets read at once: every offset of `range` is a record, void, or damaged.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    /// The offsets covered; empty when nothing beyond the position is durable.
    pub range: Range<u64>,
    /// The bytes the records are cut from.
    pub buffer: Bytes,
    /// The intact records, in offset order.
    pub records: Vec<ReadRecord>,
    /// Offsets without a record that nobody was promised.
    pub voids: Vec<Range<u64>>,
    /// Damaged ranges.
    pub damage: Vec<Damage>,
}

/// One intact record of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRecord {
    /// Its offset.
    pub offset: u64,
    /// When its frame was accepted, in microseconds since the Unix epoch.
    pub accepted_at_micros: i64,
    /// The tag it was written with.
    pub tag: u128,
    /// Where it begins in the chunk's buffer.
    pub start: u32,
    /// Its length in bytes.
    pub len: u32,
}

impl Chunk {
    /// The bytes of one of the chunk's records.
    pub fn bytes(&self, record: &ReadRecord) -> &[u8] {
        &self.buffer[record.start as usize..record.start as usize + record.len as usize]
    }
}

impl Reader {
    pub(super) fn new(log: Log, from: u64) -> Self {
        Self { log, position: from }
    }

    /// Reads on from the position: at most `max_records`, at most `max_bytes` of them but always
    /// one whole record. An empty chunk means that nothing further is durable yet.
    pub fn read(&mut self, max_records: usize, max_bytes: usize) -> Result<Chunk, ReadError> {
        let _ = (&self.log, max_records, max_bytes);
        Err(ReadError::Failed("reading is not built yet".to_owned()))
    }

    /// Reads on from the position, headers and tables only: appends up to about `max_records` pairs
    /// of offset and tag to `tags` and returns how many; 0 means that nothing further is durable.
    pub fn read_tags(&mut self, max_records: usize, tags: &mut Vec<(u64, u128)>) -> Result<usize, ReadError> {
        let _ = (max_records, tags);
        Err(ReadError::Failed("reading is not built yet".to_owned()))
    }

    /// The offset the next read begins at.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on reading at another offset.
    pub fn seek(&mut self, offset: u64) {
        self.position = offset;
    }
}
