//! Opening a log: what is on the disk, what of it counts, and where to go on.
//!
//! Runs once, on the thread that opens, and blocks. Follows R1–R10 (`docs/RELIABILITY.md`):
//!
//! ```text
//! survey       headers of all segments: who is who, what is foreign             R6 R8
//! scan         the last segment only: its end, E, damage, torn tail             R1–R5
//! set aside    copies of damaged bytes, synced                                  R10
//! begin anew   after an unclean stop: intact frames from E on into a new
//!              segment, synced under a spare's name, then named                 R9
//! ```
//!
//! Until the last step nothing on the disk has changed but copies and names of swapped files, and
//! that step happens or not: a crash anywhere leads to the same verdict again. What is wrong with
//! one file never stops the opening; an unreadable directory, a lack of descriptors and a failed
//! sync do.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::catalog::{Inventory, Resume, capacity};
use super::frame::{self, ENTRY_BYTES, Header, Kind, Record};
use super::handle::assemble;
use super::quarantine::{self, TORN_TAIL_BYTES};
use super::scan::{DAMAGED_FRAMES, ENDS_EARLY, Expect, FrameAt, Item, LOST_HEADER, Loss, Scan, UNREADABLE};
use super::scan::{Walk, scan};
use super::segment::{DATA_START, Segment, segment_name};
use super::survey::{Found, Survey};
use super::{AppendError, Entropy, Log, LogError, Options, Step, Stock, Writer};
use crate::disk::{Access, Disk, DiskFile};

/// A last segment with at most this much in it is written anew as a whole and replaced, so that a
/// process that crashes again and again does not fill the budget with almost empty segments.
const COMPACT_BYTES: u64 = 1 << 20;

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
    disk.create_dir_all(&options.dir).map_err(|e| LogError::io("creating", &options.dir, &e))?;
    let mut survey = Survey::new(&*disk, &options.dir, options.stream, options.segment_bytes)?;
    survey.foreign.retain(|foreign| !options.owners_files.contains(&foreign.name.as_str()));
    if survey.put_names_right(&*disk, &options.dir) {
        sync_dir(&*disk, &options.dir)?;
    }
    let verdict = judge(&*disk, &mut survey, known_durable)?;
    set_aside_names(&*disk, &options.dir, &mut survey, verdict.next)?;
    let mut report = report_of(&survey, &verdict);
    let (kept, losses) = tell(&*disk, &options, &survey, &verdict, &mut report);
    let plan = plan(&*disk, &options, &survey, &verdict);
    let (next_offset, resume) = match plan {
        Plan::Resume(resume) => (verdict.next, Some(resume)),
        Plan::Rewrite { from } => (from, None),
        Plan::Begin => (verdict.next, None),
    };
    let is_resumed = resume.is_some();
    let inventory = take_stock(&survey, &verdict, next_offset, resume, &kept, options.segment_bytes);
    let (log, mut writer, mut stock) = assemble(Arc::clone(&disk), options, entropy, inventory);
    for (base, loss) in &losses {
        log.shared().learn(*base, &loss.bytes, &loss.lost); // readers need not tell it again
    }
    for void in &verdict.scan.voids {
        log.shared().learn(0, &(0..0), void);
    }
    if !is_resumed {
        let last = survey.last();
        let beginning = Beginning { disk: &*disk, last, verdict: &verdict, from: next_offset, now_micros };
        report.rewritten = beginning.begin(&log, &mut writer, &mut stock)?;
    }
    report.first_offset = log.first_offset();
    report.next_offset = log.next_offset();
    report.segments = log.usage().segments;
    Ok(Recovered { log, writer, stock, report })
}

/// What all of it means.
#[derive(Debug, Default)]
struct Verdict {
    /// What stands in the last segment; empty when there is none.
    scan: Scan,
    /// E.
    durable: u64,
    /// The offset the next record gets.
    next: u64,
    /// A file under the name of the segment to come that may be used for it, or replaced by it.
    hollow: Option<Found>,
    /// The process before stopped in order, and nothing was found since.
    is_clean: bool,
    /// Offsets lost without a segment to tell of them.
    gone: Vec<(PathBuf, Range<u64>)>,
}

/// Scans the last segment and decides E and where to go on.
fn judge(disk: &dyn Disk, survey: &mut Survey, known_durable: u64) -> Result<Verdict, LogError> {
    let mut verdict = Verdict { durable: known_durable.max(survey.durable()), ..Verdict::default() };
    if let Some(last) = survey.last() {
        verdict.scan = scan_last(disk, last, verdict.durable)?;
        verdict.durable = verdict.scan.durable;
    }
    let has_last = survey.last().is_some();
    let end = if has_last { verdict.scan.end } else { verdict.durable };
    let tail_was_written = verdict.scan.tail.was_written();
    for (base, lost) in survey.gone_before_first() {
        verdict.gone.push((PathBuf::from(segment_name(base)), lost));
    }
    // R6: a name is given only to a segment before which everything is durable. Where that cannot
    // be, the file is none of ours.
    for found in std::mem::take(&mut survey.hollow) {
        let base = found.header.base;
        let has_place = survey.last().is_none_or(|last| base > last.header.base);
        if has_place && (base <= end.max(verdict.durable) || tail_was_written || !has_last) {
            verdict.durable = verdict.durable.max(base);
            verdict.hollow = Some(found);
        } else {
            let name = found.path.file_name().map(|name| name.to_string_lossy().into_owned());
            let reason = "it holds nothing of a segment".to_owned();
            survey.ignore(name.unwrap_or_default(), reason, Some(base));
        }
    }
    verdict.next = end.max(verdict.durable);
    verdict.gone.extend(unreadable_at_end(survey, &mut verdict.next, verdict.durable));
    verdict.hollow = verdict.hollow.take().filter(|found| found.header.base == verdict.next);
    verdict.is_clean = verdict.scan.clean
        && verdict.next == verdict.scan.end
        && !tail_was_written
        && verdict.hollow.is_none();
    Ok(verdict)
}

/// Scans the last segment. A file that fails to open now is as good as empty.
fn scan_last(disk: &dyn Disk, last: &Found, durable: u64) -> Result<Scan, LogError> {
    let expect = Expect { salt: last.header.salt, next: last.header.base, end: u64::MAX };
    let window = last.window(disk).map_err(|e| LogError::io("opening", &last.path, &e))?;
    scan(window, expect, durable).map_err(|e| LogError::io("reading", &last.path, &e))
}

/// Files at the end that cannot be read: offsets are never given again, so the next one moves beyond
/// all that such a file can have held. Returns what was lost where no segment tells of it.
fn unreadable_at_end(survey: &Survey, next: &mut u64, durable: u64) -> Vec<(PathBuf, Range<u64>)> {
    let mut gone = Vec::new();
    for base in survey.unreadable.iter().copied().filter(|base| *base >= survey.durable()) {
        let segment_bytes = survey.last().map_or(1 << 30, |last| last.header.size);
        *next = (*next).max(base.saturating_add(segment_bytes / ENTRY_BYTES as u64));
        if survey.segments.is_empty() && base < durable {
            gone.push((PathBuf::from(segment_name(base)), base..durable));
        }
    }
    gone
}

/// Moves what is in the way of segments to come aside, inside the directory, and says so.
fn set_aside_names(disk: &dyn Disk, dir: &Path, survey: &mut Survey, next: u64) -> Result<(), LogError> {
    let mut moved = false;
    for foreign in &mut survey.foreign {
        let in_the_way = foreign.base.is_some_and(|base| base >= next && foreign.name == segment_name(base));
        if in_the_way {
            let aside = format!("foreign-{}", foreign.name);
            if disk.rename(&dir.join(&foreign.name), &dir.join(&aside)).is_ok() {
                foreign.reason = format!("{}; renamed to {aside}", foreign.reason);
                moved = true;
            }
        }
        tracing::warn!(
            file = %dir.join(&foreign.name).display(),
            reason = foreign.reason,
            "ignored in the log's directory"
        );
    }
    if moved { sync_dir(disk, dir) } else { Ok(()) }
}

fn report_of(survey: &Survey, verdict: &Verdict) -> Report {
    Report {
        clean_stop: verdict.is_clean,
        known_durable: verdict.durable,
        voids: verdict.scan.voids.clone(),
        foreign: survey.foreign.iter().map(|foreign| foreign.name.clone()).collect(),
        ..Report::default()
    }
}

/// Tells of all damage and of the torn tail, their bytes set aside before. Returns the bases of
/// segments whose files must be kept, and what was told of which segment.
fn tell(
    disk: &dyn Disk,
    options: &Options,
    survey: &Survey,
    verdict: &Verdict,
    report: &mut Report,
) -> (Vec<u64>, Vec<(u64, Loss)>) {
    let mut losses = Vec::new();
    for found in &survey.segments {
        // In the last segment a header of which one copy is wrong may be a write that was torn
        // before anything in the segment was promised.
        let is_torn = survey.last() == Some(found) && verdict.scan.end == found.header.base;
        if let Some(bytes) = found.damaged_header.clone().filter(|_| !is_torn) {
            let base = found.header.base;
            losses.push((found, Loss { bytes, lost: base..base, reason: LOST_HEADER }));
        }
    }
    if let Some(last) = survey.last() {
        losses.extend(verdict.scan.losses.iter().map(|loss| (last, loss.clone())));
        if verdict.scan.end < verdict.durable {
            let tail = &verdict.scan.tail;
            let bytes = tail.bytes.start..tail.non_zero_end.max(tail.bytes.start);
            let reason = if bytes.is_empty() { ENDS_EARLY } else { DAMAGED_FRAMES };
            losses.push((last, Loss { bytes, lost: verdict.scan.end..verdict.durable, reason }));
        } else if verdict.scan.tail.was_written() {
            report.torn_tail = Some(tell_torn_tail(disk, options, last, &verdict.scan));
        }
    }
    let mut kept = Vec::new();
    for (found, loss) in &losses {
        let (damage, copied) = quarantine::tell(disk, options, &found.path, found.header.salt, loss);
        report.damage.push(damage);
        if !copied {
            kept.push(found.header.base);
        }
    }
    for (path, lost) in &verdict.gone {
        let loss = Loss { bytes: 0..0, lost: lost.clone(), reason: UNREADABLE };
        report.damage.push(quarantine::tell(disk, options, &options.dir.join(path), 0, &loss).0);
    }
    let known = losses.into_iter().map(|(found, loss)| (found.header.base, loss));
    (kept, known.collect())
}

fn tell_torn_tail(disk: &dyn Disk, options: &Options, last: &Found, scan: &Scan) -> TornTail {
    let position = scan.tail.bytes.start;
    let end = scan.tail.non_zero_end.min(position + TORN_TAIL_BYTES).max(position);
    let copy = quarantine::keep(disk, options, &last.path, last.header.salt, position..end);
    tracing::info!(
        file = %last.path.display(),
        position,
        bytes = scan.tail.non_zero_end.saturating_sub(position),
        "a torn tail was cut; nothing in it was acknowledged"
    );
    TornTail { file: last.path.clone(), position, non_zero_bytes: scan.tail.non_zero, quarantined: copy.ok() }
}

/// Where the log goes on.
enum Plan {
    /// In the last segment, which was closed in order.
    Resume(Resume),
    /// In a new segment that begins with everything the last one holds from this offset on.
    Rewrite { from: u64 },
    /// In a new segment at the next offset.
    Begin,
}

fn plan(disk: &dyn Disk, options: &Options, survey: &Survey, verdict: &Verdict) -> Plan {
    let Some(last) = survey.last() else { return Plan::Begin };
    if verdict.is_clean
        && last.len >= last.header.size
        && let Ok(file) = disk.open(&last.path, Access::ReadWrite)
    {
        let position = verdict.scan.position;
        return Plan::Resume(Resume { file: file.into(), position, is_marked_clean: true });
    }
    let scan = &verdict.scan;
    if scan.end < verdict.next || scan.end == last.header.base {
        return Plan::Begin;
    }
    let used = scan.position - DATA_START;
    let replaces = last.is_well_named() && scan.losses.is_empty();
    let from = if replaces && used <= COMPACT_BYTES.min(capacity(options.segment_bytes) / 2) {
        last.header.base
    } else {
        match first_unsure(disk, last, verdict) {
            Some(from) => from,
            None => return Plan::Begin,
        }
    };
    let fits =
        used + (scan.voids.len() as u64 + 1) * frame::HEADER_BYTES as u64 <= capacity(options.segment_bytes);
    if from == scan.end || !fits || (from == last.header.base && !replaces) {
        return Plan::Begin;
    }
    Plan::Rewrite { from }
}

/// The end of the last frame that E covers: what follows is not known to be durable.
fn first_unsure(disk: &dyn Disk, last: &Found, verdict: &Verdict) -> Option<u64> {
    let mut walk = walk(disk, last, &verdict.scan).ok()?;
    let mut from = last.header.base;
    while let Some(item) = walk.next().ok()? {
        if let Item::Frame(frame, _) = item {
            if frame.header.base >= verdict.durable && frame.header.next_offset() > from {
                break;
            }
            from = frame.header.next_offset().max(from);
        }
    }
    Some(from.min(verdict.scan.end))
}

/// Once more over the frames of the last segment, up to where a scan found its end.
fn walk(disk: &dyn Disk, last: &Found, scan: &Scan) -> io::Result<Walk> {
    let expect = Expect { salt: last.header.salt, next: last.header.base, end: scan.end };
    Ok(Walk::new(last.window(disk)?, DATA_START, expect, false))
}

/// What the open log is made from.
fn take_stock(
    survey: &Survey,
    verdict: &Verdict,
    next_offset: u64,
    resume: Option<Resume>,
    kept: &[u64],
    segment_bytes: u64,
) -> Inventory {
    let mut spares = survey.spares.clone();
    let mut segments = Vec::new();
    for found in survey.segments.iter().chain(&verdict.hollow) {
        // A segment without a record is used for the one that begins, so that crash after crash
        // takes no more files. One of another size stays until it is replaced.
        let is_empty = resume.is_none() && found.header.base == verdict.next && next_offset == verdict.next;
        let is_kept = kept.contains(&found.header.base);
        if is_empty && !is_kept && found.is_well_named() && found.len == segment_bytes {
            spares.insert(0, found.as_file());
            continue;
        }
        let segment = Segment::new(found.header, found.path.clone(), found.allocated, found.limit());
        if is_kept {
            segment.keep();
        }
        segments.push(segment);
    }
    let next_spare_number = survey.next_spare_number;
    Inventory { segments, resume, spares, next_spare_number, next_offset }
}

/// What the last step of recovery works on.
struct Beginning<'a> {
    disk: &'a dyn Disk,
    last: Option<&'a Found>,
    verdict: &'a Verdict,
    /// Everything the last segment holds from here on is written anew.
    from: u64,
    now_micros: i64,
}

impl Beginning<'_> {
    /// Begins a new segment and returns how many records were written anew into it. Without room for
    /// one the log opens all the same: what was found is synced and can be read, and the writer
    /// begins a segment by itself once there is room.
    fn begin(&self, log: &Log, writer: &mut Writer, stock: &mut Stock) -> Result<u64, LogError> {
        while log.usage().spares == 0 && stock.step() == Step::Worked {}
        log.shared().check()?;
        let next = self.verdict.next;
        if self.from == next {
            self.sync_last()?;
        }
        match self.rewrite(writer).and_then(|rewritten| writer.begin(self.now_micros).map(|()| rewritten)) {
            Ok(rewritten) => {
                writer.mark_idle()?; // so that E covers what was written anew
                Ok(rewritten)
            }
            Err(AppendError::Failed(error)) => Err(error),
            Err(AppendError::NoRoom(reason)) => {
                tracing::warn!(%reason, "the log is open for reading; appends wait for a new segment");
                self.sync_last()?;
                writer.go_on_at(next);
                Ok(0)
            }
            Err(error @ AppendError::TooLarge { .. }) => Err(LogError::Failed(error.to_string())),
        }
    }

    /// Makes durable what the last segment shows, where it does not move to a new one: its name as
    /// well, which a process killed between rename and sync leaves in the cache only.
    fn sync_last(&self) -> Result<(), LogError> {
        let Some(last) = self.last.filter(|_| self.verdict.scan.frames > 0) else { return Ok(()) };
        let file = self.disk.open(&last.path, Access::ReadWrite);
        let file = file.map_err(|e| LogError::io("opening", &last.path, &e))?;
        self.write_again(last, &*file).map_err(|e| LogError::io("writing again", &last.path, &e))?;
        file.sync_data().map_err(|e| LogError::io("syncing", &last.path, &e))?;
        sync_dir(self.disk, last.path.parent().unwrap_or(Path::new("")))
    }

    /// Writes every frame beyond E over itself. If a sync has failed before, the page cache may show
    /// bytes that are not on the disk and that it takes for clean: a sync alone would bring nothing there.
    ///
    /// Where a void stands before such a frame, it is written down in its place, as it would be in a
    /// new segment: once E has moved on it could not be told from damage. Its place is cleared and synced
    /// before: a frame that the next power loss leaves with torn bytes behind it would look damaged.
    fn write_again(&self, last: &Found, file: &dyn DiskFile) -> io::Result<()> {
        let Verdict { durable, ref scan, .. } = *self.verdict;
        let mut voids: Vec<(Range<u64>, Range<u64>)> = Vec::new();
        let mut void = |bytes: Range<u64>, void: Range<u64>| {
            // Where there is no room for its header, no frame ever stood.
            if !void.is_empty() && bytes.end - bytes.start >= frame::HEADER_BYTES as u64 {
                voids.push((bytes, void));
            }
        };
        let mut walk = walk(self.disk, last, scan)?;
        while let Some(item) = walk.next()? {
            match item {
                Item::Frame(frame, _) if frame.header.next_offset() <= durable => {}
                Item::Frame(frame, _) if frame.is_whole(&mut walk.window)? => {
                    let shown = walk.window.share(frame.position, frame.header.frame_bytes() as usize)?;
                    let mut bytes = shown.to_vec();
                    bytes[..frame.prefix.len()].copy_from_slice(&frame.prefix);
                    file.write_all_at(&bytes, frame.position)?;
                }
                Item::Frame(frame, _) => {
                    let offsets = frame.header.offsets();
                    if offsets.start >= durable && offsets.end <= scan.end {
                        void(frame.position..frame.end(), offsets);
                    }
                }
                Item::Gap(gap) if gap.offsets.start >= durable && gap.offsets.end <= scan.end => {
                    void(gap.bytes, gap.offsets);
                }
                Item::Gap(_) | Item::Tail(_) => {}
            }
        }
        if voids.is_empty() {
            return Ok(());
        }
        for (bytes, _) in &voids {
            file.write_all_at(&vec![0; (bytes.end - bytes.start) as usize], bytes.start)?;
        }
        file.sync_data()?;
        for (bytes, void) in voids {
            let mut frame = Vec::new();
            frame::encode(&mut frame, &Header::void(last.header.salt, void, durable), std::iter::empty());
            file.write_all_at(&frame, bytes.start)?;
        }
        Ok(())
    }

    fn rewrite(&self, writer: &mut Writer) -> Result<u64, AppendError> {
        let scan = &self.verdict.scan;
        let Some(last) = self.last.filter(|_| self.from < self.verdict.next) else { return Ok(0) };
        let reading = |e| LogError::io("reading", &last.path, &e);
        let mut walk = walk(self.disk, last, scan).map_err(reading)?;
        let mut rewritten = 0;
        while let Some(item) = walk.next().map_err(reading)? {
            let Item::Frame(frame, _) = item else { continue };
            let header = frame.header;
            let counts = header.kind == Kind::Records && header.base >= self.from && header.base < scan.end;
            // Above E a frame counts whole or not at all; below it nothing damaged is written anew.
            if counts && frame.is_whole(&mut walk.window).map_err(reading)? {
                writer.skip_to(header.base, self.now_micros)?;
                let payload = frame.position + header.prefix_bytes();
                let payload = walk.window.share(payload, header.payload_bytes as usize).map_err(reading)?;
                writer.append(header.accepted_at_micros, records(&frame, &payload).into_iter())?;
                rewritten += header.records as u64;
            }
        }
        writer.skip_to(scan.end, self.now_micros)?;
        Ok(rewritten)
    }
}

/// The records of a whole frame as they are appended.
fn records<'a>(frame: &FrameAt, payload: &'a [u8]) -> Vec<Record<'a>> {
    let start = frame.position + frame.header.prefix_bytes();
    let of = |bytes: Range<u64>| &payload[(bytes.start - start) as usize..(bytes.end - start) as usize];
    frame
        .records()
        .map(|record| {
            let bytes = of(record.bytes());
            Record { tag: record.entry.tag, crc: crc32fast::hash(bytes), bytes }
        })
        .collect()
}

pub(super) fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<(), LogError> {
    disk.sync_dir(dir).map_err(|e| LogError::io("syncing directory", dir, &e))
}

#[cfg(test)]
pub(super) mod tests;
