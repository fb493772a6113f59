//! What files an archive has, in the order of their offsets, and what is known of each without
//! reading it.
//!
//! ```text
//!   manifest    ├── events-0 ──┤├── events-100 ──┤
//!   directory   events-0.zst    events-100.zst     events-250         events-300
//!                 finished        finished       finished, not    being written, or
//!                                                 listed yet       the last one left
//! ```
//!
//! For the verbs that read an archive, running daemon or not, and for the sink's own start. The directory
//! is looked at first and the manifest after it: a file that is compressed meanwhile is listed before its
//! plain name goes, so it is seen under one name or the other. It may still be gone by the time it is
//! opened; then the answer is to look again. Reads only, on the caller's thread.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;

use crate::disk::Disk;
use crate::event::Micros;

use super::layout::{self, ArchiveFile, Lines, Tree};
use super::manifest::{Entry, Manifest};

/// One file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogFile {
    /// Where it is and how it is to be read.
    pub file: ArchiveFile,
    /// What the manifest says of it; nothing of a file that is not finished or not listed yet.
    pub listed: Option<Entry>,
}

impl CatalogFile {
    /// Offset of its last event, where that is known.
    pub fn last_offset(&self) -> Option<u64> {
        self.listed.as_ref().map(|entry| entry.last_offset)
    }

    /// The earliest and the latest acceptance in it, where that is known.
    pub fn times(&self) -> Option<RangeInclusive<Micros>> {
        self.listed.as_ref().map(Entry::times)
    }

    /// Opens it for reading its lines, decompressed where need be.
    pub fn open_lines(&self, disk: &dyn Disk) -> io::Result<Lines> {
        layout::open_lines(disk, &self.file)
    }
}

/// An archive's files.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// In the order of their offsets, one a first offset. A listed file that somebody removed is among
    /// them: opening it says so.
    pub files: Vec<CatalogFile>,
    /// Files that another one stands for: what a crash has left in the midst of a compression.
    pub leftovers: Vec<ArchiveFile>,
    /// The manifest; also knows what retention removed.
    pub manifest: Manifest,
}

impl Catalog {
    /// Looks at the archive; an empty one when there is no such directory. A file that another layout made, there
    /// or listed, is an error.
    pub fn read(disk: &dyn Disk, tree: &Tree) -> io::Result<Self> {
        let found = tree.list(disk)?;
        Self::of(tree, found, Manifest::read(disk, &tree.root)?)
    }

    fn of(tree: &Tree, found: Vec<ArchiveFile>, manifest: Manifest) -> io::Result<Self> {
        let mut catalog = Self::default();
        let mut files: BTreeMap<u64, CatalogFile> = BTreeMap::new();
        for entry in manifest.entries.values().filter(|entry| entry.is_kept()) {
            let file = tree.file(&entry.name)?;
            files.insert(entry.first_offset, CatalogFile { file, listed: Some(entry.clone()) });
        }
        // Plain before compressed: what is not listed is not known to be whole unless it is plain.
        for file in found {
            match files.get(&file.first_offset) {
                Some(known) if known.file.path == file.path => {}
                Some(_) => catalog.leftovers.push(file),
                None if manifest.entries.contains_key(&file.first_offset) => catalog.leftovers.push(file),
                None => {
                    files.insert(file.first_offset, CatalogFile { file, listed: None });
                }
            }
        }
        catalog.files = files.into_values().collect();
        catalog.manifest = manifest;
        Ok(catalog)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::SimulatedDisk;

    fn entry(name: &str, first: u64, last: u64) -> Entry {
        let entry = Entry::unread(name.to_owned(), first, last, Micros(3));
        Entry { bytes: 1, sha256: "00".repeat(32), last_time: Micros(9), content_bytes: 1, ..entry }
    }

    #[test]
    fn finished_unlisted_and_open_files_come_in_order_each_once_and_removed_ones_not_at_all() {
        let disk = SimulatedDisk::new(1);
        let name = |first: u64, ending: &str| format!("2026/11/27/events-{first:020}.ndjson{ending}");
        disk.create_dir_all(Path::new("/a/2026/11/27")).unwrap();
        let there = [(0, ""), (10, ".zst"), (10, ""), (20, ".zst"), (20, ""), (30, ""), (40, "")];
        for (first, ending) in there {
            disk.write_file(&Path::new("/a").join(name(first, ending)), b"x").unwrap();
        }
        let mut removed = entry(&name(0, ""), 0, 9);
        removed.removed = Some(Micros(1));
        let lost = entry(&name(15, ".gz"), 15, 19);
        let lines = [removed.to_line(), entry(&name(10, ".zst"), 10, 14).to_line(), lost.to_line()].concat();
        disk.write_file(Path::new("/a/manifest.ndjson"), &lines).unwrap();

        let catalog = Catalog::read(&disk, &Tree::of("/a")).unwrap();
        let shown: Vec<_> = catalog.files.iter().map(|f| (f.file.path.clone(), f.last_offset())).collect();
        let path = |first, ending| Path::new("/a").join(name(first, ending));
        assert_eq!(
            shown,
            [
                (path(10, ".zst"), Some(14)),
                (path(15, ".gz"), Some(19)), // listed, and gone
                (path(20, ""), None),        // its compression was never listed
                (path(30, ""), None),
                (path(40, ""), None),
            ]
        );
        assert_eq!(catalog.files[0].times(), Some(Micros(3)..=Micros(9)));
        let leftovers: Vec<_> = catalog.leftovers.iter().map(|file| file.path.clone()).collect();
        assert_eq!(leftovers, [path(0, ""), path(10, ""), path(20, ".zst")]);
        assert!(catalog.files[1].open_lines(&disk).is_err());
    }
}
