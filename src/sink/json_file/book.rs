//! Writes the manifest, and brings archive and manifest into agreement after a start.
//!
//! ```text
//!   temporary file ── synced ── renamed ── directory synced ── listed ── plain file removed
//!        └───── a crash before "listed": plain counts ─────┘     └── after it: the listed one ──┘
//! ```
//!
//! One writer at a time: first the sink's start ([`settle`]), then its background work, which owns a
//! [`Book`]. A line is appended and synced; after a failed sync the file is not trusted any more, and the
//! next line is written with all others into a new one that takes its place.
//!
//! Blocks on the disk. Everything here can be broken off anywhere and be done again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use crate::disk::{Access, Disk};

use super::catalog::{Catalog, CatalogFile};
use super::examine::{Depth, examine};
use super::layout::{ArchiveFile, Form};
use super::manifest::{Entry, Manifest, NAME};
use super::{Failure, IoContext, Options};

/// Ending of files that are being written beside the one they are to replace.
pub(super) const TEMPORARY: &str = ".tmp";

/// So many lines more than files are worth a manifest that is written anew.
pub(super) const SPARE_LINES: u64 = 256;

/// The manifest, open for more lines.
#[derive(Debug)]
pub(super) struct Book {
    pub manifest: Manifest,
    /// The file may hold something else than `manifest`.
    is_doubtful: bool,
}

impl Book {
    /// Reads the manifest, which [`settle`] has made durable.
    pub fn open(disk: &dyn Disk, options: &Options) -> Result<Self, Failure> {
        let path = options.tree.root.join(NAME);
        let manifest = Manifest::read(disk, &options.tree.root).doing("reading", &path)?;
        let is_doubtful = !manifest.damage.is_empty() || manifest.unfinished.is_some();
        Ok(Self { manifest, is_doubtful })
    }

    /// Writes a line that holds from now on for its file; it is durable when this returns.
    pub fn write(&mut self, disk: &dyn Disk, options: &Options, entry: Entry) -> Result<(), Failure> {
        let line = entry.to_line();
        let first_offset = entry.first_offset;
        let before = self.manifest.entries.insert(first_offset, entry);
        let written = if self.is_doubtful || self.manifest.end == 0 {
            replace(disk, &options.tree.root, &self.manifest)
        } else {
            append(disk, options, self.manifest.end, &line)
        };
        match &written {
            Ok(bytes) => {
                self.manifest.lines += 1;
                self.manifest.end = *bytes;
                self.is_doubtful = false;
            }
            Err(_) => {
                self.is_doubtful = true;
                match before {
                    Some(before) => self.manifest.entries.insert(first_offset, before),
                    None => self.manifest.entries.remove(&first_offset),
                };
            }
        }
        written.map(drop)
    }

    /// Writes the manifest anew when most of its lines are about files that are gone. Their removal must be
    /// durable: a file that came back would not be known for one that was removed.
    pub fn compact(&mut self, disk: &dyn Disk, root: &Path) -> Result<(), Failure> {
        let kept = self.manifest.entries.values().filter(|entry| entry.is_kept()).count() as u64;
        if self.manifest.lines <= 2 * kept + SPARE_LINES {
            return Ok(());
        }
        let entries = self.manifest.compacted();
        let manifest = Manifest { lines: entries.len() as u64, entries, ..Manifest::default() };
        // A failure may have left either of the two in place.
        self.is_doubtful = true;
        let end = replace(disk, root, &manifest)?;
        (self.manifest, self.is_doubtful) = (Manifest { end, ..manifest }, false);
        Ok(())
    }
}

fn append(disk: &dyn Disk, options: &Options, end: u64, line: &[u8]) -> Result<u64, Failure> {
    let path = options.tree.root.join(NAME);
    let file = disk.open(&path, Access::ReadWrite).doing("opening", &path)?;
    file.write_all_at(line, end).doing("writing", &path)?;
    file.sync_data().doing("syncing", &path)?;
    Ok(end + line.len() as u64)
}

/// Writes all lines into a new file that takes the manifest's place.
pub(super) fn replace(disk: &dyn Disk, root: &Path, manifest: &Manifest) -> Result<u64, Failure> {
    let (path, temporary) = (root.join(NAME), root.join(format!("{NAME}{TEMPORARY}")));
    remove_if_there(disk, &temporary)?;
    let lines: Vec<u8> = manifest.entries.values().flat_map(Entry::to_line).collect();
    let file = disk.create(&temporary).doing("creating", &temporary)?;
    file.write_all_at(&lines, 0).doing("writing", &temporary)?;
    file.sync_data().doing("syncing", &temporary)?;
    disk.replace(&temporary, &path).doing("renaming", &temporary)?;
    disk.sync_dir(root).doing("syncing", root)?;
    Ok(lines.len() as u64)
}

/// Removes a file that may be gone already.
pub(super) fn remove_if_there(disk: &dyn Disk, path: &Path) -> Result<(), Failure> {
    match disk.remove(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.doing("removing", path),
    }
}

/// Cuts a torn line off the manifest, makes what stays durable, and removes what a crash has left
/// of work that was begun or is done. Afterwards each event stands in one file.
pub(super) fn settle(disk: &dyn Disk, options: &Options) -> Result<Manifest, Failure> {
    let root = &options.tree.root;
    disk.create_dir_all(root).doing("creating", root)?;
    let catalog = Catalog::read(disk, &options.tree).doing("listing", root)?;
    make_durable(disk, options, &catalog.manifest)?;
    let kept = clear(disk, options, &catalog, u64::MAX)?;
    for (file, other) in kept {
        warn!(
            sink = options.sink,
            path = %file.path.display(),
            other = %other.path.display(),
            "two archive files begin at the same offset and the one that counts is not whole; \
             `eventflow archive verify` tells more"
        );
    }
    for path in temporaries(disk, root, &catalog) {
        remove_if_there(disk, &path)?;
    }
    Ok(catalog.manifest)
}

/// Removes files below an offset that others stand for; returns those that must stay, each with the file
/// that should have stood for it. The last good copy of an event never goes.
pub(super) fn clear<'a>(
    disk: &dyn Disk,
    options: &Options,
    catalog: &'a Catalog,
    below: u64,
) -> Result<Vec<(&'a ArchiveFile, &'a ArchiveFile)>, Failure> {
    let mut dirs = BTreeSet::new();
    let mut kept = Vec::new();
    for file in catalog.leftovers.iter().filter(|file| file.first_offset < below) {
        let stays = catalog.files.iter().find(|other| other.file.first_offset == file.first_offset);
        let is_needless = match stays {
            None => true, // retention took it: the manifest says so, and the file only has to follow
            Some(CatalogFile { listed: None, .. }) => file.form != Form::Plain, // never listed, so never whole
            Some(CatalogFile { file: listed, listed: Some(entry) }) => {
                let found = examine(disk, listed, Depth::Stamps, None, &mut |_| true).ok().flatten();
                found.is_some_and(|found| {
                    (found.bytes, &found.sha256, found.wrong) == (entry.bytes, &entry.sha256, None)
                })
            }
        };
        match stays {
            Some(stays) if !is_needless => kept.push((file, &stays.file)),
            _ => {
                remove_if_there(disk, &file.path)?;
                dirs.extend(file.path.parent());
                info!(
                    sink = options.sink,
                    path = %file.path.display(),
                    "an archive file that a crash had left over was removed"
                );
            }
        }
    }
    for dir in dirs {
        disk.sync_dir(dir).doing("syncing", dir)?;
    }
    Ok(kept)
}

/// Cuts, or sets aside and writes anew, a manifest that is not whole; syncs one that is.
fn make_durable(disk: &dyn Disk, options: &Options, manifest: &Manifest) -> Result<(), Failure> {
    let path = options.tree.root.join(NAME);
    if manifest.lines == 0 {
        return Ok(());
    }
    if let Some(bad) = manifest.damage.first() {
        let aside = set_manifest_aside(disk, options)?;
        error!(
            sink = options.sink,
            path = %path.display(),
            line = bad.number,
            position = bad.bytes.start,
            quarantined = %aside.display(),
            "the archive's manifest is damaged; it was set aside, and what is missing in it is read from the files again"
        );
        return replace(disk, &options.tree.root, manifest).map(drop);
    }
    let file = disk.open(&path, Access::ReadWrite).doing("opening", &path)?;
    if let Some(unfinished) = &manifest.unfinished {
        file.set_len(manifest.end).doing("cutting", &path)?;
        info!(
            sink = options.sink,
            path = %path.display(),
            bytes = unfinished.bytes.end - unfinished.bytes.start,
            "an unfinished line was cut off the archive's manifest; its file is listed again"
        );
    }
    file.sync_data().doing("syncing", &path)?;
    disk.sync_dir(&options.tree.root).doing("syncing", &options.tree.root)
}

/// Copies the manifest into quarantine.
fn set_manifest_aside(disk: &dyn Disk, options: &Options) -> Result<PathBuf, Failure> {
    let path = options.tree.root.join(NAME);
    let source = disk.open(&path, Access::Read).doing("opening", &path)?;
    super::recover::copy_aside(disk, options, &path, source.as_ref(), 0, ("manifest", "ndjson"))
}

/// Files that a crash has left half-written. Best effort: what cannot be seen is no event's only copy.
fn temporaries(disk: &dyn Disk, root: &Path, catalog: &Catalog) -> Vec<PathBuf> {
    let dirs: BTreeSet<&Path> = catalog
        .files
        .iter()
        .filter(|file| file.listed.is_none())
        .filter_map(|file| file.file.path.parent())
        .chain(std::iter::once(root))
        .collect();
    let is_ours = |name: &str| {
        name.strip_suffix(TEMPORARY).is_some_and(|name| name == NAME || name.starts_with("events-"))
    };
    let listed = dirs.into_iter().filter_map(|dir| Some((dir, disk.list(dir).ok()?)));
    listed
        .flat_map(|(dir, names)| {
            names.into_iter().filter(|entry| is_ours(&entry.name)).map(|entry| dir.join(entry.name))
        })
        .collect()
}
