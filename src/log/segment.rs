//! One segment file: its names, its header, and what the parts of the log share about it.
//!
//! The codec is pure; [`Segment`] is shared between writer, readers and stock. No thread of its own.
//! A segment that cannot be opened is an error of the reader that wanted it, of nobody else.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Stream;
use super::frame::OFFSETS_END;
use crate::disk::{Access, Disk, DiskFile};
use crate::waits::{AtomicBool, AtomicU64};

/// Where frames begin. The space before it belongs to the header, so that rewriting a header and
/// writing a frame never touch the same page.
pub const DATA_START: u64 = 4096;
/// Where the header's second copy stands: another sector than the first.
pub const COPY_B: usize = 512;
/// Bytes of a header that are used.
const HEADER_BYTES: usize = 64;
/// First bytes of every segment; the digit is the format's version. Whatever a later version changes,
/// these eight bytes, the checksum of bytes 12 to 64 behind them and the two places of a header
/// stay, so that [`foreign_version`] can tell another version from damage.
const MAGIC: [u8; 8] = *b"EVFLSEG1";
/// A position is noted every so many bytes, so that a search for an offset reads about this much.
const NOTE_EVERY: u64 = 1 << 20;

/// The fields of a segment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which log the segment belongs to.
    pub stream: Stream,
    /// Offset of the first record.
    pub base: u64,
    /// Random, new at every use of the file, never zero.
    pub salt: u64,
    /// Bytes of the file.
    pub size: u64,
    /// When it was begun, in microseconds since the Unix epoch.
    pub created_micros: i64,
    /// Every offset below this one was synced when it was begun.
    pub durable: u64,
}

/// Appends the header block, both copies, `DATA_START` bytes in all.
pub fn encode_header(out: &mut Vec<u8>, header: &SegmentHeader) {
    let mut copy = [0u8; HEADER_BYTES];
    copy[..8].copy_from_slice(&MAGIC);
    copy[12..16].copy_from_slice(&header.stream.code().to_le_bytes());
    copy[16..24].copy_from_slice(&header.base.to_le_bytes());
    copy[24..32].copy_from_slice(&header.salt.to_le_bytes());
    copy[32..40].copy_from_slice(&header.size.to_le_bytes());
    copy[40..48].copy_from_slice(&header.created_micros.to_le_bytes());
    copy[48..56].copy_from_slice(&header.durable.to_le_bytes());
    let crc = crc32fast::hash(&copy[12..]);
    copy[8..12].copy_from_slice(&crc.to_le_bytes());
    let start = out.len();
    out.resize(start + DATA_START as usize, 0);
    out[start..start + HEADER_BYTES].copy_from_slice(&copy);
    out[start + COPY_B..start + COPY_B + HEADER_BYTES].copy_from_slice(&copy);
}

/// Reads one copy of a header; `None` when it does not hold together.
fn decode_copy(bytes: &[u8]) -> Option<SegmentHeader> {
    let copy = bytes.first_chunk::<HEADER_BYTES>()?;
    let u64_at = |at: usize| u64::from_le_bytes(*copy[at..].first_chunk().expect("a header has 64 bytes"));
    let u32_at = |at: usize| u32::from_le_bytes(*copy[at..].first_chunk().expect("a header has 64 bytes"));
    if copy[..8] != MAGIC || !holds(copy) || copy[56..] != [0; 8] {
        return None;
    }
    let header = SegmentHeader {
        stream: Stream::from_code(u32_at(12))?,
        base: u64_at(16),
        salt: u64_at(24),
        size: u64_at(32),
        created_micros: u64_at(40) as i64,
        durable: u64_at(48),
    };
    let is_within = header.base.max(header.durable) <= OFFSETS_END;
    (header.salt != 0 && is_within).then_some(header)
}

/// Reads a header from the first bytes of a file (at least `COPY_B` + 64 of them to see both
/// copies). Of two intact copies that differ, the one with the expected base counts, else the
/// first: a header is rewritten in one go with the first frames, so a difference means that this
/// write was never synced and nothing it announced was ever promised.
pub fn decode_header(bytes: &[u8], expected_base: u64) -> Option<SegmentHeader> {
    let a = decode_copy(bytes);
    let b = bytes.get(COPY_B..).and_then(decode_copy);
    match (a, b) {
        (Some(a), Some(b)) if a.base != expected_base && b.base == expected_base => Some(b),
        (a, b) => a.or(b),
    }
}

fn holds(copy: &[u8; HEADER_BYTES]) -> bool {
    copy[8..12] == crc32fast::hash(&copy[12..]).to_le_bytes()
}

/// The version another program wrote this header in. Both copies must hold and agree on it: one wrong
/// byte never makes a segment foreign.
pub fn foreign_version(bytes: &[u8]) -> Option<char> {
    let version_of = |bytes: &[u8]| {
        let copy = bytes.first_chunk::<HEADER_BYTES>()?;
        let (kind, version) = (&copy[..7], copy[7]);
        let is_foreign = kind == &MAGIC[..7] && version != MAGIC[7] && version.is_ascii_graphic();
        (is_foreign && holds(copy)).then_some(char::from(version))
    };
    let version = version_of(bytes)?;
    (version_of(bytes.get(COPY_B..)?) == Some(version)).then_some(version)
}

/// The name of the segment that begins at `base`.
pub fn segment_name(base: u64) -> String {
    format!("{base:020}.seg")
}

/// The base a segment's name tells; `None` for every other name.
pub fn parse_segment_name(name: &str) -> Option<u64> {
    digits(name.strip_suffix(".seg")?, 20)
}

/// The name of a spare.
pub fn spare_name(number: u64) -> String {
    format!("spare-{number:014}.seg")
}

/// A spare's number; `None` for every other name.
pub fn parse_spare_name(name: &str) -> Option<u64> {
    digits(name.strip_prefix("spare-")?.strip_suffix(".seg")?, 14)
}

fn digits(text: &str, count: usize) -> Option<u64> {
    let all_digits = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    if all_digits { text.parse().ok() } else { None }
}

/// A segment as the parts of a log share it. Its end is the base of the next one in the catalog.
///
/// The file is opened when somebody reads it and closed when nobody does any more, so a backlog of
/// ten thousand segments costs no ten thousand descriptors; the writer holds the active one open.
#[derive(Debug)]
pub struct Segment {
    /// Its header; `base` and `salt` are what its frames must carry.
    pub header: SegmentHeader,
    /// Its file.
    pub path: PathBuf,
    /// Bytes it takes on disk, or would if the file system did not compress.
    pub allocated: u64,
    /// Position up to which frames were written and synced; the file's size where nobody knows.
    durable_position: AtomicU64,
    /// Set before the file may be renamed and overwritten.
    released: AtomicBool,
    /// Damaged bytes in it have no copy elsewhere.
    kept: AtomicBool,
    file: Mutex<Option<Weak<dyn DiskFile>>>,
    /// Ascending (offset, position of a frame that begins with it).
    notes: Mutex<Vec<(u64, u64)>>,
}

impl Segment {
    /// A segment whose frames end at or before `durable_position`.
    pub fn new(header: SegmentHeader, path: PathBuf, allocated: u64, durable_position: u64) -> Self {
        Self {
            header,
            path,
            allocated,
            durable_position: AtomicU64::new(durable_position),
            released: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            file: Mutex::new(None),
            notes: Mutex::new(Vec::new()),
        }
    }

    /// Offset of its first record.
    pub fn base(&self) -> u64 {
        self.header.base
    }

    /// What its frames carry.
    pub fn salt(&self) -> u64 {
        self.header.salt
    }

    /// Nothing beyond this position is durable; read it after the log's durable end.
    pub fn durable_position(&self) -> u64 {
        self.durable_position.load(Ordering::Acquire)
    }

    /// Whether the segment was given up. Once this is true its file may hold anything: a reader
    /// asks after each read and before it believes in damage. Intact frames of the right salt
    /// are good in any case.
    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }

    /// The open file.
    pub fn open(&self, disk: &dyn Disk) -> io::Result<Arc<dyn DiskFile>> {
        let mut cached = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = cached.as_ref().and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file: Arc<dyn DiskFile> = disk.open(&self.path, Access::Read)?.into();
        *cached = Some(Arc::downgrade(&file));
        Ok(file)
    }

    /// The position of a frame at or before the one that holds `offset`: where a search may begin.
    pub fn position_before(&self, offset: u64) -> u64 {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let after = notes.partition_point(|(noted, _)| *noted <= offset);
        after.checked_sub(1).map_or(DATA_START, |at| notes[at].1)
    }

    /// Notes that an intact frame beginning with `offset` stands at `position`. Kept only about once
    /// a megabyte, so readers may note every frame they pass.
    pub fn note(&self, offset: u64, position: u64) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let last = notes.last().map_or((self.header.base, DATA_START), |last| *last);
        if offset > last.0 && position >= last.1 + NOTE_EVERY {
            notes.push((offset, position));
        }
    }

    pub(super) fn attach(&self, file: &Arc<dyn DiskFile>) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(file));
    }

    pub(super) fn set_durable_position(&self, position: u64) {
        self.durable_position.store(position, Ordering::Release);
    }

    /// Keeps the file from ever being used again or removed: it holds the only copy of something.
    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::SeqCst);
    }

    /// Whether the file must stay.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::SeqCst)
    }

    pub(super) fn set_released(&self) {
        self.released.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
