//! An open file of the simulated disk.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use super::content::{MAX_FILE_BYTES, PAGE_BYTES};
use super::fault::Failure;
use super::state::{Change, Inode};
use super::{Access, DiskFile, SimulatedDisk};

/// An open file of a [`SimulatedDisk`].
#[derive(Debug)]
pub(super) struct SimulatedFile {
    pub(super) disk: SimulatedDisk,
    pub(super) inode: u64,
    pub(super) access: Access,
    /// The name it was opened by, for descriptions.
    pub(super) path: PathBuf,
}

impl SimulatedFile {
    fn writable(&self) -> io::Result<()> {
        match self.access {
            Access::Read => Err(Errno::BADF.into()),
            Access::ReadWrite => Ok(()),
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Inode) -> T) -> io::Result<T> {
        let inner = self.disk.inner();
        inner.powered()?;
        Ok(look(inner.state.inode(self.inode)))
    }
}

impl DiskFile for SimulatedFile {
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let inner = self.disk.inner();
        inner.powered()?;
        let end = position.saturating_add(buf.len() as u64);
        match inner.unreadable.get(&self.inode) {
            Some(bad) if position < bad.end && end > bad.start => Err(Failure::Io.error()),
            _ => Ok(inner.state.inode(self.inode).live.read(buf, position)),
        }
    }

    fn write_all_at(&self, buf: &[u8], position: u64) -> io::Result<()> {
        self.writable()?;
        let describe = || format!("write {} bytes at {position} of {}", buf.len(), self.path.display());
        self.disk.operate(describe, |inner, power| inner.write(self.inode, buf, position, power))
    }

    fn len(&self) -> io::Result<u64> {
        self.look(|inode| inode.live.len())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.look(|inode| inode.live.allocated_pages() * PAGE_BYTES as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        let describe = || format!("set the length of {} to {len}", self.path.display());
        self.disk.operate(describe, |inner, _| {
            if len > MAX_FILE_BYTES {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            inner.state.inode_mut(self.inode).change(Change::SetLen(len));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let describe = || format!("sync {}", self.path.display());
        self.disk.operate(describe, |inner, power| inner.sync_data(self.inode, power))
    }
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        let mut inner = self.disk.inner();
        if let Some(handles) = inner.open.get_mut(&self.inode) {
            *handles -= 1;
            if *handles == 0 {
                inner.open.remove(&self.inode);
            }
        }
    }
}
