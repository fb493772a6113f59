//! A moving view of one file: reads ahead in large chunks and hands out slices.
//!
//! No thread of its own; blocks in `pread`. A page the system cannot read shows as zeros, which no
//! checksum accepts, so a bad sector costs what stands in it and nothing else. Other errors are
//! handed up.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::disk::DiskFile;

/// What a failing chunk is read again by.
const PAGE: u64 = 4096;
/// Errors with which a medium says that some sectors are lost: EIO, ENODATA, EBADMSG, EUCLEAN.
const MEDIUM_ERRORS: [i32; 4] = [5, 61, 74, 117];

/// A view of a file up to a limit.
#[derive(Debug)]
pub(super) struct Window {
    file: Arc<dyn DiskFile>,
    limit: u64,
    chunk: usize,
    start: u64,
    bytes: Bytes,
}

impl Window {
    /// A view of `file` below `limit` that reads `chunk` bytes at a time, more where asked for more.
    pub fn new(file: Arc<dyn DiskFile>, limit: u64, chunk: usize) -> Self {
        Self { file, limit, chunk, start: 0, bytes: Bytes::new() }
    }

    /// Nothing at or beyond this position is shown.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Moves the limit on; what was read before stays as it was read.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Bytes of one read.
    pub fn set_chunk(&mut self, chunk: usize) {
        self.chunk = chunk;
    }

    /// The `len` bytes at `position`; fewer at the limit or the file's end.
    pub fn get(&mut self, position: u64, len: usize) -> io::Result<&[u8]> {
        let rest = self.rest(position, len)?;
        Ok(&rest[..rest.len().min(len)])
    }

    /// Like [`Window::get`], shared instead of borrowed.
    pub fn share(&mut self, position: u64, len: usize) -> io::Result<Bytes> {
        let got = self.get(position, len)?.len();
        let at = self.index(position);
        Ok(self.bytes.slice(at..at + got))
    }

    /// At least the `len` bytes at `position` and everything behind them that is at hand; fewer at
    /// the limit or the file's end.
    pub fn rest(&mut self, position: u64, len: usize) -> io::Result<&[u8]> {
        let wanted = (len as u64).min(self.limit.saturating_sub(position)) as usize;
        if !self.holds(position, wanted) {
            self.fill(position, wanted)?;
        }
        let at = self.index(position);
        Ok(&self.bytes[at..])
    }

    /// The whole buffer, and where in it `position` is. For slices handed out by number.
    pub fn buffer(&self, position: u64) -> (Bytes, usize) {
        (self.bytes.clone(), self.index(position))
    }

    /// Whether those bytes can be had without reading.
    pub fn holds(&self, position: u64, len: usize) -> bool {
        position >= self.start && position + len as u64 <= self.start + self.bytes.len() as u64
    }

    fn index(&self, position: u64) -> usize {
        (position.saturating_sub(self.start) as usize).min(self.bytes.len())
    }

    fn fill(&mut self, position: u64, wanted: usize) -> io::Result<()> {
        let len = (wanted.max(self.chunk) as u64).min(self.limit.saturating_sub(position)) as usize;
        // The buffer is used again when nobody holds a slice of it.
        let mut buffer = std::mem::take(&mut self.bytes).try_into_mut().unwrap_or_default();
        if buffer.capacity() < len {
            buffer = BytesMut::zeroed(len);
        }
        buffer.resize(len, 0);
        let filled = match self.file.read_full_at(&mut buffer, position) {
            Ok(filled) => filled,
            Err(e) if is_medium_error(&e) => self.read_pages(&mut buffer, position)?,
            Err(e) => return Err(e),
        };
        buffer.truncate(filled);
        if filled < len {
            self.limit = position + filled as u64; // the file ends early
        }
        self.start = position;
        self.bytes = buffer.freeze();
        Ok(())
    }

    /// Reads page by page and leaves zeros where the medium gives nothing.
    fn read_pages(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut at = 0;
        while at < buffer.len() {
            let here = position + at as u64;
            let to = at + ((PAGE - here % PAGE) as usize).min(buffer.len() - at);
            let page = &mut buffer[at..to];
            match self.file.read_full_at(page, here) {
                Ok(filled) if filled < page.len() => return Ok(at + filled),
                Ok(_) => {}
                Err(e) if is_medium_error(&e) => page.fill(0),
                Err(e) => return Err(e),
            }
            at = to;
        }
        Ok(at)
    }
}

/// Whether some sectors are lost, and others may not be.
pub(super) fn is_medium_error(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| MEDIUM_ERRORS.contains(&code))
}
