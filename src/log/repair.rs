//! Makes of a damaged log one that verifies, for `wal repair`: nothing intact is lost, what is lost is void.
//!
//! | damage | repair |
//! | --- | --- |
//! | a segment with damaged bytes or missing frames, or that ends before the next one begins | written anew under another salt: every intact record, and a void for each gap |
//! | a file under a segment's name in which nothing of a segment is found | copied into quarantine and removed; the segment before it, if there is one, ends early |
//! | a file that cannot be opened | left: what it holds may not be lost |
//!
//! Nobody may have the log open, and it was closed in order, so that all of it is durable; the caller
//! has made durable elsewhere what is lost, because the log itself forgets it here. A segment is written into
//! a spare, synced, and put over the original, a copy of which is in quarantine by then (R10). So a crash
//! leaves either of the two under the name, and perhaps a spare more: repairing again does the rest. An error
//! ends the repair like a crash. Blocks on the disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::copy::fill;
use super::frame::{self, Header, Kind, Record};
use super::inspect::{Depth, inspect};
use super::quarantine;
use super::recovery::sync_dir;
use super::scan::{Expect, FrameAt, Item, RecordAt, UNREADABLE, Walk};
use super::segment::{DATA_START, SegmentHeader, encode_header, parse_segment_name, spare_name};
use super::survey::{Found, Survey};
use super::{Damage, Entropy, LogError, Options};
use crate::disk::{Disk, DiskFile};

/// Frames are gathered up to this size before they are written.
const WRITE_BYTES: usize = 1 << 20;
/// Segments are a multiple of this.
const PAGE_BYTES: u64 = 4096;

/// What is done about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is written anew: what is intact, and a void for what is not.
    Rewrite,
    /// It holds nothing of a segment and goes into quarantine.
    SetAside,
    /// Nothing: it cannot be opened, so nobody knows what is in it.
    Leave,
}

/// One file of the log to be repaired, or repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub damage: Vec<Damage>,
    /// What is done about it.
    pub action: Action,
    /// Where the file as it was is kept, once it is done.
    pub quarantined: Option<PathBuf>,
}

/// What there is to repair, without doing it; empty exactly when the log verifies. `known_durable`,
/// `threads` and `progress` are those of [`inspect`].
pub fn plan(
    disk: &dyn Disk,
    options: &Options,
    known_durable: u64,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<Repair>, LogError> {
    Ok(Plan::new(disk, options, known_durable, threads, progress)?.repairs)
}

/// Does what [`plan`] says, and returns what was done.
pub fn repair(
    disk: &dyn Disk,
    options: &Options,
    known_durable: u64,
    entropy: &mut Entropy,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<Repair>, LogError> {
    let Plan { mut repairs, survey, durable } = Plan::new(disk, options, known_durable, threads, progress)?;
    // First what stands for nothing: until the segment before it is written anew, that one tells of the loss.
    for repair in repairs.iter_mut().filter(|repair| repair.action == Action::SetAside) {
        if let Some(hollow) = survey.hollow.iter().find(|found| found.path == repair.file) {
            repair.quarantined = Some(set_aside(disk, options, hollow)?);
        }
    }
    let mut spare_number = survey.next_spare_number;
    for repair in repairs.iter_mut().filter(|repair| repair.action == Action::Rewrite) {
        if let Some(index) = survey.segments.iter().position(|found| found.path == repair.file) {
            let end = survey.end_of(index);
            let rewrite = Rewrite {
                disk,
                options,
                found: &survey.segments[index],
                expect_end: end.unwrap_or(u64::MAX),
                end: end.unwrap_or(durable),
                salt: entropy().max(1), // zero is what an unwritten header would have
            };
            let spare = options.dir.join(spare_name(spare_number));
            repair.quarantined = Some(rewrite.replace(&spare)?);
            spare_number += 1;
        }
    }
    Ok(repairs)
}

/// What is to be done, and on which files.
struct Plan {
    repairs: Vec<Repair>,
    survey: Survey,
    /// E.
    durable: u64,
}

impl Plan {
    fn new(
        disk: &dyn Disk,
        options: &Options,
        known_durable: u64,
        threads: usize,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, LogError> {
        let (dir, stream) = (&options.dir, options.stream);
        let found = inspect(disk, dir, stream, Depth::Everything, known_durable, threads, progress)?;
        let survey = Survey::new(disk, dir, stream, options.segment_bytes)?;
        let mut damaged: BTreeMap<PathBuf, Vec<Damage>> = BTreeMap::new();
        for damage in found.damage {
            damaged.entry(damage.file.clone()).or_default().push(damage);
        }
        if !damaged.is_empty() {
            // Where the segment before one of these ends early, they are why.
            for path in survey.silent(dir) {
                damaged.entry(path).or_default();
            }
        }
        let repairs = damaged.into_iter().filter_map(|(file, damage)| {
            let action = action(&survey, &file, &damage)?;
            Some(Repair { file, damage, action, quarantined: None })
        });
        Ok(Self { repairs: repairs.collect(), durable: found.known_durable, survey })
    }
}

/// What can be done about a file; `None` when a running daemon has released it since.
fn action(survey: &Survey, file: &Path, damage: &[Damage]) -> Option<Action> {
    if survey.segments.iter().any(|found| found.path == file) {
        let is_unreadable = damage.iter().any(|damage| damage.reason == UNREADABLE);
        return Some(if is_unreadable { Action::Leave } else { Action::Rewrite });
    }
    if survey.hollow.iter().any(|found| found.path == file) {
        return Some(Action::SetAside);
    }
    let base = parse_segment_name(file.file_name()?.to_str()?)?;
    survey.unreadable.contains(&base).then_some(Action::Leave)
}

fn set_aside(disk: &dyn Disk, options: &Options, hollow: &Found) -> Result<PathBuf, LogError> {
    let kept = keep(disk, options, hollow)?;
    disk.remove(&hollow.path).map_err(|e| LogError::io("removing", &hollow.path, &e))?;
    sync_dir(disk, &options.dir)?;
    Ok(kept)
}

fn keep(disk: &dyn Disk, options: &Options, found: &Found) -> Result<PathBuf, LogError> {
    quarantine::keep_file(disk, options, &found.path, found.header.salt, found.len)
        .map_err(|e| LogError::io("copying into quarantine", &found.path, &e))
}

/// One segment to be written anew.
struct Rewrite<'a> {
    disk: &'a dyn Disk,
    options: &'a Options,
    found: &'a Found,
    /// No record of it has this offset or a higher one, for all that is known.
    expect_end: u64,
    /// Up to here every offset is to have a record or be void.
    end: u64,
    salt: u64,
}

impl Rewrite<'_> {
    /// Writes the segment into a new file at `spare`, puts that in its place, and returns where the
    /// original is kept.
    fn replace(&self, spare: &Path) -> Result<PathBuf, LogError> {
        let original = &self.found.path;
        let kept = keep(self.disk, self.options, self.found)?;
        if let Err(e) = self.write(spare) {
            let _ = self.disk.remove(spare); // left, it is a spare like others
            return Err(LogError::io("writing anew", original, &e));
        }
        self.disk.replace(spare, original).map_err(|e| LogError::io("replacing", original, &e))?;
        sync_dir(self.disk, &self.options.dir)?;
        Ok(kept)
    }

    fn write(&self, to: &Path) -> io::Result<()> {
        let old = self.found.header;
        let expect = Expect { salt: old.salt, next: old.base, end: self.expect_end };
        let mut walk = Walk::new(self.found.window(self.disk)?, DATA_START, expect, true);
        let file = self.disk.create(to)?;
        let mut copy = SegmentCopy::new(&*file, self.salt, old.base);
        while let Some(item) = walk.next()? {
            // What stands in no frame is missing before the next one, and becomes void there.
            if let Item::Frame(frame, damaged) = item {
                let payload = frame.position + frame.header.prefix_bytes();
                let payload = walk.window.share(payload, frame.header.payload_bytes as usize)?;
                copy.add(&frame, &damaged, &payload)?;
            }
        }
        copy.void_up_to(self.end)?;
        copy.write()?;
        // A full segment may need a little more than it had, for the headers of voids.
        let size = old.size.max(copy.position).next_multiple_of(PAGE_BYTES);
        let mut header = Vec::new();
        encode_header(&mut header, &SegmentHeader { salt: self.salt, size, ..old });
        file.write_all_at(&header, 0)?;
        fill(&*file, copy.position, size)
    }
}

/// The segment as it becomes.
struct SegmentCopy<'a> {
    file: &'a dyn DiskFile,
    salt: u64,
    /// The offset after the last one that was added.
    next: u64,
    gathered: Vec<u8>,
    /// Where they go.
    position: u64,
}

impl<'a> SegmentCopy<'a> {
    fn new(file: &'a dyn DiskFile, salt: u64, base: u64) -> Self {
        Self { file, salt, next: base, gathered: Vec::new(), position: DATA_START }
    }

    /// Adds what of a frame is intact: the runs between damaged records as frames of their own.
    fn add(&mut self, frame: &FrameAt, damaged: &[RecordAt], payload: &[u8]) -> io::Result<()> {
        let header = frame.header;
        match header.kind {
            Kind::Void => Ok(()), // nothing, which is what a gap becomes
            Kind::Idle | Kind::CleanStop => self.put(header, &[]),
            Kind::Records => {
                let start = frame.position + header.prefix_bytes();
                let mut damaged = damaged.iter().map(|record| record.offset).peekable();
                let mut run = Vec::new();
                let mut base = header.base;
                for record in frame.records() {
                    if damaged.next_if_eq(&record.offset).is_some() {
                        self.put(Header { base, ..header }, &run)?;
                        run.clear();
                        base = record.offset + 1;
                        continue;
                    }
                    let at = record.bytes();
                    // A record of no bytes is intact even where the file was cut before it.
                    let bytes = payload.get((at.start - start) as usize..(at.end - start) as usize);
                    let bytes = bytes.unwrap_or_default();
                    run.push(Record { tag: record.entry.tag, crc: crc32fast::hash(bytes), bytes });
                }
                self.put(Header { base, ..header }, &run)
            }
        }
    }

    /// Puts a frame down under the new salt. One of records that has none left is no frame.
    fn put(&mut self, header: Header, records: &[Record<'_>]) -> io::Result<()> {
        if header.kind == Kind::Records && records.is_empty() {
            return Ok(());
        }
        self.void_up_to(header.base)?;
        let payload_bytes = records.iter().map(|record| record.bytes.len() as u32).sum();
        let header = Header { salt: self.salt, records: records.len() as u32, payload_bytes, ..header };
        self.encode(&header, records)
    }

    /// Says that what is missing before `offset` is void.
    fn void_up_to(&mut self, offset: u64) -> io::Result<()> {
        if offset <= self.next {
            return Ok(());
        }
        self.encode(&Header::void(self.salt, self.next..offset, self.next), &[])
    }

    fn encode(&mut self, header: &Header, records: &[Record<'_>]) -> io::Result<()> {
        frame::encode(&mut self.gathered, header, records.iter().copied());
        self.next = header.next_offset();
        if self.gathered.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.gathered, self.position)?;
        self.position += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
