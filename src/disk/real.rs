//! The file system of the machine.
//!
//! Blocks the thread that calls it. Two [`RealDisk`]s are the same disk: the only state is a count and a few open
//! directories, so that a roll of the log can still sync one when connections have used up every
//! descriptor. Every error of the system is handed up as it came; nothing is retried but an interrupted call, and a
//! failed sync not even then. Descriptors are close-on-exec (std opens them so); who may read the files
//! is the umask's business.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Advice, CWD, RenameFlags};
use rustix::io::Errno;

use super::{Access, DirEntry, Disk, DiskFile, EntryKind};

/// `st_blocks` counts in this unit, whatever the file system's own block size is.
const STAT_BLOCK_BYTES: u64 = 512;

/// Directories kept open for [`Disk::sync_dir`]. The daemon syncs about six; an archive that begins
/// a directory a day pushes its old ones out.
const OPEN_DIRS: usize = 16;

/// The machine's file system.
#[derive(Debug, Default)]
pub struct RealDisk {
    /// The most recently used last. Locked for a look or a push, never during a sync.
    dirs: Mutex<Vec<(PathBuf, Arc<File>)>>,
    /// Bytes read and written so far.
    moved: Arc<AtomicU64>,
}

impl RealDisk {
    /// Bytes read and written through this disk so far.
    pub fn moved_bytes(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn file(&self, file: File) -> Box<dyn DiskFile> {
        Box::new(RealFile { file, moved: Arc::clone(&self.moved) })
    }

    /// The directory, open. Opened anew when another one has taken its name since.
    fn dir(&self, dir: &Path) -> io::Result<Arc<File>> {
        let found = fs::metadata(dir)?; // takes no descriptor
        let mut dirs = self.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = dirs.iter().position(|(path, _)| path == dir) {
            let (path, file) = dirs.remove(known);
            let open = file.metadata()?;
            if (open.dev(), open.ino()) == (found.dev(), found.ino()) {
                dirs.push((path, file.clone()));
                return Ok(file);
            }
        }
        let file = Arc::new(File::open(dir)?);
        if dirs.len() == OPEN_DIRS {
            dirs.remove(0);
        }
        dirs.push((dir.to_owned(), file.clone()));
        Ok(file)
    }

    /// Makes the name of a directory durable that was there before us. Where we may not open or
    /// sync its parent (`/`, a read-only root, a parent without read permission) we did not create
    /// it.
    fn sync_existing_name(&self, dir: &Path) -> io::Result<()> {
        match File::open(or_here(parent(dir))).and_then(|parent| parent.sync_all()) {
            Err(e) => match e.kind() {
                io::ErrorKind::PermissionDenied
                | io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::Unsupported => Ok(()),
                _ => Err(e),
            },
            Ok(()) => Ok(()),
        }
    }
}

impl Disk for RealDisk {
    fn is_native(&self) -> bool {
        true
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut deepest = dir;
        loop {
            match fs::metadata(or_here(deepest)) {
                Ok(found) if found.is_dir() => break,
                Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            missing.push(deepest);
            deepest = deepest.parent().unwrap_or(Path::new(""));
        }
        // A run before this one may have been killed between creating `deepest` and syncing its
        // name; everything above it was synced before `deepest` was created.
        self.sync_existing_name(deepest)?;
        for dir in missing.into_iter().rev() {
            match fs::create_dir(dir) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                result => result?,
            }
            self.sync_dir(parent(dir))?;
        }
        self.dir(or_here(dir))?; // opened while there are descriptors
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(or_here(dir))? {
            let entry = entry?;
            let kind = match entry.file_type() {
                Ok(kind) if kind.is_file() => EntryKind::File,
                Ok(kind) if kind.is_dir() => EntryKind::Dir,
                Ok(_) => EntryKind::Other,
                // Removed since the directory was read: as if it had never been seen.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(DirEntry { name, kind });
        }
        Ok(entries)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let write = access == Access::ReadWrite;
        let file = OpenOptions::new().read(true).write(write).open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into()); // opening one for reading succeeds
        }
        Ok(self.file(file))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        Ok(self.file(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // NFS, and FUSE without the flag. A hard link would be exclusive too, but a kill
            // between link and unlink would leave two names for one file, and one of them might
            // be taken for a spare. The directory is locked by its daemon, so looking first is
            // enough.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match fs::symlink_metadata(to) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
                Err(e) => Err(e),
            },
            result => Ok(result?),
        }
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.dir(or_here(dir))?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(or_here(dir))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// The directory that holds the name `path`.
fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// The parent of a bare name is the empty path, which the system calls do not take.
fn or_here(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() { Path::new(".") } else { dir }
}

/// An open file of the machine's file system.
#[derive(Debug)]
struct RealFile {
    file: File,
    moved: Arc<AtomicU64>,
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let read = self.file.read_at(buf, position)?;
        self.moved.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }

    fn write_all_at(&self, buf: &[u8], position: u64) -> io::Result<()> {
        self.file.write_all_at(buf, position)?;
        self.moved.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks().saturating_mul(STAT_BLOCK_BYTES))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn begin_writeback(&self, position: u64, len: u64) {
        // Linux writes dirty pages out without waiting for them before it looks which of the range are clean and
        // can be given up (mm/fadvise.c); these are not clean by then, so they stay in memory. A hint: its failure is none.
        let _ = rustix::fs::fadvise(&self.file, position, NonZeroU64::new(len), Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_reads_back_and_counts_its_blocks() {
        let disk = RealDisk::default();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = disk.create(&path).unwrap();
        assert!(file.is_empty().unwrap());
        file.write_all_at(&[7; 10_000], 5).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), 10_005);
        assert!(file.allocated_bytes().unwrap() >= 10_005);

        let again = disk.open(&path, Access::Read).unwrap();
        let mut bytes = [1; 20_000];
        assert_eq!(again.read_full_at(&mut bytes, 0).unwrap(), 10_005);
        assert_eq!(bytes[..6], [0, 0, 0, 0, 0, 7]);
        assert!(again.write_all_at(b"x", 0).is_err(), "opened for reading only");
        file.set_len(3).unwrap();
        assert_eq!(again.read_full_at(&mut bytes, 0).unwrap(), 3);
    }

    #[test]
    fn no_existing_name_is_written_over_by_create_or_rename() {
        let disk = RealDisk::default();
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        disk.create(&a).unwrap().write_all_at(b"a", 0).unwrap();
        disk.create(&b).unwrap().write_all_at(b"b", 0).unwrap();
        let exists = io::ErrorKind::AlreadyExists;
        assert_eq!(disk.create(&a).unwrap_err().kind(), exists);
        assert_eq!(disk.rename(&a, &b).unwrap_err().kind(), exists);
        disk.replace(&a, &b).unwrap();
        assert_eq!(fs::read(&b).unwrap(), b"a");
        disk.rename(&b, &a).unwrap();
        disk.sync_dir(dir.path()).unwrap();
        disk.remove(&a).unwrap();
        assert_eq!(disk.open(&a, Access::Read).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn directories_are_made_with_their_ancestors_and_may_exist_already() {
        let disk = RealDisk::default();
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x/y/z");
        disk.create_dir_all(&deep).unwrap();
        disk.create_dir_all(&deep).unwrap();
        disk.create_dir_all(Path::new("/")).unwrap();
        disk.create_dir_all(Path::new("")).unwrap();
        assert!(disk.free_bytes(&deep).unwrap() > 0);
        let file = dir.path().join("x/file");
        disk.create(&file).unwrap();
        assert!(disk.create_dir_all(&file).is_err());
        assert!(disk.create_dir_all(&file.join("below")).is_err());
        assert_eq!(disk.open(&deep, Access::Read).unwrap_err().kind(), io::ErrorKind::IsADirectory);
    }

    #[test]
    fn listing_tells_files_from_directories_and_follows_no_link() {
        let disk = RealDisk::default();
        let dir = tempfile::tempdir().unwrap();
        disk.create(&dir.path().join("file")).unwrap();
        disk.create_dir_all(&dir.path().join("sub")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("file"), dir.path().join("link")).unwrap();
        let mut found = disk.list(dir.path()).unwrap();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let entry = |name: &str, kind| DirEntry { name: name.into(), kind };
        let expected =
            [entry("file", EntryKind::File), entry("link", EntryKind::Other), entry("sub", EntryKind::Dir)];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_directory_that_took_the_place_of_a_synced_one_is_synced_itself() {
        let disk = RealDisk::default();
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        disk.create_dir_all(&sub).unwrap();
        let before = disk.dir(&sub).unwrap();
        assert!(Arc::ptr_eq(&before, &disk.dir(&sub).unwrap()), "kept open");
        fs::rename(&sub, dir.path().join("old")).unwrap();
        assert!(disk.sync_dir(&sub).is_err());
        fs::create_dir(&sub).unwrap();
        disk.sync_dir(&sub).unwrap();
        assert!(!Arc::ptr_eq(&before, &disk.dir(&sub).unwrap()));
        for n in 0..2 * OPEN_DIRS {
            disk.create_dir_all(&sub.join(n.to_string())).unwrap();
        }
        assert_eq!(disk.dirs.lock().unwrap().len(), OPEN_DIRS);
    }
}
