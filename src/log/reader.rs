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
/// Most bytes of one `pread`, but for a larger record or table: what a sink that syncs is given at once.
const MAX_CHUNK: usize = 4 << 20;
/// Bytes of one `pread` for tags, at every start.
const TAGS_CHUNK: usize = 1 << 20;

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
            let visited = self.visit(TAGS_CHUNK, |cursor, bounds| {
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

#[cfg(test)]
mod tests {
    use super::super::frame::{self, Header, Kind, Record};
    use super::super::segment::{self, SegmentHeader};
    use super::super::writer::tests::entropy;
    use super::super::{Options, Recovered, Step, Stream, recover};
    use super::*;
    use crate::disk::Disk;
    use crate::disk::simulated::SimulatedDisk;
    use std::path::PathBuf;

    fn options() -> Options {
        Options {
            dir: "/data/wal".into(),
            quarantine_dir: "/data/quarantine".into(),
            stream: Stream::Events,
            segment_bytes: 2 << 20,
            budget_bytes: 20 << 20,
            spares: 1,
            min_free_disk_bytes: 0,
            owners_files: &[],
        }
    }

    /// A log with frames of very different sizes, some far larger than one read.
    fn log() -> (Recovered, Vec<Vec<u8>>) {
        let disk = SimulatedDisk::new(1);
        let mut recovered = recover(Arc::new(disk), options(), 0, entropy(1), 0).expect("it opens");
        let mut written = Vec::new();
        for (count, len) in
            [(1, 10), (4000, 300), (1, 0), (3, 400_000), (2000, 0), (50, 90), (1, 1_900_000), (7, 7)]
        {
            while recovered.stock.step() == Step::Worked {}
            let records: Vec<Vec<u8>> = (0..count).map(|i| vec![(i % 251) as u8; len + i % 3]).collect();
            append(&mut recovered, &records);
            written.extend(records);
        }
        (recovered, written)
    }

    fn append(recovered: &mut Recovered, records: &[Vec<u8>]) {
        let records = records.iter().map(|bytes| Record {
            tag: bytes.len() as u128 + 1,
            crc: crc32fast::hash(bytes),
            bytes,
        });
        recovered.writer.append(5, records).expect("there is room");
        recovered.writer.commit().expect("the disk works");
    }

    #[test]
    fn any_measure_gives_every_record_once_and_stops_inside_frames() {
        let (recovered, written) = log();
        for (max_records, max_bytes) in
            [(1, 1 << 20), (7, 0), (1000, 5000), (3999, 1 << 20), (1 << 20, 64 << 20)]
        {
            let mut reader = recovered.log.reader(0);
            let mut next = 0;
            loop {
                let chunk = reader.read(max_records, max_bytes).expect("it reads");
                if chunk.range.is_empty() {
                    break;
                }
                assert!(
                    chunk.records.len() <= max_records && chunk.voids.is_empty() && chunk.damage.is_empty()
                );
                let bytes: usize = chunk.records.iter().map(|record| record.len as usize).sum();
                let first = chunk.records.first().map_or(0, |record| record.len as usize);
                assert!(bytes <= max_bytes.max(first), "{bytes} of {max_bytes}");
                for record in &chunk.records {
                    assert_eq!(record.offset, next);
                    assert_eq!(chunk.bytes(record), written[next as usize]);
                    next += 1;
                }
                assert_eq!(chunk.range.end, next);
            }
            assert_eq!(next, written.len() as u64, "{max_records} records, {max_bytes} bytes");
        }
    }

    #[test]
    fn a_reader_begins_at_any_offset_and_may_go_back() {
        let (recovered, written) = log();
        let mut reader = recovered.log.reader(0);
        for offset in (0..written.len() as u64).step_by(61).chain([3, 4001, 4002, 1, 0]) {
            reader.seek(offset);
            let chunk = reader.read(3, 1 << 20).expect("it reads");
            assert_eq!(chunk.records.first().map(|record| record.offset), Some(offset));
            assert_eq!(chunk.bytes(&chunk.records[0]), written[offset as usize]);
        }
    }

    #[test]
    fn tags_are_read_without_records_from_any_offset_on() {
        let (recovered, written) = log();
        for from in [0, 17, 4001, written.len() as u64 - 1] {
            let mut reader = recovered.log.reader(from);
            let mut tags = Vec::new();
            while reader.read_tags(100, &mut tags).expect("it reads") > 0 {}
            let expected = (from..)
                .zip(&written[from as usize..])
                .map(|(offset, bytes)| (offset, bytes.len() as u128 + 1));
            assert!(tags.iter().copied().eq(expected), "from {from}");
        }
    }

    #[test]
    fn a_reader_at_the_end_sees_each_commit_and_nothing_before_it() {
        let (mut recovered, written) = log();
        let mut reader = recovered.log.reader(written.len() as u64);
        for i in 0..200usize {
            assert!(reader.read(10, 1000).expect("it reads").range.is_empty());
            while recovered.stock.step() == Step::Worked {}
            let record = vec![i as u8; i * 97];
            append(&mut recovered, std::slice::from_ref(&record));
            let chunk = reader.read(10, 1000).expect("it reads");
            assert_eq!((chunk.records.len(), chunk.bytes(&chunk.records[0])), (1, &record[..]));
            if i % 50 == 0 {
                recovered.writer.mark_idle().expect("the disk works");
            }
        }
    }

    /// As where a segment of another log was copied into this one.
    #[test]
    fn of_a_frame_that_reaches_into_the_next_segment_only_what_comes_before_it_is_read() {
        let disk = SimulatedDisk::new(1);
        let dir = PathBuf::from("/data/wal");
        disk.create_dir_all(&dir).expect("an empty disk has room");
        for (base, records) in [(0, vec![&b"a"[..], b"b"]), (1, vec![b"c"])] {
            let salt = 7 + base;
            let size = 8192;
            let header =
                SegmentHeader { stream: Stream::Events, base, salt, size, created_micros: 0, durable: base };
            let mut bytes = Vec::new();
            segment::encode_header(&mut bytes, &header);
            let payload_bytes = records.len() as u32;
            let header = Header {
                kind: Kind::Records,
                salt,
                base,
                durable: base,
                accepted_at_micros: 0,
                records: records.len() as u32,
                payload_bytes,
            };
            let records = records.iter().map(|bytes| Record { tag: 1, crc: crc32fast::hash(bytes), bytes });
            frame::encode(&mut bytes, &header, records);
            bytes.resize(size as usize, 0);
            let file = disk.create(&dir.join(segment::segment_name(base))).expect("an empty disk has room");
            file.write_all_at(&bytes, 0).expect("an empty disk has room");
        }
        let options = Options { segment_bytes: 8192, budget_bytes: 80 << 10, ..options() };
        let recovered = recover(Arc::new(disk), options, 0, entropy(1), 0).expect("it opens");
        assert_eq!((recovered.log.durable_end(), recovered.log.next_offset()), (2, 2));
        let mut reader = recovered.log.reader(0);
        let mut read = Vec::new();
        loop {
            let chunk = reader.read(9, 999).expect("it reads");
            if chunk.range.is_empty() {
                break;
            }
            read.extend(chunk.records.iter().map(|record| (record.offset, chunk.bytes(record).to_vec())));
        }
        assert_eq!((read, reader.position()), (vec![(0, b"a".to_vec()), (1, b"c".to_vec())], 2));
        let (mut reader, mut tags) = (recovered.log.reader(0), Vec::new());
        while reader.read_tags(9, &mut tags).expect("it reads") > 0 {}
        assert_eq!((tags, reader.position()), (vec![(0, 1), (1, 1)], 2));
    }

    #[test]
    fn what_was_released_is_said_to_be_so() {
        let (recovered, written) = log();
        let mut reader = recovered.log.reader(0);
        recovered.log.release_below(written.len() as u64);
        let first = recovered.log.first_offset();
        assert!(first > 0);
        match reader.read(1, 1) {
            Err(ReadError::Released { first_offset }) => assert_eq!(first_offset, first),
            other => panic!("{other:?}"),
        }
        reader.seek(first);
        assert_eq!(reader.read(1, 1).expect("it reads").records[0].offset, first);
    }
}
