//! Makes of a damaged archive one that verifies, losing nothing that is still there.
//!
//! | damage | repair |
//! | --- | --- |
//! | a bad or missing manifest | set aside; what it lacks is read from the files again |
//! | a listed file that holds something else | copied into quarantine; its intact lines are kept and listed anew |
//! | a listed file that is gone, offsets in no file | noted in the manifest as lost |
//!
//! The daemon must not run: the caller holds its lock. Everything is copied, synced and listed before its
//! original goes, so that a repair may be broken off anywhere and be done again. Blocks on the disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Access, Disk};
use crate::event::Micros;

use super::Options;
use super::book::{self, Book, TEMPORARY, remove_if_there};
use super::catalog::Catalog;
use super::examine::{Depth, examine};
use super::finish::{Desk, Finisher, Step, with_ending};
use super::layout::{self, ArchiveFile, Form, Piece, Tree};
use super::manifest::Entry;
use super::position::Position;
use super::recover::copy_aside;
use super::verify::{ArchiveDamage, DamageKind, verify};
use super::{Failure, IoContext};

/// Bytes of lines gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;

/// One thing to be done, or done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The damage it is for.
    pub damage: ArchiveDamage,
    /// What is done about it; `None` when nothing can be.
    pub action: Option<String>,
    /// Where the damaged bytes are kept, once it is done.
    pub quarantined: Option<PathBuf>,
}

/// Why a repair broke off.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RepairError(String);

/// What there is to repair in the archive, without doing it.
pub fn plan(
    disk: &dyn Disk,
    tree: &Tree,
    token: Option<&[u8]>,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> io::Result<Vec<Repair>> {
    let damage = verify(disk, tree, token, threads, progress)?.damage;
    Ok(damage
        .into_iter()
        .map(|damage| Repair { action: action(&damage), damage, quarantined: None })
        .collect())
}

fn action(damage: &ArchiveDamage) -> Option<String> {
    let lost = |offsets: &std::ops::Range<u64>| format!("offsets {}..{}", offsets.start, offsets.end);
    let offsets = damage.offsets.as_ref().map(lost).unwrap_or_default();
    match damage.kind {
        DamageKind::Manifest => {
            Some("set the manifest aside and list again what it lacks, from the files".to_owned())
        }
        DamageKind::Gone => Some(format!("note in the manifest that {offsets} are lost")),
        DamageKind::Gap => Some(format!("note in the manifest that {offsets} are lost or void")),
        DamageKind::Changed => {
            Some("move the file into quarantine and keep its intact lines in a new one".to_owned())
        }
        DamageKind::Other => None,
    }
}

/// Does what [`plan`] would have said, and returns what was done.
pub fn repair(
    disk: &Arc<dyn Disk>,
    options: &Options,
    token: Option<&[u8]>,
    plan: Vec<Repair>,
    now: Micros,
) -> Result<Vec<Repair>, RepairError> {
    repair_now(disk, options, token, plan, now).map_err(|failure| RepairError(failure.to_string()))
}

fn repair_now(
    disk: &Arc<dyn Disk>,
    options: &Options,
    token: Option<&[u8]>,
    mut plan: Vec<Repair>,
    now: Micros,
) -> Result<Vec<Repair>, Failure> {
    book::settle(&**disk, options)?;
    if plan.iter().any(|repair| repair.damage.kind == DamageKind::Manifest) {
        list_again(disk, options, token, now)?;
    }
    let mut book = Book::open(&**disk, options)?;
    for repair in &mut plan {
        let ArchiveDamage { kind, path, offsets, .. } = &repair.damage;
        match (kind, offsets.clone()) {
            (DamageKind::Gone, Some(offsets)) => {
                if let Some(entry) = book.manifest.entries.get(&offsets.start).cloned() {
                    book.write(&**disk, options, lost(entry, now))?;
                }
            }
            (DamageKind::Gap, Some(offsets)) => {
                book.write(&**disk, options, gap(path, options, offsets, now))?;
            }
            (DamageKind::Changed, Some(offsets)) => {
                if let Some(entry) = book.manifest.entries.get(&offsets.start).cloned() {
                    let (aside, kept) = salvage(&**disk, options, &mut book, entry, now)?;
                    repair.action = Some(format!("moved into quarantine; {kept} intact lines kept"));
                    repair.quarantined = Some(aside);
                }
            }
            _ => {}
        }
    }
    Ok(plan)
}

/// Lists finished files as the daemon would, without compressing or removing any.
fn list_again(
    disk: &Arc<dyn Disk>,
    options: &Options,
    token: Option<&[u8]>,
    now: Micros,
) -> Result<(), Failure> {
    let options =
        Options { compress: Form::Plain, retain_age: None, retain_size_bytes: None, ..options.clone() };
    let (position, finished) = token.and_then(Position::decode).unzip();
    let catalog = Catalog::read(&**disk, &options.tree).doing("listing", &options.tree.root)?;
    let last = catalog.files.last().map_or(0, |file| file.file.first_offset);
    let below = match position {
        Some(Position { file: Some(file), .. }) => file.first_offset,
        Some(position) => position.next_offset,
        None => last,
    };
    let desk = Arc::new(Desk::default());
    desk.hand_over(&finished.unwrap_or_default(), below);
    let mut finisher = Finisher::new(disk.clone(), options.clone(), desk);
    while finisher.step_now(now)? == Step::Worked {}
    Ok(())
}

/// A file that is to be missed no more.
fn lost(entry: Entry, now: Micros) -> Entry {
    Entry { removed: Some(now), reason: Some("lost; noted by `archive repair`".to_owned()), ..entry }
}

/// A line for offsets that stand in no file.
fn gap(path: &Path, options: &Options, offsets: std::ops::Range<u64>, now: Micros) -> Entry {
    let dir = path.strip_prefix(&options.tree.root).ok().and_then(Path::parent).unwrap_or(Path::new("lost"));
    let dir = if dir.as_os_str().is_empty() { Path::new("lost") } else { dir };
    let name = format!("{}/events-{:020}.ndjson", dir.display(), offsets.start);
    lost(Entry::unread(name, offsets.start, offsets.end - 1, now), now)
}

/// Copies a changed file into quarantine, writes its intact lines into a new plain one and lists that.
fn salvage(
    disk: &dyn Disk,
    options: &Options,
    book: &mut Book,
    entry: Entry,
    now: Micros,
) -> Result<(PathBuf, u64), Failure> {
    let old = entry.path(&options.tree.root);
    let source = disk.open(&old, Access::Read).doing("opening", &old)?;
    let ending = format!("ndjson{}", entry.form().ending());
    let name = format!("{:020}", entry.first_offset);
    let aside = copy_aside(disk, options, &old, source.as_ref(), 0, (&name, &ending))?;
    let known = options.tree.file(&entry.name).doing("opening", &old)?;
    let temporary = with_ending(&old, TEMPORARY);
    remove_if_there(disk, &temporary)?;
    let first = copy_intact_lines(disk, &known, &entry, &temporary)?;
    let dir = old.parent().unwrap_or(&options.tree.root).to_owned();
    let mut kept = 0;
    if let Some(first) = first {
        let new = options.tree.path(known.day, first);
        disk.replace(&temporary, &new).doing("renaming", &temporary)?;
        disk.sync_dir(&dir).doing("syncing", &dir)?;
        let file = ArchiveFile { first_offset: first, form: Form::Plain, path: new.clone(), ..known };
        let found = examine(disk, &file, Depth::Lines, None, &mut |_| true).doing("reading", &new)?;
        let found = found.unwrap_or_default();
        kept = found.count;
        if let Some(anew) = Entry::of_file(&options.tree.root, &file, &found, entry.covers_from) {
            if anew.last_offset < entry.last_offset {
                let cut = anew.last_offset + 1..entry.last_offset + 1;
                book.write(disk, options, gap(&new, options, cut, now))?;
            }
            let reason = format!("mended by `archive repair`: {} of {} events were kept", kept, entry.count);
            book.write(disk, options, Entry { reason: Some(reason), ..anew })?;
        }
    } else {
        remove_if_there(disk, &temporary)?;
    }
    if first != Some(entry.first_offset) {
        let last_offset = first.map_or(entry.last_offset, |first| first - 1);
        let mut gone = lost(Entry { last_offset, voids: vec![], ..entry.clone() }, now);
        gone.count = gone.count.saturating_sub(kept).max(1);
        book.write(disk, options, gone)?;
    }
    if first.is_none_or(|first| options.tree.path(known.day, first) != old) {
        remove_if_there(disk, &old)?;
        disk.sync_dir(&dir).doing("syncing", &dir)?;
    }
    Ok((aside, kept))
}

/// The offset of the first line that was kept. Lines that are out of order, or not of this file, are not.
fn copy_intact_lines(
    disk: &dyn Disk,
    file: &ArchiveFile,
    entry: &Entry,
    to: &Path,
) -> Result<Option<u64>, Failure> {
    let mut lines = layout::open_lines(disk, file).doing("opening", &file.path)?;
    let copy = disk.create(to).doing("creating", to)?;
    let (mut buffer, mut written) = (Vec::new(), 0);
    let (mut first, mut next) = (None, entry.first_offset);
    // A stream that cannot be decompressed any further ends there.
    while let Ok(Some(piece)) = lines.next_piece() {
        let Piece::Line(line) = piece else { continue };
        let Some(stamp) = layout::intact_stamp(line) else { continue };
        if stamp.offset < next || stamp.offset > entry.last_offset {
            continue;
        }
        first = first.or(Some(stamp.offset));
        next = stamp.offset + 1;
        buffer.extend_from_slice(line);
        buffer.push(b'\n');
        if buffer.len() >= WRITE_BYTES {
            copy.write_all_at(&buffer, written).doing("writing", to)?;
            written += buffer.len() as u64;
            buffer.clear();
        }
    }
    copy.write_all_at(&buffer, written).doing("writing", to)?;
    copy.sync_data().doing("syncing", to)?;
    Ok(first)
}
