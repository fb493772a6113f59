//! One ascending run of events out of archive files and log, without gap or repeat.
//!
//! Offsets decide everything: an event is handed out when its offset is the next one or a later
//! one, and wherever the archive leaves out offsets the log is asked for them. The archive may
//! grow, and the log may let segments go, while this reads; what the log has let go stands in the
//! archive by then, so the archive is looked at again. Read-only; memory for one chunk and one line.
//!
//! A line that is no event (an unfinished end, a damaged line) is passed over. When the log cannot
//! give what stood there, it is counted as lost and said at the end.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use crate::disk::{Access, Disk};
use crate::event::{Micros, StoredEvent, write_archive_line};
use crate::log::{Chunk, LogError, OfflineReader, ReadError};
use crate::sink::json_file::catalog::{Catalog, CatalogFile};
use crate::sink::json_file::layout::{self, ArchiveFile, Day, Form, Lines, Piece, Tree};

use super::ahead::Ahead;
use super::filter::Filter;

/// A file may hold events of the day before its own, accepted while the clock stood behind: a little
/// by jitter, or by up to `rotate_every` after a jump. Those days are read too.
const DAYS_BEHIND: i64 = 2;

/// The log, as far as an export needs it.
pub(super) trait Tail {
    /// The next run of records from `from` on; an empty range at the end of the log.
    fn read(&mut self, from: u64) -> Result<Chunk, ReadError>;
}

/// Records read at once.
const CHUNK_RECORDS: usize = 10_000;
/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;

impl Tail for OfflineReader<'_> {
    fn read(&mut self, from: u64) -> Result<Chunk, ReadError> {
        OfflineReader::read(self, from, CHUNK_RECORDS, CHUNK_BYTES)
    }
}

/// A data directory without a log.
impl<T: Tail> Tail for Option<T> {
    fn read(&mut self, from: u64) -> Result<Chunk, ReadError> {
        match self {
            Some(tail) => tail.read(from),
            None => Ok(Chunk { range: from..from, ..Chunk::default() }),
        }
    }
}

/// Why an export stopped.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum JoinError {
    #[error("cannot read {}: {source}", path.display())]
    Archive { path: PathBuf, source: io::Error },
    #[error("cannot read the log: {0}")]
    Log(ReadError),
    #[error("cannot read the log: {0}")]
    LogDirectory(LogError),
    /// The reader of our output has gone or its disk is full.
    #[error("cannot write the export: {0}")]
    Output(io::Error),
}

/// What was handed out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::cli) struct Tally {
    pub events: u64,
    pub first_offset: u64,
    pub last_offset: u64,
    /// Archive lines that are no events and that the log could not replace.
    pub bad_lines: u64,
    /// Events in the range whose bytes in the log are damaged.
    pub damaged_events: u64,
}

/// Where lines go and progress is told.
pub(in crate::cli) trait Output {
    /// Takes one event's line, without its newline.
    fn line(&mut self, line: &[u8]) -> io::Result<()>;
    /// Bytes of archive files read so far, and to read in all.
    fn progress(&mut self, done: u64, of: u64);
}

/// How a look into the log ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// Everything asked for was there.
    Complete,
    /// The log ends before.
    AtEnd,
    /// The log begins later.
    Released(u64),
}

/// An export under way.
pub(super) struct Join<'a, T, O> {
    disk: &'a dyn Disk,
    tree: &'a Tree,
    filter: &'a Filter,
    tail: T,
    out: &'a mut O,
    /// Everything below was handed out, or is out of range.
    next: u64,
    /// The log held nothing below this the last time it was asked.
    released_below: u64,
    /// Lines passed over since the last event.
    bad: u64,
    line: Vec<u8>,
    tally: Tally,
    bytes_done: u64,
    bytes_total: u64,
}

impl<'a, T: Tail, O: Output> Join<'a, T, O> {
    pub fn new(disk: &'a dyn Disk, tree: &'a Tree, filter: &'a Filter, tail: T, out: &'a mut O) -> Self {
        Self {
            disk,
            tree,
            filter,
            tail,
            out,
            next: filter.offsets.start,
            released_below: 0,
            bad: 0,
            line: Vec::new(),
            tally: Tally::default(),
            bytes_done: 0,
            bytes_total: 0,
        }
    }

    /// Hands out everything in range.
    pub fn run(mut self) -> Result<Tally, JoinError> {
        let mut waited = false;
        loop {
            let before = self.next;
            self.read_archive()?;
            let archived = self.next;
            let ended = self.read_log(self.filter.offsets.end)?;
            if self.next > archived {
                self.bad = 0; // what the archive's end had only in part came from the log
            }
            match ended {
                Ended::Complete | Ended::AtEnd => break,
                // Released while we read the archive: it must stand there now.
                Ended::Released(_) if self.next > before || !waited => waited = self.next == before,
                // Looked twice: nobody has these offsets (void, or lost by damage).
                Ended::Released(first) => {
                    self.give_up_bad_lines();
                    (self.next, waited) = (first, false);
                }
            }
        }
        self.give_up_bad_lines();
        Ok(self.tally)
    }

    /// Reads the archive's files that can hold wanted events from `next` on.
    fn read_archive(&mut self) -> Result<(), JoinError> {
        let catalog = Catalog::read(self.disk, self.tree).map_err(|source| self.unreadable(source))?;
        let files = self.select(catalog.files);
        let sizes: Vec<u64> =
            files.iter().map(|(file, pass)| if pass.is_some() { 0 } else { self.size(&file.file) }).collect();
        self.bytes_total = self.bytes_done + sizes.iter().sum::<u64>();
        for ((file, pass), size) in files.iter().zip(sizes) {
            let start = self.bytes_done;
            match pass {
                // Nothing of it is wanted, and neither is the log's copy of it.
                Some(end) => {
                    if file.file.first_offset > self.next {
                        self.fill(file.file.first_offset.min(self.filter.offsets.end))?;
                    }
                    self.next = self.next.max(*end);
                }
                None => match self.read_file(&file.file, start) {
                    Err(JoinError::Archive { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                        if !self.is_lost(file)? {
                            break; // compressed or removed since it was listed: the next look tells
                        }
                        self.bad += 1;
                    }
                    result => result?,
                },
            }
            self.bytes_done = start + size;
            self.out.progress(self.bytes_done, self.bytes_total);
            if self.next >= self.filter.offsets.end {
                break;
            }
        }
        Ok(())
    }

    /// The files that may have something to do with the range, each with its end when all of its events
    /// are out of it: as the manifest says of finished files, and of others their names.
    fn select(&self, files: Vec<CatalogFile>) -> Vec<(CatalogFile, Option<u64>)> {
        let times = &self.filter.times;
        let is_missed = |file: &CatalogFile| match file.times() {
            Some(of_file) => {
                times.start.is_some_and(|from| *of_file.end() < from)
                    || times.end.is_some_and(|to| *of_file.start() >= to)
            }
            None => {
                // A date change begins a new file, so a file of an earlier day than wanted has nothing.
                let day = file.file.day;
                times.start.is_some_and(|from| day < Day::of(from))
                    || times.end.is_some_and(|to| Day(day.0 - DAYS_BEHIND).start() >= to)
            }
        };
        let firsts: Vec<u64> = files.iter().skip(1).map(|file| file.file.first_offset).collect();
        let mut selected = Vec::new();
        for (index, file) in files.into_iter().enumerate() {
            let end = file.last_offset().map(|last| last + 1).or_else(|| firsts.get(index).copied());
            if file.file.first_offset >= self.filter.offsets.end || end.is_some_and(|end| end <= self.next) {
                continue;
            }
            let pass = is_missed(&file).then(|| end.unwrap_or(file.file.first_offset));
            selected.push((file, pass));
        }
        selected
    }

    /// Whether a file that is not there is to be there: the manifest still says so.
    fn is_lost(&self, file: &CatalogFile) -> Result<bool, JoinError> {
        let again = Catalog::read(self.disk, self.tree);
        let again = again.map_err(|source| self.unreadable(source))?;
        Ok(file.listed.is_some() && again.files.contains(file))
    }

    fn size(&self, file: &ArchiveFile) -> u64 {
        self.disk.open(&file.path, Access::Read).and_then(|open| open.len()).unwrap_or(0)
    }

    fn read_file(&mut self, file: &ArchiveFile, bytes_before: u64) -> Result<(), JoinError> {
        let unreadable = |source| JoinError::Archive { path: file.path.clone(), source };
        let text = layout::open_text(self.disk, file);
        let text = text.and_then(|text| match file.form {
            Form::Plain => Ok(text),
            Form::Zstd | Form::Gzip => Ok(Box::new(Ahead::start(text)?) as Box<dyn io::Read + Send>),
        });
        let mut lines = Lines::new(text.map_err(unreadable)?);
        let mut told = 0;
        loop {
            let position = lines.position();
            let piece = match lines.next_piece() {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(()),
                // A damaged compressed file: what follows it is still there.
                Err(error) if file.form != Form::Plain && error.kind() != io::ErrorKind::NotFound => {
                    self.bad += 1;
                    return Ok(());
                }
                Err(error) => return Err(unreadable(error)),
            };
            let Piece::Line(line) = piece else {
                self.bad += 1;
                continue;
            };
            let Some(stamp) = layout::stamp(line) else {
                self.bad += u64::from(!line.is_empty());
                continue;
            };
            let offset = stamp.offset;
            if offset < self.next {
                continue; // handed out already, or before the range
            }
            if offset > self.next {
                self.fill(offset.min(self.filter.offsets.end))?;
            }
            if offset >= self.filter.offsets.end {
                return Ok(());
            }
            if self.filter.wants(|| stamp.accepted_at(), line) {
                self.out.line(line).map_err(JoinError::Output)?;
                self.tally.count(offset);
            }
            self.next = offset + 1;
            if file.form == Form::Plain && position > told + (1 << 20) {
                told = position;
                self.out.progress(bytes_before + position, self.bytes_total);
            }
        }
    }

    /// The archive leaves out `next..until`: the log may have what belongs there.
    fn fill(&mut self, until: u64) -> Result<(), JoinError> {
        if until > self.released_below {
            match self.read_log(until)? {
                Ended::Complete => self.bad = 0,
                Ended::AtEnd | Ended::Released(_) => {}
            }
        }
        self.give_up_bad_lines();
        self.next = until;
        Ok(())
    }

    fn read_log(&mut self, until: u64) -> Result<Ended, JoinError> {
        while self.next < until {
            let chunk = match self.tail.read(self.next) {
                Ok(chunk) => chunk,
                Err(ReadError::Released { first_offset }) => {
                    self.released_below = first_offset;
                    return Ok(Ended::Released(first_offset));
                }
                Err(error) => return Err(JoinError::Log(error)),
            };
            if chunk.range.end <= self.next {
                return Ok(Ended::AtEnd);
            }
            self.hand_out(&chunk, until)?;
            self.next = chunk.range.end.min(until);
        }
        Ok(Ended::Complete)
    }

    fn hand_out(&mut self, chunk: &Chunk, until: u64) -> Result<(), JoinError> {
        for record in &chunk.records {
            if !(self.next..until).contains(&record.offset) {
                continue;
            }
            let accepted_at = Micros(record.accepted_at_micros);
            let event = StoredEvent { offset: record.offset, accepted_at, json: chunk.bytes(record) };
            self.line.clear();
            write_archive_line(&mut self.line, event);
            let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            if self.filter.wants(|| Some(accepted_at), line) {
                self.out.line(line).map_err(JoinError::Output)?;
                self.tally.count(record.offset);
            }
        }
        let within = |lost: &Range<u64>| lost.end.min(until).saturating_sub(lost.start.max(self.next));
        self.tally.damaged_events += chunk.damage.iter().map(|damage| within(&damage.lost)).sum::<u64>();
        Ok(())
    }

    fn give_up_bad_lines(&mut self) {
        self.tally.bad_lines += std::mem::take(&mut self.bad);
    }

    fn unreadable(&self, source: io::Error) -> JoinError {
        JoinError::Archive { path: self.tree.root.clone(), source }
    }
}

impl Tally {
    fn count(&mut self, offset: u64) {
        if self.events == 0 {
            self.first_offset = offset;
        }
        self.events += 1;
        self.last_offset = offset;
    }
}
