//! Reading committed records in large chunks, never past the durable end.
//!
//! Each reader has its own position and belongs to whoever made it; it blocks in `pread`. Every
//! record's checksum is looked at. Damage is an item of what it yields: set aside once, told once as
//! an ERROR, and passed. Only what the system itself refuses (descriptors, say) is an error, and a
//! later read may work.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::catalog::Place;
use super::cursor::{Bounds, Cursor, Measure, Piece};
use super::scan::{Loss, UNREADABLE};
use super::segment::Segment;
use super::survey::is_shortage;
use super::{Damage, Log, ReadError};

/// Least bytes of one `pread`; less is not worth a call.
const MIN_CHUNK: usize = 64 << 10;
/// Most bytes of one `pread`, but for a larger record or table.
const MAX_CHUNK: usize = 1 << 20;

/// A cursor over the log; many may exist at a time, each with its own position.
#[derive(Debug)]
pub struct Reader {
    log: Log,
    position: u64,
    open: Option<Open>,
}

/// The segment the position is in.
#[derive(Debug)]
struct Open {
    segment: Arc<Segment>,
    cursor: Cursor,
}

/// A run of offsets read at once: every offset of `range` has a record here or is in `voids`.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    /// The offsets covered; empty when nothing beyond the position is durable.
    pub range: Range<u64>,
    /// The bytes the records are cut from.
    pub buffer: Bytes,
    /// The intact records, in offset order.
    pub records: Vec<ReadRecord>,
    /// Offsets without an intact record, lost ones included, in order.
    pub voids: Vec<Range<u64>>,
    /// Damage met for the first time by any reader of this log; its `lost` offsets are in `voids`.
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

    /// The bytes of one of the chunk's records, shared with the chunk.
    pub fn share(&self, record: &ReadRecord) -> Bytes {
        self.buffer.slice(record.start as usize..record.start as usize + record.len as usize)
    }
}

impl Reader {
    pub(super) fn new(log: Log, from: u64) -> Self {
        Self { log, position: from, open: None }
    }

    /// Reads on from the position: at most `max_records`, at most `max_bytes` of them but always
    /// one whole record. An empty range means that nothing further is durable yet. A chunk ends early
    /// where a segment or the bytes read at once do, so a short one says nothing.
    pub fn read(&mut self, max_records: usize, max_bytes: usize) -> Result<Chunk, ReadError> {
        let start = self.position;
        let measure = Measure { records: max_records.max(1), bytes: max_bytes };
        let chunk = max_bytes.clamp(MIN_CHUNK, MAX_CHUNK);
        let mut piece = Piece::default();
        let visited = self.visit(chunk, |cursor, bounds| cursor.read(bounds, measure, &mut piece))?;
        let segment = match visited {
            Visit::Nothing => return Ok(Chunk { range: start..start, ..Chunk::default() }),
            Visit::Read(segment) => segment,
            Visit::Unreadable(segment) => {
                let lost = start..self.position;
                piece.voids.push(lost.clone());
                piece.losses.push(Loss { bytes: 0..0, lost, reason: UNREADABLE });
                segment
            }
        };
        if !piece.losses.is_empty() && segment.is_released() {
            // The file may be in use again: what looks like damage is somebody else's frame.
            (self.position, self.open) = (start, None);
            return Err(ReadError::Released { first_offset: self.log.first_offset() });
        }
        let damage = piece.losses.iter().filter_map(|loss| self.log.tell(&segment, loss)).collect();
        Ok(Chunk {
            range: start..self.position,
            buffer: piece.buffer,
            records: piece.records,
            voids: piece.voids,
            damage,
        })
    }

    /// Reads on from the position, headers and tables only: appends at least `max_records` pairs of
    /// offset and tag to `tags`, whole frames, and returns how many; fewer where a segment ends. 0
    /// means that nothing further is durable. Offsets without a frame are passed in silence.
    pub fn read_tags(&mut self, max_records: usize, tags: &mut Vec<(u64, u128)>) -> Result<usize, ReadError> {
        loop {
            let mut taken = 0;
            let visited = self.visit(MAX_CHUNK, |cursor, bounds| {
                taken = cursor.read_tags(bounds, max_records.max(1), tags)?;
                Ok(())
            })?;
            if taken > 0 || matches!(visited, Visit::Nothing) {
                return Ok(taken);
            }
        }
    }

    /// The offset the next read begins at.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on reading at another offset.
    pub fn seek(&mut self, offset: u64) {
        if offset != self.position {
            self.position = offset;
            self.open = None;
        }
    }

    /// Lets `read` work on the segment that holds the position, and moves on by what it read.
    fn visit(
        &mut self,
        chunk: usize,
        read: impl FnOnce(&mut Cursor, Bounds) -> io::Result<()>,
    ) -> Result<Visit, ReadError> {
        let durable = self.log.durable_end();
        if self.position >= durable {
            return Ok(Visit::Nothing);
        }
        let (segment, end) = match self.log.locate(self.position) {
            Place::In { segment, end } => (segment, end),
            Place::Released { first_offset } => return Err(ReadError::Released { first_offset }),
            Place::NotYet => return Ok(Visit::Nothing),
        };
        let until = end.map_or(durable, |end| end.min(durable));
        let bounds = Bounds { until, limit: segment.durable_position(), durable: until };
        let mut open = match self.open.take().filter(|open| Arc::ptr_eq(&open.segment, &segment)) {
            Some(open) => open,
            None => match segment.open(self.log.disk()) {
                Ok(file) => {
                    let at = segment.position_before(self.position);
                    let cursor = Cursor::new(file, segment.salt(), segment.base(), self.position, at);
                    Open { segment: Arc::clone(&segment), cursor }
                }
                Err(_) if segment.is_released() => {
                    return Err(ReadError::Released { first_offset: self.log.first_offset() });
                }
                Err(source) if is_shortage(&source) => return Err(self.io(&segment, source)),
                Err(_) => {
                    self.position = until;
                    return Ok(Visit::Unreadable(segment));
                }
            },
        };
        open.cursor.set_chunk(chunk);
        read(&mut open.cursor, bounds).map_err(|source| self.io(&segment, source))?;
        self.position = open.cursor.next_offset();
        if let Some((offset, position)) = open.cursor.place() {
            segment.note(offset, position);
        }
        if end != Some(self.position) {
            self.open = Some(open); // else the next read is in another segment
        }
        Ok(Visit::Read(segment))
    }

    fn io(&self, segment: &Segment, source: io::Error) -> ReadError {
        ReadError::Io { path: segment.path.clone(), position: self.position, source }
    }
}

/// What became of a visit to a segment.
enum Visit {
    /// Nothing further is durable.
    Nothing,
    /// Something was read or passed.
    Read(Arc<Segment>),
    /// The file is gone or will not open; its offsets were passed.
    Unreadable(Arc<Segment>),
}
