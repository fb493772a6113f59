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
//! checkpoint is left out; opening the copy delivers it again.
//!
//! Runs on the caller's thread. A file that is compressed while this looks for it is found under its new
//! name at the next look. A failure leaves a part of the copy behind, for the caller to remove.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{Access, Disk, copy_bytes, copy_file, link_or_copy};

use super::layout::{self, ArchiveFile, Form, Piece, relative_path};
use super::position::{FilePosition, Position};
use super::{CopiedFiles, Resume};

/// Looks at the archive before one that changes all the time is given up.
const LOOKS: usize = 16;
/// Bytes of lines gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;

/// Copies the archive at `root` to `to` as `resume` speaks of it, synced.
pub fn copy_to(disk: &dyn Disk, root: &Path, to: &Path, resume: &Resume) -> io::Result<CopiedFiles> {
    let known = resume.token.as_deref().and_then(Position::decode).map(|(position, _)| position);
    // Without a usable token the queue's own word counts: everything from there on comes again.
    let known = known.filter(|position| resume.next_offset <= position.next_offset);
    let mut copying = Copying {
        disk,
        root,
        to,
        end: known.map_or(resume.next_offset, |position| position.next_offset),
        open: known.and_then(|position| position.file),
        is_finished: known.is_some_and(|position| position.file.is_none()),
        copied: CopiedFiles::default(),
        dirs: BTreeSet::new(),
    };
    disk.create_dir_all(to)?;
    for look in 1.. {
        match copying.look() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && look < LOOKS => {}
            looked => {
                looked?;
                break;
            }
        }
    }
    copying.dirs.iter().try_for_each(|dir| disk.sync_dir(dir))?;
    Ok(copying.copied)
}

struct Copying<'a> {
    disk: &'a dyn Disk,
    root: &'a Path,
    to: &'a Path,
    /// Events from here on are not in the copy.
    end: u64,
    /// The file that takes more, if the checkpoint speaks of one.
    open: Option<FilePosition>,
    /// The checkpoint says that the last file takes nothing more.
    is_finished: bool,
    copied: CopiedFiles,
    /// Directories with new names in them.
    dirs: BTreeSet<PathBuf>,
}

impl Copying<'_> {
    /// Copies what is not there yet of what can be seen now.
    fn look(&mut self) -> io::Result<()> {
        let mut files = layout::list(self.disk, self.root)?;
        files.retain(|file| file.first_offset < self.end);
        let last = files.last().map(|file| file.first_offset);
        for file in &files {
            if Some(file.first_offset) != last {
                self.link(file)?;
            } else if self.is_finished {
                self.copy_whole(file)?;
            } else {
                self.copy_part(file)?;
            }
        }
        Ok(())
    }

    fn link(&mut self, file: &ArchiveFile) -> io::Result<()> {
        let to = self.place(&file.path)?;
        match link_or_copy(self.disk, &file.path, &to) {
            Ok(bytes) => self.count(bytes),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {} // from an earlier look
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn copy_whole(&mut self, file: &ArchiveFile) -> io::Result<()> {
        let to = self.place(&file.path)?;
        self.give_way(&to)?;
        let bytes = copy_file(self.disk, &file.path, &to)?;
        self.count(bytes);
        Ok(())
    }

    /// Copies the file's events below the end, plain as the sink goes on with it.
    fn copy_part(&mut self, file: &ArchiveFile) -> io::Result<()> {
        let to = self.place(&self.root.join(relative_path(file.day, file.first_offset)))?;
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
        self.count(bytes);
        Ok(())
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
        let to = self.to.join(path.strip_prefix(self.root).unwrap_or(path));
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

    fn count(&mut self, bytes: u64) {
        self.copied.files += 1;
        self.copied.bytes += bytes;
    }
}
