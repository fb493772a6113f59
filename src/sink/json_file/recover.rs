//! Bringing the archive back to where it is known to be whole: after a start, after a failure.
//!
//! Two ways, and which one is right depends on what the queue will deliver again:
//!
//! * [`cut_back`]: the position is known and everything behind it comes again. The file is cut to
//!   its length there, and files that begin behind it are removed. What is cut was never
//!   checkpointed, and may have holes where writes had not reached the disk.
//! * [`survey`]: the position is lost, or older than what the queue still holds. Nobody but the
//!   archive might have an event any more, so none that does not come again is touched. Only the last
//!   file can be anything but whole; its lines whose events do come again are a [`Suspect`], because a
//!   line that was not synced can look intact and be wrong (a hole filled with older bytes). They
//!   stay until the first event that comes again has proven that this archive is ours, and are then
//!   set aside, cut and written anew.
//!
//! Both end with everything they relied on synced, so that a power loss right after them leads to the
//! same verdict. Both can be run again at any time, and are, after a failure on the way.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use crate::disk::{Access, Disk, DiskFile};
use crate::planted::{self, Mistake};

use super::layout::{self, ArchiveFile, Form, Piece, Tree};
use super::manifest::{self, Manifest};
use super::position::{FilePosition, Position, TAIL_BYTES};
use super::{Failure, IoContext, Options};

/// The file a position speaks of, open, with its last bytes.
pub(super) struct OpenFile {
    pub handle: Box<dyn DiskFile>,
    pub path: PathBuf,
    /// At most [`TAIL_BYTES`].
    pub tail: Vec<u8>,
}

/// Where the archive stands after a recovery.
pub(super) struct Recovered {
    pub position: Position,
    /// The position was read from the archive itself.
    pub surveyed: bool,
    pub suspect: Option<Suspect>,
}

/// The archive's last file, as long as nobody knows what to make of its end.
#[derive(Debug, Clone)]
pub(super) struct Suspect {
    pub file: ArchiveFile,
    end: u64,
    /// Up to the last line whose event does not come again.
    pub certain: Cut,
    /// Up to the first line that is not intact.
    pub intact: Cut,
}

/// The least that a lost position can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Floor {
    pub next_offset: u64,
    /// Every offset below is an event's, or void; those from here to `next_offset` are void.
    pub void_from: u64,
}

impl Floor {
    pub fn of(position: Position) -> Self {
        Self { next_offset: position.next_offset, void_from: position.void_from }
    }
}

/// A place to cut a file, and the next offset the archive has then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    at: u64,
    pub next_offset: u64,
    /// Offsets from here to the next one hold no event, as far as is known.
    pub void_from: u64,
}

/// Why a file is not the one a position speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Changed {
    #[error("it is gone")]
    Gone,
    #[error("it is shorter than what was written to it")]
    Shorter,
    #[error("it is longer than what was written to it")]
    Longer,
    #[error("it holds something else")]
    Replaced,
}

/// Opens the file of a position by its name and compares it with what the position vouches for.
/// Bytes behind the position's length are for the caller to judge.
pub(super) fn open_known(
    disk: &dyn Disk,
    tree: &Tree,
    file: &FilePosition,
) -> Result<Result<OpenFile, Changed>, Failure> {
    let path = tree.path(file.day, file.first_offset);
    let handle = match disk.open(&path, Access::ReadWrite) {
        Ok(handle) => handle,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Err(Changed::Gone));
        }
        Err(error) => return Err(error).doing("opening", &path),
    };
    if handle.len().doing("reading the length of", &path)? < file.length {
        return Ok(Err(Changed::Shorter));
    }
    let mut tail = vec![0; TAIL_BYTES.min(usize::try_from(file.length).unwrap_or(TAIL_BYTES))];
    let from = file.length - tail.len() as u64;
    let read = handle.read_full_at(&mut tail, from).doing("reading", &path)?;
    if read < tail.len() || crc32fast::hash(&tail) != file.tail_crc {
        return Ok(Err(Changed::Replaced));
    }
    Ok(Ok(OpenFile { handle, path, tail }))
}

/// Says what an edited archive file means, once.
pub(super) fn report_changed(sink: &str, path: &Path, file: &FilePosition, next_offset: u64, why: Changed) {
    error!(
        sink,
        path = %path.display(),
        reason = %why,
        first_offset = file.first_offset,
        next_offset,
        events = file.events,
        "an archive file was changed by someone else; what it held may be lost from the archive; \
         going on in a new file"
    );
}

/// Cuts the archive back to `position`: for when everything from `position.next_offset` on comes
/// again. `finish` gives the file up for further writing, because a sync of it failed.
///
/// A cut is synced through the same file even after a failed sync: only its new, smaller length is
/// at stake then. The bytes that stay were synced before the failure, and the ones whose fate is
/// unknown are gone.
///
/// When the file is not as it was left, neither may the rest of the archive be (somebody may have
/// configured another directory): then nothing is removed, and the archive is surveyed instead.
pub(super) fn cut_back(
    disk: &dyn Disk,
    options: &Options,
    position: Position,
    finish: bool,
) -> Result<Recovered, Failure> {
    let root = &options.tree.root;
    disk.create_dir_all(root).doing("creating", root)?;
    let mut kept = position;
    if let Some(file) = &position.file {
        let open = match open_known(disk, &options.tree, file)? {
            Ok(open) => open,
            Err(why) => {
                let path = options.tree.path(file.day, file.first_offset);
                report_changed(&options.sink, &path, file, position.next_offset, why);
                return survey(disk, options, Floor::of(position), position.next_offset);
            }
        };
        let length = open.handle.len().doing("reading the length of", &open.path)?;
        let last_line;
        let file = if planted::made(Mistake::ArchiveCutAtLastLine) {
            last_line = up_to_last_line(&open, *file, length).doing("reading", &open.path)?;
            kept.file = Some(last_line);
            &last_line
        } else {
            file
        };
        let is_longer = length > file.length && !planted::made(Mistake::ArchiveNotCut);
        if is_longer {
            open.handle.set_len(file.length).doing("cutting", &open.path)?;
            info!(
                sink = options.sink,
                path = %open.path.display(),
                bytes = length - file.length,
                "archive file cut back to its last checkpoint"
            );
        }
        if is_longer || finish {
            sync(&open)?;
        }
        if finish {
            kept.file = None;
        }
    }
    remove_from(disk, options, position.next_offset)?;
    Ok(Recovered { position: kept, surveyed: false, suspect: None })
}

/// A position behind the last whole line of its file, as a mistake that is planted has it.
fn up_to_last_line(open: &OpenFile, file: FilePosition, length: u64) -> io::Result<FilePosition> {
    let mut bytes = vec![0; length as usize];
    open.handle.read_full_at(&mut bytes, 0)?;
    bytes.truncate(memchr::memrchr(b'\n', &bytes).map_or(0, |at| at + 1));
    let tail = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
    let (crc, tail_crc) = (crc32fast::hash(&bytes), crc32fast::hash(tail));
    Ok(FilePosition { length: bytes.len() as u64, crc, tail_crc, ..file })
}

/// Syncs an archive file; a failure says that the file is not to be written to again.
pub(super) fn sync(open: &OpenFile) -> Result<(), Failure> {
    open.handle.sync_data().map_err(|source| Failure::Sync { path: open.path.clone(), source })
}

/// Removes every file whose events all come again. A name that stayed behind could come back after
/// a power loss with events that by then stand in another file too, so the removals are synced
/// before anything is written.
fn remove_from(disk: &dyn Disk, options: &Options, next_offset: u64) -> Result<(), Failure> {
    let files = options.tree.list(disk).doing("listing", &options.tree.root)?;
    let beyond: Vec<&ArchiveFile> =
        files.iter().filter(|f| f.first_offset >= next_offset && f.form == Form::Plain).collect();
    let mut dirs = BTreeSet::new();
    for file in &beyond {
        disk.remove(&file.path).doing("removing", &file.path)?;
        dirs.extend(file.path.parent());
    }
    for dir in dirs {
        disk.sync_dir(dir).doing("syncing", dir)?;
    }
    if !beyond.is_empty() {
        info!(
            sink = options.sink,
            files = beyond.len(),
            next_offset,
            "archive files begun after the last checkpoint removed"
        );
    }
    Ok(())
}

/// Finds out where the archive ends from the archive alone, keeping every intact event. `floor` is
/// the least the next offset can be; events from `again_from` on come again, the ones below do not.
///
/// Only the last file is read: the one before it was synced whole before its successor's name was
/// made.
pub(super) fn survey(
    disk: &dyn Disk,
    options: &Options,
    floor: Floor,
    again_from: u64,
) -> Result<Recovered, Failure> {
    let Floor { next_offset: floor, void_from } = floor;
    let root = &options.tree.root;
    disk.create_dir_all(root).doing("creating", root)?;
    let files = options.tree.list(disk).doing("listing", root)?;
    let position = Position::between(floor, void_from);
    let mut recovered = Recovered { position, surveyed: true, suspect: None };
    let Some(file) = files.last() else { return Ok(recovered) };
    let manifest = Manifest::read(disk, root).doing("reading", &root.join(manifest::NAME))?;
    if let Some(entry) = manifest.entries.get(&file.first_offset) {
        // Read back whole before it was listed.
        let next_offset = floor.max(entry.last_offset + 1);
        recovered.position = Position::between(next_offset, void_from.max(entry.last_offset + 1));
        return Ok(recovered);
    }
    let found = examine(disk, file, again_from).doing("reading", &file.path)?;
    if found.damaged || (file.form != Form::Plain && found.intact.at < found.end) {
        error!(
            sink = options.sink,
            path = %file.path.display(),
            "an archive file is damaged; left as it is, and going on in a new file"
        );
    }
    // Without a line its name still says where its predecessor ended at the latest.
    let before = files.iter().rev().nth(1).map_or(0, |file| file.first_offset + 1);
    let cut = |kept: Kept| Cut {
        at: kept.at,
        void_from: void_from.max(kept.last_offset.map_or(before, |last| last.saturating_add(1))),
        next_offset: floor.max(kept.last_offset.map_or(file.first_offset, |o| o.saturating_add(1))),
    };
    let suspect = Suspect {
        file: file.clone(),
        end: found.end,
        certain: cut(found.certain),
        intact: cut(found.intact),
    };
    recovered.position = Position::between(suspect.intact.next_offset, suspect.intact.void_from);
    info!(
        sink = options.sink,
        path = %file.path.display(),
        next_offset = recovered.position.next_offset,
        "the archive's checkpoint is lost or old; its end was read from its last file"
    );
    if file.form != Form::Plain {
        // Finished long ago, so whole.
    } else if suspect.certain == suspect.intact {
        settle(disk, options, &suspect, suspect.certain)?;
    } else {
        recovered.suspect = Some(suspect);
    }
    Ok(recovered)
}

/// What one file holds.
#[derive(Debug, Default)]
struct Examined {
    /// Up to the last intact line whose event does not come again, whatever stands before it.
    certain: Kept,
    /// From there on up to the first line that is not intact.
    intact: Kept,
    /// The file's length, decompressed.
    end: u64,
    /// Whether a bad line stands before the certain end.
    damaged: bool,
}

/// A file up to the end of a line.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    at: u64,
    last_offset: Option<u64>,
}

fn examine(disk: &dyn Disk, file: &ArchiveFile, again_from: u64) -> io::Result<Examined> {
    let mut lines = layout::open_lines(disk, file)?;
    let mut found = Examined::default();
    let mut bad = false;
    while let Some(piece) = lines.next_piece()? {
        let offset = match piece {
            Piece::Line(line) => layout::intact_stamp(line).map(|stamp| stamp.offset),
            Piece::Unfinished(_) | Piece::Overlong => None,
        };
        found.end = lines.position();
        let ascends =
            |o: &u64| *o >= file.first_offset && found.intact.last_offset.is_none_or(|last| *o > last);
        let here = Kept { at: found.end, last_offset: offset.filter(ascends) };
        match here.last_offset {
            Some(offset) if offset < again_from => {
                found.damaged |= std::mem::take(&mut bad);
                (found.certain, found.intact) = (here, here);
            }
            Some(_) if !bad => found.intact = here,
            Some(_) => {}
            None => bad = true,
        }
    }
    Ok(found)
}

/// Decides what stays of a surveyed file: sets the rest aside, cuts it, and makes all of it durable.
pub(super) fn settle(disk: &dyn Disk, options: &Options, suspect: &Suspect, cut: Cut) -> Result<(), Failure> {
    let path = &suspect.file.path;
    let dir = path.parent().unwrap_or(&options.tree.root);
    let handle = disk.open(path, Access::ReadWrite).doing("opening", path)?;
    if cut.at < suspect.end {
        let aside = set_aside(disk, options, &suspect.file, handle.as_ref(), cut.at)?;
        warn!(
            sink = options.sink,
            path = %path.display(),
            bytes = suspect.end - cut.at,
            next_offset = cut.next_offset,
            quarantined = %aside.display(),
            "the end of an archive file cannot be trusted and was set aside; its events are written again"
        );
    }
    if cut.at == 0 {
        // Nothing in it counts, and the next event may need its name.
        disk.remove(path).doing("removing", path)?;
        return disk.sync_dir(dir).doing("syncing", dir);
    }
    if cut.at < suspect.end {
        handle.set_len(cut.at).doing("cutting", path)?;
    }
    // A killed daemon may have left both its bytes and its name in memory only.
    disk.create_dir_all(dir).doing("syncing", dir)?;
    disk.sync_dir(dir).doing("syncing", dir)?;
    handle.sync_data().map_err(|source| Failure::Untrusted { path: path.clone(), source })
}

/// Copies a file from `position` on into quarantine, synced before it returns.
fn set_aside(
    disk: &dyn Disk,
    options: &Options,
    file: &ArchiveFile,
    source: &dyn DiskFile,
    position: u64,
) -> Result<PathBuf, Failure> {
    let name = format!("{:020}-at-{position}", file.first_offset);
    copy_aside(disk, options, &file.path, source, position, (&name, "ndjson"))
}

/// The same under a name and with an ending of the caller's; a number makes it one that is free.
pub(super) fn copy_aside(
    disk: &dyn Disk,
    options: &Options,
    path_of_source: &Path,
    source: &dyn DiskFile,
    position: u64,
    (name, ending): (&str, &str),
) -> Result<PathBuf, Failure> {
    let dir = &options.quarantine_dir;
    disk.create_dir_all(dir).doing("creating", dir)?;
    let mut copies = 0;
    // An attempt that broke off leaves its copy; the next one takes another name.
    let (path, copy) = loop {
        let path = dir.join(format!("{}-{name}-{copies}.{ending}", options.sink));
        match disk.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => copies += 1,
            result => break (path.clone(), result.doing("creating", &path)?),
        }
    };
    let mut chunk = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let read = source.read_full_at(&mut chunk, position + at).doing("reading", path_of_source)?;
        if read == 0 {
            break;
        }
        copy.write_all_at(&chunk[..read], at).doing("writing", &path)?;
        at += read as u64;
    }
    copy.sync_data().doing("syncing", &path)?;
    disk.sync_dir(dir).doing("syncing", dir)?;
    Ok(path)
}
