//! Reads one archive file from its first byte to its last and says what it is: digest, events, gaps, and
//! the first thing in it that is wrong.
//!
//! For the sink's background work and for `archive verify`, which must agree on every byte. Reads only, on
//! the caller's thread, with memory for one line and a chunk. An error is the file system's own; a bad
//! line or a stream that cannot be decompressed is part of the answer.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use ring::digest::{Context, SHA256};

use crate::disk::{Access, Disk};
use crate::event::Micros;

use super::layout::{self, ArchiveFile, FileReader, Lines, Piece};
use super::manifest::MAX_VOIDS;

/// How much of each line is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Its stamp: for bytes that a checksum vouches for.
    Stamps,
    /// Every byte must make sense as JSON: for bytes that nobody vouches for.
    Lines,
}

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Examined {
    /// Its length on the disk.
    pub bytes: u64,
    /// SHA-256 of these bytes, in hexadecimal.
    pub sha256: String,
    /// Bytes of its lines, decompressed.
    pub content_bytes: u64,
    /// CRC-32 of them.
    pub content_crc: u32,
    /// Its events: the first and the last offset, and how many.
    pub offsets: Option<(u64, u64)>,
    /// How many events it holds.
    pub count: u64,
    /// Gaps between its first and last event, the first [`MAX_VOIDS`] of them.
    pub gaps: Vec<(u64, u64)>,
    /// There are more gaps than that.
    pub is_sparse: bool,
    /// The earliest and the latest acceptance.
    pub times: Option<(Micros, Micros)>,
    /// What is wrong first, and where.
    pub wrong: Option<Wrong>,
}

/// The first thing wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The line, counted from 1.
    pub line: u64,
    /// Where that line begins in the (decompressed) file.
    pub position: u64,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Reads `file`; of a plain one only the first `limit` bytes. `read` is told how much was read each
/// time, and may ask to give up: then there is no answer.
pub fn examine(
    disk: &dyn Disk,
    file: &ArchiveFile,
    depth: Depth,
    limit: Option<u64>,
    read: &mut dyn FnMut(u64) -> bool,
) -> io::Result<Option<Examined>> {
    let handle = disk.open(&file.path, Access::Read)?;
    let tee = Arc::new(Mutex::new(Tee::new()));
    let raw = Teeing { reader: FileReader::over(handle, limit), tee: tee.clone() };
    let mut found = Examined::default();
    let mut lines = Lines::new(layout::decoded(file.form, raw)?);
    let mut told = 0;
    let mut number = 0;
    loop {
        let position = lines.position();
        let raw_bytes = tee.lock().unwrap_or_else(PoisonError::into_inner).bytes;
        if raw_bytes > told && !read(std::mem::replace(&mut told, raw_bytes).abs_diff(raw_bytes)) {
            return Ok(None);
        }
        number += 1;
        let wrong = |what| Some(Wrong { line: number, position, what });
        match lines.next_piece() {
            Ok(None) => break,
            Ok(Some(Piece::Line(line))) => {
                let bad = found.take(line, depth, file.first_offset);
                found.wrong = found.wrong.take().or_else(|| bad.and_then(wrong));
            }
            Ok(Some(Piece::Unfinished(line))) => {
                found.add_content(line);
                found.wrong = found.wrong.take().or_else(|| wrong("no newline ends it"));
            }
            Ok(Some(Piece::Overlong)) => {
                found.wrong = found.wrong.take().or_else(|| wrong("it is too long for an event"));
            }
            Err(error) if is_of_the_disk(&error) => return Err(error),
            Err(_) => {
                found.wrong = found.wrong.take().or_else(|| wrong("it cannot be decompressed"));
                break;
            }
        }
    }
    drop(lines);
    found.finish(disk, file, limit, &tee, number)?;
    Ok(Some(found))
}

/// Whether reading failed, and not what was read.
fn is_of_the_disk(error: &io::Error) -> bool {
    error.raw_os_error().is_some()
}

impl Examined {
    /// Counts a line; says what is wrong with it.
    fn take(&mut self, line: &[u8], depth: Depth, least: u64) -> Option<&'static str> {
        self.add_content(line);
        self.add_content(b"\n");
        let stamp = match depth {
            Depth::Stamps => layout::stamp(line),
            Depth::Lines => layout::intact_stamp(line),
        };
        let Some((offset, at)) = stamp.and_then(|stamp| Some((stamp.offset, stamp.accepted_at()?))) else {
            return Some("it is no event of the archive");
        };
        self.count += 1;
        self.times = Some(self.times.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
        match &mut self.offsets {
            None => {
                self.offsets = Some((offset, offset));
                (offset != least).then_some("its offset is not the one in the file's name")
            }
            Some((_, last)) if offset <= *last => Some("its offset does not follow the one before"),
            Some((_, last)) => {
                let gap = (*last + 1, offset);
                *last = offset;
                if gap.0 < gap.1 && self.gaps.len() < MAX_VOIDS {
                    self.gaps.push(gap);
                } else if gap.0 < gap.1 {
                    self.is_sparse = true;
                }
                None
            }
        }
    }

    fn add_content(&mut self, bytes: &[u8]) {
        let mut crc = crc32fast::Hasher::new_with_initial(self.content_crc);
        crc.update(bytes);
        self.content_crc = crc.finalize();
        self.content_bytes += bytes.len() as u64;
    }

    /// Digests what the decompression left unread.
    fn finish(
        &mut self,
        disk: &dyn Disk,
        file: &ArchiveFile,
        limit: Option<u64>,
        tee: &Mutex<Tee>,
        line: u64,
    ) -> io::Result<()> {
        let mut tee = tee.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = FileReader::over(disk.open(&file.path, Access::Read)?, limit);
        rest.skip_to(tee.bytes);
        let mut chunk = vec![0; 64 << 10];
        let read_before = tee.bytes;
        loop {
            match rest.read(&mut chunk)? {
                0 => break,
                read => tee.add(&chunk[..read]),
            }
        }
        if tee.bytes > read_before && self.wrong.is_none() {
            self.wrong = Some(Wrong { line, position: self.content_bytes, what: "bytes follow its end" });
        }
        self.bytes = tee.bytes;
        let digest = std::mem::replace(&mut tee.digest, Context::new(&SHA256)).finish();
        self.sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(())
    }
}

/// Digests what passes through.
struct Tee {
    digest: Context,
    bytes: u64,
}

impl Tee {
    fn new() -> Self {
        Self { digest: Context::new(&SHA256), bytes: 0 }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

struct Teeing {
    reader: FileReader,
    tee: Arc<Mutex<Tee>>,
}

impl Read for Teeing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buf)?;
        self.tee.lock().unwrap_or_else(PoisonError::into_inner).add(&buf[..read]);
        Ok(read)
    }
}
