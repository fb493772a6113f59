//! A read-only look at a log's directory, live or stopped, for `wal inspect` and `wal verify`.
//!
//! On the threads it is given, a segment each at a time, without a lock, without writing. Judges as recovery does, by E as far as
//! the log itself and the caller tell it. A running daemon releases segments and writes while this looks: a segment
//! that is no longer what it was is left out, and damage in the last one counts when it is there at a
//! second look.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::scan::{DAMAGED_FRAMES, ENDS_EARLY, Expect, LOST_HEADER, Loss, Scan, UNREADABLE, scan};
use super::segment::segment_name;
use super::survey::{Found, Survey};
use super::{Damage, LogError, Stream, TornTail};
use crate::disk::Disk;

/// Looks at a last segment that somebody may be writing, before what is found is believed.
const LOOKS: usize = 3;

/// How much an inspection reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Headers of segments only.
    Headers,
    /// Every frame and every record.
    Everything,
}

/// What an inspection found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Segments that hold, or would hold, records, in offset order.
    pub segments: Vec<SegmentInfo>,
    /// Spare files.
    pub spares: u64,
    /// The oldest offset held.
    pub first_offset: u64,
    /// The offset after the last intact record.
    pub next_offset: u64,
    /// E: every offset below it was synced, for all that is known.
    pub known_durable: u64,
    /// Offsets without a record that nobody was promised.
    pub voids: Vec<Range<u64>>,
    /// Damage to what was durable. A log is intact when this is empty.
    pub damage: Vec<Damage>,
    /// The unacknowledged tail, if there is one.
    pub torn_tail: Option<TornTail>,
    /// Names in the directory that are none of ours.
    pub foreign: Vec<String>,
}

/// One segment, as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its file.
    pub file: PathBuf,
    /// Its first offset.
    pub base: u64,
    /// The offset after its last; known without a scan for all but the last segment.
    pub end: Option<u64>,
    /// When it was begun, in microseconds since the Unix epoch.
    pub created_micros: i64,
    /// The file's length.
    pub bytes: u64,
    /// Bytes in use; known after a scan.
    pub used_bytes: Option<u64>,
    /// Frames; known after a scan.
    pub frames: Option<u64>,
    /// Records; known after a scan.
    pub records: Option<u64>,
}

/// Looks at the log in `dir` without changing anything. `known_durable` is what is known about E from
/// elsewhere, 0 if nothing; of a running log it must have been learned before. `progress` is told how
/// many bytes were read, out of how many; it may be called from any of the `threads`.
pub fn inspect(
    disk: &dyn Disk,
    dir: &Path,
    stream: Stream,
    depth: Depth,
    known_durable: u64,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Inspection, LogError> {
    let survey = Survey::new(disk, dir, stream, 0)?;
    let mut found = Inspection {
        spares: survey.spares.len() as u64,
        known_durable: survey.durable().max(known_durable),
        foreign: survey.foreign.iter().map(|foreign| foreign.name.clone()).collect(),
        ..Inspection::default()
    };
    let hollow = survey.hollow.iter().filter_map(|found| found.path.file_name());
    found.foreign.extend(hollow.map(|name| name.to_string_lossy().into_owned()));
    for (base, before) in survey.gone_before_first() {
        found.damage.push(damage(&dir.join(segment_name(base)), loss(0..0, before, UNREADABLE)));
    }
    let looks = looks(disk, &survey, depth, found.known_durable, threads, progress);
    for (index, (segment, look)) in survey.segments.iter().zip(looks).enumerate() {
        let end = survey.end_of(index);
        match look.transpose()? {
            Some(Look::Gone) => continue, // released since the directory was listed
            Some(Look::Unreadable) => {
                let to = end.unwrap_or(found.known_durable).max(segment.header.base);
                let lost = segment.header.base..to;
                found.damage.push(damage(&segment.path, loss(0..0, lost, UNREADABLE)));
                found.add(segment, end, None);
            }
            Some(Look::Scanned(scan)) => found.add(segment, end, Some(scan)),
            None => found.add(segment, end, None),
        }
    }
    found.first_offset = found.segments.first().map_or(found.known_durable, |first| first.base);
    found.next_offset = found.next_offset.max(found.known_durable);
    Ok(found)
}

impl Inspection {
    fn add(&mut self, segment: &Found, end: Option<u64>, scan: Option<Scan>) {
        if let Some(bytes) = segment.damaged_header.clone() {
            let base = segment.header.base;
            let is_new = end.is_none() && scan.as_ref().is_some_and(|scan| scan.frames == 0);
            if !is_new {
                self.damage.push(damage(&segment.path, loss(bytes, base..base, LOST_HEADER)));
            }
        }
        self.segments.push(SegmentInfo {
            file: segment.path.clone(),
            base: segment.header.base,
            end: end.or(scan.as_ref().map(|scan| scan.end)),
            created_micros: segment.header.created_micros,
            bytes: segment.len,
            used_bytes: scan.as_ref().map(|scan| scan.position),
            frames: scan.as_ref().map(|scan| scan.frames),
            records: scan.as_ref().map(|scan| scan.records),
        });
        let Some(scan) = scan else { return };
        if end.is_none() {
            self.known_durable = self.known_durable.max(scan.durable);
        }
        self.next_offset = self.next_offset.max(scan.end);
        let should_end = end.unwrap_or(self.known_durable);
        self.damage.extend(scan.losses.into_iter().map(|loss| damage(&segment.path, loss)));
        self.voids.extend(scan.voids);
        let tail = scan.tail;
        if scan.end < should_end {
            let bytes = tail.bytes.start..tail.non_zero_end.max(tail.bytes.start);
            let reason = if bytes.is_empty() { ENDS_EARLY } else { DAMAGED_FRAMES };
            self.damage.push(damage(&segment.path, loss(bytes, scan.end..should_end, reason)));
        } else if end.is_none() && tail.was_written() {
            let (position, non_zero_bytes) = (tail.bytes.start, tail.non_zero);
            let file = segment.path.clone();
            self.torn_tail = Some(TornTail { file, position, non_zero_bytes, quarantined: None });
        }
    }
}

/// A look into every segment that `depth` asks for, in their order. None depends on another: only the
/// last is judged by E, and the others end where the next begins.
fn looks(
    disk: &dyn Disk,
    survey: &Survey,
    depth: Depth,
    durable: u64,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Vec<Option<Result<Look, LogError>>> {
    let segments = &survey.segments;
    let first = if depth == Depth::Everything { 0 } else { segments.len().saturating_sub(1) };
    let total = segments[first..].iter().map(Found::limit).sum();
    let next = AtomicUsize::new(first);
    let done = Mutex::new(0);
    let results = Mutex::new(BTreeMap::new());
    progress(0, total);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(segment) = segments.get(index) else { break };
            let look = look_into(disk, segment, survey.end_of(index), durable);
            results.lock().unwrap_or_else(PoisonError::into_inner).insert(index, look);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            *done += segment.limit();
            progress(*done, total);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, segments.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    (0..segments.len()).map(|index| results.remove(&index)).collect()
}

/// What a look into a segment gave.
enum Look {
    Scanned(Scan),
    /// The file is not, or no longer, the segment it was found as.
    Gone,
    /// The file is there and cannot be opened.
    Unreadable,
}

/// Scans a segment. What looks damaged is looked at again: of a running log the segment may have been
/// released meanwhile, or its last frames may have been half-written.
fn look_into(disk: &dyn Disk, segment: &Found, end: Option<u64>, durable: u64) -> Result<Look, LogError> {
    let durable = end.unwrap_or(durable);
    let expect =
        Expect { salt: segment.header.salt, next: segment.header.base, end: end.unwrap_or(u64::MAX) };
    let reading = |e: io::Error| LogError::io("reading", &segment.path, &e);
    let mut before = None;
    for _ in 0..LOOKS {
        let window = match segment.window(disk) {
            Ok(window) => window,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Look::Gone),
            Err(_) => return Ok(Look::Unreadable),
        };
        let scan = scan(window, expect, durable).map_err(reading)?;
        let is_whole = scan.losses.is_empty() && scan.end >= end.unwrap_or(scan.durable);
        if is_whole || before.as_ref() == Some(&scan) {
            return Ok(Look::Scanned(scan));
        }
        if !segment.is_still_there(disk) {
            return Ok(Look::Gone);
        }
        before = Some(scan);
    }
    Ok(before.map_or(Look::Gone, Look::Scanned))
}

fn loss(bytes: Range<u64>, lost: Range<u64>, reason: &'static str) -> Loss {
    Loss { bytes, lost, reason }
}

fn damage(file: &Path, loss: Loss) -> Damage {
    let reason = loss.reason.to_owned();
    Damage { file: file.to_owned(), bytes: loss.bytes, lost: loss.lost, quarantined: None, reason }
}

#[cfg(test)]
mod tests {
    use super::super::recovery::tests::{End, dir, disk_with_log, segment_files, used};
    use super::super::segment::DATA_START;
    use super::*;
    use crate::disk::SimulatedDisk;

    fn look(disk: &SimulatedDisk) -> Inspection {
        look_knowing(disk, 0)
    }

    fn look_knowing(disk: &SimulatedDisk, known: u64) -> Inspection {
        let before = (disk.operations(), disk.files());
        let told = Mutex::new(Vec::new());
        let with = |threads| {
            inspect(disk, &dir(), Stream::Events, Depth::Everything, known, threads, &|done, of| {
                told.lock().unwrap().push((done, of))
            })
        };
        let found = with(1);
        assert_eq!(found.as_ref().ok(), with(3).as_ref().ok(), "threads change nothing");
        assert_eq!((disk.operations(), disk.files()), before, "nothing is written");
        let (done, of) = *told.lock().unwrap().last().expect("progress is told");
        assert_eq!(done, of);
        found.expect("it can be looked at")
    }

    fn lost(damage: &[Damage]) -> Vec<(u64, u64)> {
        damage.iter().map(|damage| (damage.lost.start, damage.lost.end)).collect()
    }

    #[test]
    fn an_intact_log_is_told_to_be_intact_live_and_stopped() {
        for end in [End::Clean, End::Idle, End::Killed] {
            let (disk, written) = disk_with_log(end);
            let found = look(&disk);
            assert_eq!((found.damage, found.torn_tail, found.voids), (vec![], None, vec![]), "{end:?}");
            assert_eq!((found.first_offset, found.next_offset), (0, written.len() as u64));
            let records: u64 = found.segments.iter().filter_map(|segment| segment.records).sum();
            assert_eq!((found.segments.len(), records), (3, written.len() as u64));
            let headers =
                inspect(&disk, &dir(), Stream::Events, Depth::Headers, 0, 1, &|_, _| {}).expect("it can");
            let ends =
                |found: &Inspection| found.segments.iter().map(|s| (s.base, s.end)).collect::<Vec<_>>();
            assert_eq!(ends(&headers), ends(&look(&disk)));
            assert_eq!(headers.segments[0].records, None);
        }
    }

    #[test]
    fn a_wrong_byte_is_told_with_the_record_it_costs() {
        let (disk, written) = disk_with_log(End::Idle);
        for path in segment_files(&disk) {
            for at in (0..used(&disk, &path)).step_by(13) {
                let disk = disk.kill();
                let byte = disk.read_file(&path).unwrap()[at as usize];
                disk.overwrite(&path, at, &[!byte]).unwrap();
                let found = look(&disk);
                let lost: u64 = found.damage.iter().map(|damage| damage.lost.end - damage.lost.start).sum();
                let records: u64 = found.segments.iter().filter_map(|segment| segment.records).sum();
                assert!(lost <= 1, "{} byte {at}: {:?}", path.display(), found.damage);
                assert_eq!(records + lost, written.len() as u64, "{} byte {at}", path.display());
            }
        }
    }

    #[test]
    fn a_missing_segment_and_a_cut_one_are_told_with_their_offsets() {
        let (disk, written) = disk_with_log(End::Idle);
        let files = segment_files(&disk);
        let bases: Vec<u64> = look(&disk).segments.iter().map(|segment| segment.base).collect();
        let missing = disk.kill();
        missing.remove_file(&files[1]).unwrap();
        let damage = look(&missing).damage;
        assert_eq!(lost(&damage), [(bases[1], bases[2])]);
        let cut = disk.kill();
        cut.truncate(&files[0], 0).unwrap();
        let damage = look(&cut).damage;
        assert_eq!(lost(&damage), [(0, bases[1])]);
        assert_eq!(look(&disk).next_offset, written.len() as u64);
    }

    #[test]
    fn a_tail_that_is_lost_without_a_trace_is_told_to_who_knows_of_it_from_elsewhere() {
        let (disk, written) = disk_with_log(End::Killed);
        let last = segment_files(&disk).pop().unwrap();
        let zeros = vec![0; (used(&disk, &last) - DATA_START) as usize];
        disk.overwrite(&last, DATA_START, &zeros).unwrap();
        let found = look(&disk);
        assert_eq!(found.damage, []);
        let all = written.len() as u64;
        let known = look_knowing(&disk, all);
        assert_eq!(lost(&known.damage), [(found.next_offset, all)]);
        assert_eq!((known.next_offset, known.known_durable), (all, all));
    }
}
