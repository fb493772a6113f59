//! The only door to the file system for everything that must survive a power loss.
//!
//! The event log, the ledger and the archive write through [`Disk`], so that one simulated
//! implementation can stop the power at any of their operations and keep any subset of what was
//! not synced. There are two implementations: [`RealDisk`] and [`SimulatedDisk`].
//!
//! The trait speaks of what POSIX promises and no more: a write is volatile until
//! [`DiskFile::sync_data`] returns; a name is volatile until [`Disk::sync_dir`] on its directory
//! returns; data and names reach the disk in any order otherwise.
//!
//! Runs on whichever thread calls it and blocks there. Errors are plain [`io::Error`]s: the layer
//! above knows which file it meant and says so.

use std::fmt;
use std::io;
use std::path::Path;

mod copy;
mod real;
pub mod simulated;

pub use copy::{copy_bytes, copy_file, link_or_copy};
pub use real::RealDisk;
pub use simulated::SimulatedDisk;

/// A file system, or something that behaves like one.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates `dir` and every missing ancestor, and syncs the parent of each directory it
    /// created, so that the new names are durable when this returns; so is the name of the deepest
    /// directory that was there already, which a killed run may have created but not synced.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// The entries of `dir`, in no particular order. Never follows symbolic links.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;

    /// Opens an existing file.
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>>;

    /// Creates a file that must not exist yet, open for reading and writing. Its name is durable
    /// only after [`Disk::sync_dir`].
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Renames a file; fails with [`io::ErrorKind::AlreadyExists`] when `to` exists. Durable only
    /// after [`Disk::sync_dir`] on the directory (on both, where they differ).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames a file over another one, atomically as POSIX says.
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name; fails with [`io::ErrorKind::AlreadyExists`] when `to` exists, and with
    /// [`io::ErrorKind::CrossesDevices`] or another error where the file systems cannot. What is written
    /// through either name shows under both, so only files that never change again may be linked.
    /// Durable only after [`Disk::sync_dir`].
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name. Open handles stay usable.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in `dir` durable (fsync of the directory). Needs no free descriptor for a
    /// directory that was created or synced through this `Disk` before.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Whether its paths are those of the machine, so that a library may open files there by itself.
    fn is_native(&self) -> bool {
        false
    }

    /// Bytes an unprivileged process can still allocate on the file system that holds `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// An open file, read and written at explicit positions.
///
/// Handles are shared between threads: `&self` everywhere, no cursor.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Reads up to `buf.len()` bytes at `position`; 0 means end of file. May be short.
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `position`, extending the file where needed. After an error any
    /// prefix of it may have been written.
    fn write_all_at(&self, buf: &[u8], position: u64) -> io::Result<()>;

    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file holds no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Bytes the file occupies on the disk, as `du` shows them.
    fn allocated_bytes(&self) -> io::Result<u64>;

    /// Cuts or extends (with a hole) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the file's data, and the size needed to read it back, durable (fdatasync).
    ///
    /// A failure is final: the kernel may have marked the pages clean, so nobody retries on the
    /// same file (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
    fn sync_data(&self) -> io::Result<()>;

    /// Suggests that these bytes, just written, be on their way to the disk while the caller goes on, so that
    /// the sync that must follow has less to wait for. Promises nothing; what fails then, fails that sync.
    fn begin_writeback(&self, position: u64, len: u64) {
        let _ = (position, len);
    }

    /// Reads until `buf` is full or the file ends; returns how much was read.
    fn read_full_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.read_at(&mut buf[filled..], position + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }
}

/// How an existing file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only; works on files of a running daemon and on read-only media.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name without its directory. Names that are not UTF-8 are shown lossily and never
    /// match one of ours.
    pub name: String,
    /// What the name stands for.
    pub kind: EntryKind,
}

/// What a directory entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else: a symbolic link, a socket, a device.
    Other,
}
