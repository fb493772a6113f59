//! Reading the records of a log that this process has not opened: of a stopped daemon, or of a
//! running one, whose files change meanwhile.
//!
//! Read-only, without a lock, on the caller's thread. What counts as the end is decided once, by a
//! scan of the last segment; what is appended later is not seen. A segment that is released and
//! used again while it is read no longer carries the salt it was found with, so none of its bytes
//! can be taken for a record; the directory is looked at again then, and either the segment is still
//! the same (it is damaged) or the position was released.

use std::io;
use std::path::{Path, PathBuf};

use super::cursor::{Bounds, Cursor, Measure, Piece};
use super::scan::{Expect, Scan, scan};
use super::segment::DATA_START;
use super::survey::{Found, Survey};
use super::{Chunk, Damage, LogError, ReadError, Stream};
use crate::disk::{Access, Disk};

/// Looks at the directory before a changing one is given up; each finds later segments.
const LOOKS: usize = 8;

/// A reader of a log's directory.
#[derive(Debug)]
pub struct OfflineReader<'a> {
    disk: &'a dyn Disk,
    dir: PathBuf,
    stream: Stream,
    survey: Survey,
    /// The segment that was the last one, with what was found in it.
    last: Option<(Found, Scan)>,
    open: Option<(Found, Cursor)>,
}

/// One look into a segment.
enum Look {
    Read(Chunk),
    /// The file is not there, or not what it was.
    Changed,
}

impl<'a> OfflineReader<'a> {
    /// Looks at the log in `dir` and decides where it ends.
    pub fn open(disk: &'a dyn Disk, dir: &Path, stream: Stream) -> Result<Self, LogError> {
        for _ in 0..LOOKS {
            let survey = Survey::new(disk, dir, stream, 0)?;
            let Some(found) = survey.last().cloned() else {
                return Ok(Self { disk, dir: dir.to_owned(), stream, survey, last: None, open: None });
            };
            let expect = Expect { salt: found.header.salt, next: found.header.base, end: u64::MAX };
            let window = match found.window(disk) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // renamed meanwhile
                result => result.map_err(|error| LogError::io("opening", &found.path, &error))?,
            };
            let scan = scan(window, expect, survey.durable())
                .map_err(|error| LogError::io("reading", &found.path, &error))?;
            let last = Some((found, scan));
            return Ok(Self { disk, dir: dir.to_owned(), stream, survey, last, open: None });
        }
        Err(LogError::Failed(format!("the log in {} changes faster than it can be looked at", dir.display())))
    }

    /// The oldest offset there was when it was opened.
    pub fn first_offset(&self) -> u64 {
        self.survey.segments.first().map_or(self.end(), |first| first.header.base)
    }

    /// The offset after the last record.
    pub fn end(&self) -> u64 {
        self.last.as_ref().map_or(0, |(_, scan)| scan.end)
    }

    /// Reads from offset `from` on: at most `max_records`, about `max_bytes`, but at least one record.
    /// An empty range means the end.
    pub fn read(&mut self, from: u64, max_records: usize, max_bytes: usize) -> Result<Chunk, ReadError> {
        let measure = Measure { records: max_records.max(1), bytes: max_bytes };
        for _ in 0..LOOKS {
            if from >= self.end() {
                return Ok(Chunk { range: from..from, ..Chunk::default() });
            }
            let index = self.survey.segments.partition_point(|found| found.header.base <= from);
            let Some(index) = index.checked_sub(1) else {
                return Err(ReadError::Released { first_offset: self.first_offset() });
            };
            let found = self.survey.segments[index].clone();
            match self.look(&found, index, from, measure)? {
                Look::Read(chunk) => return Ok(chunk),
                Look::Changed => {}
            }
        }
        Err(ReadError::Failed(format!(
            "the log in {} changes faster than it can be read",
            self.dir.display()
        )))
    }

    fn look(&mut self, found: &Found, index: usize, from: u64, measure: Measure) -> Result<Look, ReadError> {
        let io = |source| ReadError::Io { path: found.path.clone(), position: 0, source };
        let mut cursor = match self.open.take() {
            Some((open, cursor)) if open == *found && cursor.next_offset() == from => cursor,
            _ => match self.disk.open(&found.path, Access::Read) {
                Ok(file) => Cursor::new(file.into(), found.header.salt, found.header.base, from, DATA_START),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.look_again().map_err(io)?;
                    return Ok(Look::Changed);
                }
                Err(error) => return Err(io(error)),
            },
        };
        let mut piece = Piece::default();
        cursor.set_chunk(measure.bytes.max(1 << 16));
        cursor.read(self.bounds(found, index), measure, &mut piece).map_err(io)?;
        if !piece.losses.is_empty() {
            self.look_again().map_err(io)?;
            let is_here = |other: &Found| other.path == found.path && other.header.salt == found.header.salt;
            if !self.survey.segments.iter().any(is_here) {
                return Ok(Look::Changed);
            }
        }
        let damage = |loss: super::scan::Loss| Damage {
            file: found.path.clone(),
            bytes: loss.bytes,
            lost: loss.lost,
            quarantined: None,
            reason: loss.reason.to_owned(),
        };
        let range = from..cursor.next_offset();
        self.open = Some((found.clone(), cursor));
        Ok(Look::Read(Chunk {
            range,
            buffer: piece.buffer,
            records: piece.records,
            voids: piece.voids,
            damage: piece.losses.into_iter().map(damage).collect(),
        }))
    }

    /// Where a segment's records end: at the next one, or where the scan of the last one ended.
    fn bounds(&self, found: &Found, index: usize) -> Bounds {
        match &self.last {
            Some((last, scan)) if last.header.salt == found.header.salt => {
                Bounds { until: scan.end, limit: scan.position, durable: scan.durable.min(scan.end) }
            }
            _ => {
                let until = self.survey.end_of(index).unwrap_or(u64::MAX).min(self.end());
                Bounds { until, limit: found.limit(), durable: until }
            }
        }
    }

    fn look_again(&mut self) -> io::Result<()> {
        self.survey = Survey::new(self.disk, &self.dir, self.stream, 0)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::frame::Record;
    use super::super::{Options, Step, Writer, recover};
    use super::*;
    use crate::disk::SimulatedDisk;

    fn options() -> Options {
        Options {
            dir: "/data/wal".into(),
            quarantine_dir: "/data/quarantine".into(),
            stream: Stream::Events,
            segment_bytes: 16 << 10,
            budget_bytes: 160 << 10,
            spares: 1,
            min_free_disk_bytes: 0,
            owners_files: &[],
        }
    }

    fn text(offset: u64) -> String {
        format!("record {offset} {}", "x".repeat(offset as usize % 300))
    }

    /// A log under test, driven by hand.
    struct Live {
        disk: SimulatedDisk,
        open: super::super::Recovered,
    }

    impl Live {
        fn new(seed: u64) -> Self {
            let disk = SimulatedDisk::new(seed);
            let mut salt = seed;
            let entropy: super::super::Entropy = Box::new(move || {
                salt += 1;
                salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            });
            let open = recover(Arc::new(disk.clone()), options(), 0, entropy, 0).unwrap();
            Self { disk, open }
        }

        fn append(&mut self, count: u64) {
            for _ in 0..count {
                while self.open.stock.step() == Step::Worked {}
                let bytes = text(self.open.log.next_offset());
                let record =
                    Record { tag: 1, crc: crc32fast::hash(bytes.as_bytes()), bytes: bytes.as_bytes() };
                let writer: &mut Writer = &mut self.open.writer;
                writer.append(7, std::iter::once(record)).unwrap();
                writer.commit().unwrap();
            }
        }
    }

    fn read_on(reader: &mut OfflineReader<'_>, from: u64) -> Result<Vec<u64>, ReadError> {
        let mut offsets = Vec::new();
        let mut next = from;
        loop {
            let chunk = reader.read(next, 7, 1000)?;
            if chunk.range.is_empty() {
                return Ok(offsets);
            }
            assert!(chunk.damage.is_empty(), "{:?}", chunk.damage);
            for record in &chunk.records {
                assert_eq!(chunk.bytes(record), text(record.offset).as_bytes());
                offsets.push(record.offset);
            }
            next = chunk.range.end;
        }
    }

    #[test]
    fn a_running_log_is_read_from_any_offset_over_all_its_segments() {
        let mut live = Live::new(1);
        live.append(300);
        let disk = live.disk.clone();
        let mut reader = OfflineReader::open(&disk, &options().dir, Stream::Events).unwrap();
        assert_eq!(reader.end(), 300);
        for from in [0, 1, 50, 150, 299, 300, 1000] {
            assert_eq!(read_on(&mut reader, from).unwrap(), (from..300).collect::<Vec<_>>());
        }
        // What comes later is not seen; the end was decided at the beginning.
        live.append(10);
        assert_eq!(read_on(&mut reader, 290).unwrap(), (290..300).collect::<Vec<_>>());
    }

    #[test]
    fn segments_released_and_used_again_under_the_reader_are_released_and_never_damage() {
        for at in [0, 20, 60] {
            let mut live = Live::new(2);
            live.append(300);
            let disk = live.disk.clone();
            let mut reader = OfflineReader::open(&disk, &options().dir, Stream::Events).unwrap();
            let begun = reader.read(at, 3, 1000).unwrap();
            live.open.log.release_below(300);
            live.append(200);
            let first = live.open.log.first_offset();
            assert!(first > 100, "the first segments must be in use again: {first}");
            match read_on(&mut reader, begun.range.end) {
                Err(ReadError::Released { first_offset }) => assert_eq!(first_offset, first),
                other => panic!("{other:?}"),
            }
            let rest = read_on(&mut reader, first).unwrap();
            assert_eq!(rest, (first..300).collect::<Vec<_>>());
        }
    }

    #[test]
    fn damage_is_told_and_costs_only_what_it_hit() {
        let mut live = Live::new(3);
        live.append(100);
        let path = options().dir.join("00000000000000000000.seg");
        let bytes = live.disk.read_file(&path).unwrap();
        let hit = memchr::memmem::find(&bytes, b"record 20 ").unwrap();
        live.disk.overwrite(&path, hit as u64, b"R").unwrap();
        let mut reader = OfflineReader::open(&live.disk, &options().dir, Stream::Events).unwrap();
        let (mut next, mut offsets, mut lost) = (0, Vec::new(), Vec::new());
        while next < 100 {
            let chunk = reader.read(next, 1000, 1 << 20).unwrap();
            offsets.extend(chunk.records.iter().map(|record| record.offset));
            lost.extend(chunk.damage.iter().map(|damage| damage.lost.clone()));
            next = chunk.range.end;
        }
        assert_eq!(offsets, (0..100).filter(|o| *o != 20).collect::<Vec<_>>());
        assert_eq!(lost, std::slice::from_ref(&(20..21)));
    }
}
