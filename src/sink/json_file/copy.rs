//! A copy of an archive in another directory, as a checkpoint speaks of it, while the sink goes on.
//!
//! ```text
//!   events-0   events-70   events-140 ▒▒▒▒    events-210 …
//!   linked     linked      copied up to the   begun after the checkpoint:
//!                          checkpoint         not in the copy
//! ```
//!
//! A file before the last one never changes again (it may be compressed or removed, which gives up its
//! name and not its bytes), so a second name for it will do. The last one is always copied, because
//! whoever opens the copy may cut it, and a cut would show in the original. What the sink wrote after the
//! checkpoint is left out; opening the copy delivers it again. The copy's manifest says of its files what
//! the original says, and which others retention removed; the last one is listed anew by whoever opens it.
//!
//! Runs on the caller's thread. A file that is compressed or removed while this looks for it changes the
//! manifest first; the next look finds that, and the copy holds what the last look saw. A failure leaves a
//! part of the copy behind, for the caller to remove.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{Access, Disk, copy_bytes, copy_file, link_or_copy};

use super::catalog::{Catalog, CatalogFile};
use super::layout::{self, ArchiveFile, Form, Piece, Tree};
use super::manifest::Manifest;
use super::position::{FilePosition, Position};
use super::{CopiedFiles, Resume, book};

/// Looks at the archive before one that changes all the time is given up.
const LOOKS: usize = 16;
/// Bytes of lines gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;

/// Copies the archive in `tree` to `to` as `resume` speaks of it, synced.
pub fn copy_to(disk: &dyn Disk, tree: &Tree, to: &Path, resume: &Resume) -> io::Result<CopiedFiles> {
    let known = resume.token.as_deref().and_then(Position::decode).map(|(position, _)| position);
    // Without a usable token the queue's own word counts: everything from there on comes again.
    let known = known.filter(|position| resume.next_offset <= position.next_offset);
    let mut copying = Copying {
        disk,
        tree,
        to,
        end: known.map_or(resume.next_offset, |position| position.next_offset),
        open: known.and_then(|position| position.file),
        is_finished: known.is_some_and(|position| position.file.is_none()),
        copied: BTreeMap::new(),
        dirs: BTreeSet::new(),
    };
    disk.create_dir_all(to)?;
    let manifest = copying.until_it_stands_still()?;
    copying.dirs.iter().try_for_each(|dir| disk.sync_dir(dir))?;
    if !manifest.entries.is_empty() {
        book::replace(disk, to, &manifest).map_err(io::Error::other)?;
    }
    Ok(CopiedFiles { files: copying.copied.len() as u64, bytes: copying.copied.values().sum() })
}

struct Copying<'a> {
    disk: &'a dyn Disk,
    tree: &'a Tree,
    to: &'a Path,
    /// Events from here on are not in the copy.
    end: u64,
    /// The file that takes more, if the checkpoint speaks of one.
    open: Option<FilePosition>,
    /// The checkpoint says that the last file takes nothing more.
    is_finished: bool,
    /// What the copy has, with what each file took.
    copied: BTreeMap<PathBuf, u64>,
    /// Directories with new names in them.
    dirs: BTreeSet<PathBuf>,
}

impl Copying<'_> {
    /// Looks until nothing changed on the way; what the manifest of the copy is to say.
    fn until_it_stands_still(&mut self) -> io::Result<Manifest> {
        let mut looks = 1..LOOKS;
        loop {
            match self.look() {
                Err(error) if error.kind() == io::ErrorKind::NotFound && looks.next().is_some() => {}
                looked => return looked,
            }
        }
    }

    /// Copies what is not there yet of what can be seen now, and removes what can be seen no more.
    fn look(&mut self) -> io::Result<Manifest> {
        let Catalog { mut files, mut manifest, .. } = Catalog::read(self.disk, self.tree)?;
        files.retain(|file| file.file.first_offset < self.end);
        manifest.entries.retain(|first_offset, _| *first_offset < self.end);
        let last = files.pop();
        let mut seen = BTreeSet::new();
        for file in &files {
            seen.extend(self.link(file)?);
        }
        match &last {
            Some(last) if self.is_finished => seen.extend(self.copy_whole(last)?),
            Some(last) => match self.copy_part(&last.file) {
                Ok(to) => {
                    seen.insert(to);
                    manifest.entries.remove(&last.file.first_offset);
                }
                Err(error) if self.is_lost(last, &error)? => {}
                Err(error) => return Err(error),
            },
            None => {}
        }
        for other in self.copied.keys().filter(|path| !seen.contains(*path)) {
            self.give_way(other)?;
        }
        self.copied.retain(|path, _| seen.contains(path));
        Ok(manifest)
    }

    /// Gives a file a second name; `None` when it is listed and somebody took it, which the copy is to say too.
    fn link(&mut self, file: &CatalogFile) -> io::Result<Option<PathBuf>> {
        let to = self.place(&file.file.path)?;
        match link_or_copy(self.disk, &file.file.path, &to) {
            Ok(bytes) => self.copied.insert(to.clone(), bytes),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None, // from an earlier look
            Err(error) if self.is_lost(file, &error)? => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(to))
    }

    fn copy_whole(&mut self, file: &CatalogFile) -> io::Result<Option<PathBuf>> {
        let to = self.place(&file.file.path)?;
        self.give_way(&to)?;
        match copy_file(self.disk, &file.file.path, &to) {
            Ok(bytes) => self.copied.insert(to.clone(), bytes),
            Err(error) if self.is_lost(file, &error)? => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(to))
    }

    /// Whether a file that is not there is to be there: the manifest still says so.
    fn is_lost(&self, file: &CatalogFile, error: &io::Error) -> io::Result<bool> {
        let Some(listed) = file.listed.as_ref().filter(|_| error.kind() == io::ErrorKind::NotFound) else {
            return Ok(false);
        };
        let now = Manifest::read(self.disk, &self.tree.root)?;
        Ok(now.entries.get(&listed.first_offset) == Some(listed))
    }

    /// Copies the file's events below the end, plain as the sink goes on with it.
    fn copy_part(&mut self, file: &ArchiveFile) -> io::Result<PathBuf> {
        let to = self.place(&self.tree.path(file.day, file.first_offset))?;
        self.give_way(&to)?;
        let known = self.open.filter(|open| (open.first_offset, open.day) == (file.first_offset, file.day));
        let bytes = match known {
            Some(known) if file.form == Form::Plain => {
                let handle = self.disk.open(&file.path, Access::Read)?;
                // Somebody cut it: the copy is to find it as it is.
                let bytes = known.length.min(handle.len()?);
                copy_bytes(self.disk, &*handle, &to, bytes)?;
                bytes
            }
            _ => self.copy_lines(file, &to)?,
        };
        self.copied.insert(to.clone(), bytes);
        Ok(to)
    }

    fn copy_lines(&self, file: &ArchiveFile, to: &Path) -> io::Result<u64> {
        let mut lines = layout::open_lines(self.disk, file)?;
        let copy = self.disk.create(to)?;
        let (mut buffer, mut written) = (Vec::with_capacity(WRITE_BYTES), 0);
        while let Some(Piece::Line(line)) = lines.next_piece()? {
            if layout::stamp(line).is_some_and(|stamp| stamp.offset >= self.end) {
                break;
            }
            buffer.extend_from_slice(line);
            buffer.push(b'\n');
            if buffer.len() >= WRITE_BYTES {
                copy.write_all_at(&buffer, written)?;
                written += buffer.len() as u64;
                buffer.clear();
            }
        }
        copy.write_all_at(&buffer, written)?;
        copy.sync_data()?;
        Ok(written + buffer.len() as u64)
    }

    /// Where a file of the archive goes; its directory is made.
    fn place(&mut self, path: &Path) -> io::Result<PathBuf> {
        let to = self.to.join(path.strip_prefix(&self.tree.root).unwrap_or(path));
        let dir = to.parent().unwrap_or(self.to).to_owned();
        if !self.dirs.contains(&dir) {
            self.disk.create_dir_all(&dir)?;
            self.dirs.insert(dir);
        }
        Ok(to)
    }

    /// Removes what an earlier look left there, which broke off on the way.
    fn give_way(&self, to: &Path) -> io::Result<()> {
        match self.disk.remove(to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
