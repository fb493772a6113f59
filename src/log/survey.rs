//! What stands in a log's directory, and which file is which segment.
//!
//! Read-only and without a lock, for recovery as well as for inspection; blocks. The header says
//! what a segment is, not its name: files may have been swapped, copied or moved by people, or a
//! power loss may have kept a name and lost the header. What cannot be told is left alone and named.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::catalog::FoundFile;
use super::frame::ENTRY_BYTES;
use super::scan::salt_by_frames;
use super::segment::{
    COPY_B, DATA_START, SegmentHeader, decode_header, foreign_version, parse_segment_name, parse_spare_name,
    segment_name,
};
use super::window::Window;
use super::{LogError, Stream};
use crate::disk::{Access, Disk, DiskFile, EntryKind};

/// Bytes of one read where a whole file is scanned. Larger ones are no faster, and the memory of a
/// start stays with the process.
pub(super) const SCAN_CHUNK: usize = 64 << 10;
/// What a segment is called between two names while swapped ones are put right.
const MOVED_PREFIX: &str = "moved-";

/// A file that holds a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// Its header; made up from name and frames where both copies are lost.
    pub header: SegmentHeader,
    /// Its length.
    pub len: u64,
    /// Bytes it takes on disk.
    pub allocated: u64,
    /// The part of the header that does not hold, if one does not.
    pub damaged_header: Option<Range<u64>>,
}

impl Found {
    /// Bytes that can hold frames end here.
    pub fn limit(&self) -> u64 {
        self.len.min(self.header.size)
    }

    /// Whether the file is called what its header says.
    pub fn is_well_named(&self) -> bool {
        self.path.file_name().is_some_and(|name| *name == *segment_name(self.header.base))
    }

    /// As a file that may be used again.
    pub fn as_file(&self) -> FoundFile {
        FoundFile { path: self.path.clone(), len: self.len, allocated: self.allocated }
    }

    /// Whether the file is still the segment it was found as.
    pub fn is_still_there(&self, disk: &dyn Disk) -> bool {
        let look = look_at(disk, &self.path, self.header.base, self.header.stream);
        look.is_ok_and(|look| !look.known || look.found.header.salt == self.header.salt)
    }

    /// Opens it for scanning.
    pub fn window(&self, disk: &dyn Disk) -> io::Result<Window> {
        Ok(Window::new(disk.open(&self.path, Access::Read)?.into(), self.limit(), SCAN_CHUNK))
    }
}

/// A name in the directory that is ignored, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Foreign {
    pub name: String,
    pub reason: String,
    /// The base the name tells, when a segment will one day be called so.
    pub base: Option<u64>,
}

/// What stands in the directory.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Segments, ascending by base, no base twice.
    pub segments: Vec<Found>,
    /// Files under a segment's name in which nothing of a segment was found; ascending.
    pub hollow: Vec<Found>,
    /// Files that could not be opened or read, under a segment's name; in `foreign` too.
    pub unreadable: Vec<u64>,
    /// Spares, the best ones first.
    pub spares: Vec<FoundFile>,
    /// One above the highest number of a spare.
    pub next_spare_number: u64,
    /// Ignored.
    pub foreign: Vec<Foreign>,
}

impl Survey {
    /// Looks through `dir`. A directory that cannot be listed is an error, as is a lack of
    /// descriptors, and a segment of another format version: to an older program a newer log would
    /// look like nothing but damage. Whatever else is wrong with one file is not.
    pub fn new(disk: &dyn Disk, dir: &Path, stream: Stream, spare_bytes: u64) -> Result<Self, LogError> {
        let mut entries = disk.list(dir).map_err(|e| LogError::io("listing", dir, &e))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let mut survey = Survey::default();
        let mut named = Vec::new();
        for entry in entries {
            let path = dir.join(&entry.name);
            let base = parse_segment_name(&entry.name)
                .or_else(|| parse_segment_name(entry.name.strip_prefix(MOVED_PREFIX)?));
            if let Some(number) = parse_spare_name(&entry.name) {
                survey.next_spare_number = survey.next_spare_number.max(number.saturating_add(1));
            }
            match (entry.kind, base, parse_spare_name(&entry.name)) {
                (EntryKind::File, Some(base), _) => match look_at(disk, &path, base, stream) {
                    Ok(look) => match look.foreign_version {
                        Some(version) => return Err(LogError::Foreign { path, version }),
                        None => named.push(look),
                    },
                    Err(e) if is_shortage(&e) => return Err(LogError::io("opening", &path, &e)),
                    Err(e) => {
                        survey.unreadable.push(base);
                        survey.ignore(entry.name, format!("it cannot be read: {e}"), Some(base));
                    }
                },
                (EntryKind::File, None, Some(_)) => match spare_at(disk, &path) {
                    Ok(spare) => survey.spares.push(spare),
                    Err(e) if is_shortage(&e) => return Err(LogError::io("opening", &path, &e)),
                    Err(e) => survey.ignore(entry.name, format!("it cannot be read: {e}"), None),
                },
                (kind, base, _) => {
                    let reason = match kind {
                        EntryKind::File => "it is none of the log's files",
                        EntryKind::Dir => "it is a directory",
                        EntryKind::Other => "it is neither file nor directory",
                    };
                    survey.ignore(entry.name, reason.to_owned(), base);
                }
            }
        }
        survey.spares.sort_by_key(|spare| (spare.len != spare_bytes, spare.allocated < spare.len));
        survey.identify(disk, named, stream)?;
        Ok(survey)
    }

    /// The segment the log goes on in, or after.
    pub fn last(&self) -> Option<&Found> {
        self.segments.last()
    }

    /// Where each segment's offsets end: the base of the next.
    pub fn end_of(&self, index: usize) -> Option<u64> {
        self.segments.get(index + 1).map(|next| next.header.base)
    }

    /// What files that tell nothing held before the first segment: their base, and the offsets.
    /// Behind it the segment before, ending early, tells of what is missing.
    pub fn gone_before_first(&self) -> Vec<(u64, Range<u64>)> {
        let Some(first) = self.segments.first().map(|first| first.header.base) else { return Vec::new() };
        let hollow = self.hollow.iter().map(|found| found.header.base);
        let mut bases: Vec<u64> = hollow.chain(self.unreadable.iter().copied()).collect();
        bases.sort_unstable();
        bases.retain(|base| *base < first);
        let ends = bases.clone().into_iter().skip(1).chain([first]);
        bases.into_iter().zip(ends).map(|(base, end)| (base, base..end)).collect()
    }

    /// Files under a segment's name that tell nothing, although there must have been something in them:
    /// those before the last segment, and those that cannot be read.
    pub fn silent(&self, dir: &Path) -> Vec<PathBuf> {
        let last = self.last().map_or(0, |last| last.header.base);
        let hollow = self.hollow.iter().filter(|found| found.header.base < last);
        let unreadable = self.unreadable.iter().map(|base| dir.join(segment_name(*base)));
        hollow.map(|found| found.path.clone()).chain(unreadable).collect()
    }

    /// The highest offset that headers alone show to have been durable: what was synced before
    /// a segment was begun, and everything before one that another follows.
    pub fn durable(&self) -> u64 {
        self.segments.iter().map(|found| found.header.base.max(found.header.durable)).max().unwrap_or(0)
    }

    pub fn ignore(&mut self, name: String, reason: String, base: Option<u64>) {
        self.foreign.push(Foreign { name, reason, base });
    }

    /// Tells segments from copies, and from files whose header never reached the disk.
    fn identify(&mut self, disk: &dyn Disk, named: Vec<Look>, stream: Stream) -> Result<(), LogError> {
        let (mut whole, mut hollow): (Vec<_>, Vec<_>) = named.into_iter().partition(|look| look.known);
        // The rightful name first, then the one that comes first.
        whole.sort_by_key(|look| (look.found.header.base, !look.found.is_well_named(), look.name_base));
        let mut kept: Vec<Look> = Vec::new();
        for look in whole {
            if look.found.header.stream != stream {
                self.ignore(look.name(), "it belongs to another log".to_owned(), Some(look.name_base));
            } else if kept.last().is_some_and(|last| last.found.header.base == look.found.header.base) {
                let reason = format!("it is a copy of {}", segment_name(look.found.header.base));
                self.ignore(look.name(), reason, Some(look.name_base));
            } else {
                kept.push(look);
            }
        }
        if let Some(stale) = stale_header(&kept) {
            hollow.push(kept.remove(stale)); // R6: named anew, its new header never reached the disk
        }
        self.segments = kept.into_iter().map(|look| look.found).collect();
        hollow.sort_by_key(|look| look.name_base);
        for look in hollow {
            self.read_by_frames(disk, look, stream)?;
        }
        Ok(())
    }

    /// A file without a header is a segment all the same when it holds frames its name allows for.
    fn read_by_frames(&mut self, disk: &dyn Disk, look: Look, stream: Stream) -> Result<(), LogError> {
        let base = look.name_base;
        let at = self.segments.partition_point(|found| found.header.base < base);
        if self.segments.get(at).is_some_and(|found| found.header.base == base) {
            let reason = format!("another file holds the segment {}", segment_name(base));
            self.ignore(look.name(), reason, Some(base));
            return Ok(());
        }
        // What an earlier use left in the file has lower offsets than its name.
        let most = base.saturating_add(look.found.len / ENTRY_BYTES as u64);
        let end = self.segments.get(at).map_or(most, |next| next.header.base.min(most));
        let mut found = look.found;
        let made_up = SegmentHeader { stream, base, salt: 0, size: found.len, created_micros: 0, durable: 0 };
        found.header = made_up;
        found.damaged_header = Some(0..DATA_START.min(found.len));
        let window = found.window(disk);
        match window.and_then(|mut window| salt_by_frames(&mut window, base..end)) {
            Ok(Some(salt)) => {
                found.header.salt = salt;
                self.segments.insert(at, found);
            }
            Ok(None) => self.hollow.push(found),
            Err(e) if is_shortage(&e) => return Err(LogError::io("opening", &found.path, &e)),
            Err(e) => {
                self.unreadable.push(base);
                let name = segment_name(base);
                self.ignore(name, format!("it cannot be read: {e}"), Some(base));
            }
        }
        Ok(())
    }

    /// Gives every segment the name its header says, as far as those names are free, so that no
    /// later segment meets a wrong file under its name. Returns whether anything was renamed.
    pub fn put_names_right(&mut self, disk: &dyn Disk, dir: &Path) -> bool {
        let mut renamed = false;
        loop {
            let mut progress = false;
            for found in self.segments.iter_mut().filter(|found| !found.is_well_named()) {
                let right = dir.join(segment_name(found.header.base));
                if disk.rename(&found.path, &right).is_ok() {
                    found.path = right;
                    progress = true;
                }
            }
            renamed |= progress;
            if progress {
                continue;
            }
            // Nothing but circles is left: one step aside opens one.
            let aside = |found: &Found| format!("{MOVED_PREFIX}{}", segment_name(found.header.base));
            let taken: Vec<PathBuf> = self.segments.iter().map(|found| found.path.clone()).collect();
            let in_circle = self.segments.iter_mut().find(|found| {
                !found.is_well_named()
                    && taken.contains(&dir.join(segment_name(found.header.base)))
                    && found.path != dir.join(aside(found))
            });
            let Some(found) = in_circle else { return renamed };
            let path = dir.join(aside(found));
            if disk.rename(&found.path, &path).is_err() {
                return renamed;
            }
            found.path = path;
            renamed = true;
        }
    }
}

/// A file under a segment's name, with what its header says.
#[derive(Debug)]
struct Look {
    found: Found,
    name_base: u64,
    /// The header is one.
    known: bool,
    /// The header is one of another format version.
    foreign_version: Option<char>,
}

impl Look {
    fn name(&self) -> String {
        self.found.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// The file that was named anew while its header is still that of an earlier use: the highest
/// name, over the lowest base, and nobody else claims to be what it is named.
fn stale_header(kept: &[Look]) -> Option<usize> {
    let first = kept.first()?; // ascending by base
    let is_stale = kept.len() > 1
        && first.name_base > first.found.header.base
        && kept
            .iter()
            .skip(1)
            .all(|other| first.name_base > other.found.header.base && first.name_base > other.name_base);
    is_stale.then_some(0)
}

fn look_at(disk: &dyn Disk, path: &Path, name_base: u64, stream: Stream) -> io::Result<Look> {
    let file = disk.open(path, Access::Read)?;
    let len = file.len()?;
    let allocated = file.allocated_bytes().unwrap_or(len).max(len);
    let mut window = Window::new(Arc::from(file), len, 2 * COPY_B);
    let bytes = window.get(0, 2 * COPY_B)?;
    let header = decode_header(bytes, name_base);
    let foreign_version = foreign_version(bytes);
    let a_holds = decode_header(&bytes[..bytes.len().min(COPY_B)], name_base).is_some();
    let b_holds = bytes.get(COPY_B..).is_some_and(|copy| decode_header(copy, name_base).is_some());
    let damaged_header = match (a_holds, b_holds) {
        (false, true) => Some(0..COPY_B as u64),
        (true, false) => Some(COPY_B as u64..2 * COPY_B as u64),
        _ => None,
    };
    let made_up =
        SegmentHeader { stream, base: name_base, salt: 0, size: len, created_micros: 0, durable: 0 };
    let found =
        Found { path: path.to_owned(), header: header.unwrap_or(made_up), len, allocated, damaged_header };
    Ok(Look { found, name_base, known: header.is_some(), foreign_version })
}

fn spare_at(disk: &dyn Disk, path: &Path) -> io::Result<FoundFile> {
    let file: Box<dyn DiskFile> = disk.open(path, Access::Read)?;
    Ok(FoundFile { path: path.to_owned(), len: file.len()?, allocated: file.allocated_bytes()? })
}

/// Errors that are the process's lack, not the file's: EMFILE, ENFILE, ENOMEM.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24 | 12)) || error.kind() == io::ErrorKind::OutOfMemory
}
