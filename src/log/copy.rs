//! A copy of an open log in another directory: what a crash at one moment would have left of it.
//!
//! ```text
//! sealed segments   whole, stale bytes and damage included: the copy is as good as the original
//! newest segment    up to the durable position, zeros behind it, at its full length
//! spares            none: opening prepares its own
//! ```
//!
//! The end is decided before the first byte is read, so a frame that is written meanwhile can neither
//! tear nor show up behind one that is missing. Segments are renamed and written over once they are
//! released, so they are copied and never linked; and whoever copies keeps them from being released
//! until it is done. One that is released all the same is an error, and the copy is worth nothing.
//!
//! Runs on the caller's thread; the writer and the readers go on. A failure leaves a part of the copy
//! behind, for the caller to remove.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::segment::{Segment, segment_name};
use super::{Log, LogError};
use crate::disk::{DiskFile, copy_bytes};

/// Bytes of zeros written at once.
const FILL_BYTES: usize = 1 << 20;

/// What a copy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// The oldest offset in it.
    pub first_offset: u64,
    /// Every record below this offset that the log holds is in it.
    pub durable_end: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

impl Log {
    /// Copies everything that is durable now into `dir`, which is created, synced with all its names.
    pub fn copy_to(&self, dir: &Path) -> Result<Copied, LogError> {
        // First the end, then the segments: those found hold everything below it.
        let durable_end = self.durable_end();
        let segments: Vec<Arc<Segment>> = self.shared().state().segments.iter().cloned().collect();
        let disk = self.disk();
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| LogError::io(action, &path, &error)
        };
        disk.create_dir_all(dir).map_err(failed("creating", dir))?;
        let mut copied = Copied { first_offset: durable_end, durable_end, bytes: 0 };
        for (at, segment) in segments.iter().enumerate() {
            let size = segment.header.size;
            let is_newest = at + 1 == segments.len();
            let used = if is_newest { segment.durable_position().min(size) } else { size };
            let to = dir.join(segment_name(segment.base()));
            let file = segment.open(disk).map_err(failed("opening", &segment.path))?;
            // A sealed file that was cut is damage to be seen in the copy as well.
            let used = used.min(file.len().map_err(failed("reading the length of", &segment.path))?);
            let copy = copy_bytes(disk, &*file, &to, used).map_err(failed("copying", &segment.path))?;
            if is_newest {
                fill(&*copy, used, size).map_err(failed("writing", &to))?;
            }
            if segment.is_released() {
                return Err(LogError::Failed(format!("{} was released while it was copied", to.display())));
            }
            copied.bytes += if is_newest { size } else { used };
        }
        copied.first_offset = segments.first().map_or(durable_end, |first| first.base());
        disk.sync_dir(dir).map_err(failed("syncing directory", dir))?;
        Ok(copied)
    }
}

/// Writes zeros from `from` to the end, because the segment may be used again once it is released, and
/// then must not ask the disk for blocks.
pub(super) fn fill(file: &dyn DiskFile, from: u64, end: u64) -> io::Result<()> {
    let zeros = vec![0u8; FILL_BYTES];
    let mut at = from;
    while at < end {
        let piece = (end - at).min(FILL_BYTES as u64);
        file.write_all_at(&zeros[..piece as usize], at)?;
        at += piece;
    }
    file.sync_data()
}
