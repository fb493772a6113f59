//! A disk on which one part of the pipeline forgets its syncs: the mistakes the test is there for.

use std::io;
use std::path::Path;

use eventflow::disk::{Access, DirEntry, Disk, DiskFile, SimulatedDisk};

/// What is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgets {
    /// Syncs of files.
    Data,
    /// Syncs of directories.
    Names,
}

/// Passes everything on but the syncs of what lies below a path.
#[derive(Debug)]
pub struct Forgetful {
    pub disk: SimulatedDisk,
    pub below: &'static str,
    pub forgets: Forgets,
}

impl Forgetful {
    fn file(&self, path: &Path, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        if self.forgets == Forgets::Data && path.starts_with(self.below) {
            return Box::new(Unsynced(file));
        }
        file
    }
}

impl Disk for Forgetful {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        // It syncs the names of what is there already, so it is among what is forgotten.
        if self.forgets == Forgets::Names && dir.starts_with(self.below) && self.disk.list(dir).is_ok() {
            return Ok(());
        }
        self.disk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.disk.list(dir)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(path, self.disk.open(path, access)?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(path, self.disk.create(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.link(from, to)
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.replace(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.forgets == Forgets::Names && dir.starts_with(self.below) {
            return Ok(());
        }
        self.disk.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.disk.free_bytes(dir)
    }
}

/// A file that is never synced.
#[derive(Debug)]
struct Unsynced(Box<dyn DiskFile>);

impl DiskFile for Unsynced {
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.0.read_at(buf, position)
    }

    fn write_all_at(&self, buf: &[u8], position: u64) -> io::Result<()> {
        self.0.write_all_at(buf, position)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.0.allocated_bytes()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}
