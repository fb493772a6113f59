//! Copies of bytes set aside as damaged, so that their original may be used again (R10).
//!
//! A copy is whole or absent: written under a temporary name, synced, renamed, and the directory
//! synced. Blocks. Failing to copy never stops anything: the caller keeps the original instead.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::scan::Loss;
use super::window::is_medium_error;
use super::{Damage, Options, Stream};
use crate::disk::{Access, Disk};

/// Bytes copied at a time.
const COPY_CHUNK: usize = 1 << 20;
/// A torn tail was never promised to anybody: so much of it is kept.
pub(super) const TORN_TAIL_BYTES: u64 = 1 << 20;

/// Copies `bytes` of `file` into the quarantine directory and returns the copy's path. What was
/// copied before is not copied again.
pub(super) fn keep(
    disk: &dyn Disk,
    options: &Options,
    file: &Path,
    salt: u64,
    bytes: Range<u64>,
) -> io::Result<PathBuf> {
    let name = name_of(options.stream, file, salt, &bytes);
    let dir = &options.quarantine_dir;
    let path = dir.join(&name);
    disk.create_dir_all(dir)?;
    if disk.open(&path, Access::Read).is_ok() {
        disk.sync_dir(dir)?; // a run before this one may have been killed before it did
        return Ok(path);
    }
    let temporary = dir.join(format!("{name}.tmp"));
    match disk.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let copied = copy(disk, file, &bytes, &temporary).and_then(|()| disk.replace(&temporary, &path));
    if let Err(e) = copied {
        let _ = disk.remove(&temporary); // half a copy is of no use; left, the next attempt removes it
        return Err(e);
    }
    disk.sync_dir(dir)?;
    Ok(path)
}

/// The salt tells uses of one file apart; the same bytes get the same name again.
fn name_of(stream: Stream, file: &Path, salt: u64, bytes: &Range<u64>) -> String {
    let stream = match stream {
        Stream::Events => "events",
        Stream::Ledger => "ledger",
        Stream::Failures => "failures",
    };
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{stream}-{stem}-{salt:016x}-{}-{}.bin", bytes.start, bytes.end)
}

/// Keeps a whole file that is about to be replaced. Where the medium does not give all of it, the file
/// itself gets a second name: nobody writes over what could not be copied.
pub(super) fn keep_file(
    disk: &dyn Disk,
    options: &Options,
    file: &Path,
    salt: u64,
    len: u64,
) -> io::Result<PathBuf> {
    let dir = &options.quarantine_dir;
    match keep(disk, options, file, salt, 0..len) {
        Err(error) if is_medium_error(&error) => {
            let path = dir.join(name_of(options.stream, file, salt, &(0..len)));
            disk.link(file, &path)?;
            disk.sync_dir(dir)?;
            Ok(path)
        }
        kept => kept,
    }
}

fn copy(disk: &dyn Disk, file: &Path, bytes: &Range<u64>, to: &Path) -> io::Result<()> {
    let from = disk.open(file, Access::Read)?;
    let to = disk.create(to)?;
    let mut buffer = vec![0; COPY_CHUNK.min((bytes.end - bytes.start) as usize)];
    let mut position = bytes.start;
    while position < bytes.end {
        let piece = buffer.len().min((bytes.end - position) as usize);
        let filled = from.read_full_at(&mut buffer[..piece], position)?;
        to.write_all_at(&buffer[..filled], position - bytes.start)?;
        position += filled as u64;
        if filled < piece {
            break;
        }
    }
    to.sync_data()
}

/// Tells the operator of a loss, once its bytes are set aside. `false` when there are bytes of which
/// no copy could be made.
pub(super) fn tell(
    disk: &dyn Disk,
    options: &Options,
    file: &Path,
    salt: u64,
    loss: &Loss,
) -> (Damage, bool) {
    let copy = if loss.bytes.is_empty() {
        Ok(None)
    } else {
        keep(disk, options, file, salt, loss.bytes.clone()).map(Some)
    };
    if let Err(e) = &copy {
        let dir = options.quarantine_dir.display();
        tracing::warn!(reason = %e, %dir, "damaged bytes could not be copied; their file is kept");
    }
    let kept = copy.is_ok();
    let damage = Damage {
        file: file.to_owned(),
        bytes: loss.bytes.clone(),
        lost: loss.lost.clone(),
        quarantined: copy.ok().flatten(),
        reason: loss.reason.to_owned(),
    };
    tracing::error!(
        file = %damage.file.display(),
        from_byte = damage.bytes.start,
        to_byte = damage.bytes.end,
        first_lost = damage.lost.start,
        lost = damage.lost.end - damage.lost.start,
        quarantined = damage.quarantined.as_ref().map(|path| path.display().to_string()),
        reason = damage.reason,
        "damage in the log; everything intact around it is kept"
    );
    (damage, kept)
}

/// Damages remembered as told; beyond it some may be told twice.
const MAX_TOLD: usize = 65_536;

/// What is known to be wrong with a log, so that each damage is told once however many read it.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Offsets told as lost, or known to be void: start to end.
    offsets: BTreeMap<u64, u64>,
    /// Damage that cost nothing: base of the segment and position.
    harmless: BTreeSet<(u64, u64)>,
}

impl Known {
    /// Remembers a damage, or a void with no bytes; `false` when it was known.
    pub fn learn(&mut self, base: u64, bytes: &Range<u64>, offsets: &Range<u64>) -> bool {
        if offsets.is_empty() {
            return self.harmless.len() >= MAX_TOLD || self.harmless.insert((base, bytes.start));
        }
        let before = self.offsets.range(..=offsets.start).next_back();
        if before.is_some_and(|(_, end)| *end >= offsets.end) {
            return false;
        }
        if self.offsets.len() < MAX_TOLD {
            self.offsets.insert(offsets.start, offsets.end);
        }
        true
    }
}
