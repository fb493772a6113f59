//! What tests do to a disk behind everyone's back: look at files, damage, copy and remove them.
//!
//! None of it is an operation, all of it is durable at once. Meant for a disk at rest, between a crash
//! and the next start; unsynced writes of a damaged file still apply on top.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::content::Content;
use super::state::{Entry, Inode, parent};
use super::{Inner, SimulatedDisk, tidy};

impl SimulatedDisk {
    /// Every file, in order of its path.
    pub fn files(&self) -> Vec<PathBuf> {
        let inner = self.inner();
        let files = inner.state.names.iter().filter(|(_, entry)| matches!(entry, Entry::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }

    /// All of a file's bytes, as a process would read them.
    pub fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        let inner = self.inner();
        let number = inner.state.file(&tidy(path))?;
        Ok(inner.state.inode(number).live.to_vec())
    }

    /// Creates a file with these bytes, or replaces all of its bytes.
    pub fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut content = Content::default();
        content.write(bytes, 0);
        self.put(path, content)
    }

    /// Overwrites bytes of a file in place; grows it where needed.
    pub fn overwrite(&self, path: &Path, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.alter(path, |content| content.write(bytes, position))
    }

    /// Cuts a file, or extends it with zeros.
    pub fn truncate(&self, path: &Path, len: u64) -> io::Result<()> {
        self.alter(path, |content| content.set_len(len))
    }

    /// Removes a file.
    pub fn remove_file(&self, path: &Path) -> io::Result<()> {
        let path = tidy(path);
        let mut inner = self.inner();
        inner.state.file(&path)?;
        Arc::make_mut(&mut inner.state.names).remove(&path);
        Arc::make_mut(&mut inner.state.durable_names).remove(&path);
        Ok(())
    }

    /// Copies a file, over another one where there is one.
    pub fn copy_file(&self, from: &Path, to: &Path) -> io::Result<()> {
        let content = {
            let inner = self.inner();
            let number = inner.state.file(&tidy(from))?;
            inner.state.inode(number).live.clone()
        };
        self.put(to, content)
    }

    /// Puts a directory where `path` says, so that something else stands in a file's place.
    pub fn put_directory(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.name(tidy(path), Entry::Dir)
    }

    /// Makes reads that touch `bytes` of a file fail with EIO: a bad sector.
    pub fn make_unreadable(&self, path: &Path, bytes: Range<u64>) -> io::Result<()> {
        let mut inner = self.inner();
        let number = inner.state.file(&tidy(path))?;
        inner.unreadable.insert(number, bytes);
        Ok(())
    }

    fn alter(&self, path: &Path, alter: impl Fn(&mut Content)) -> io::Result<()> {
        let mut inner = self.inner();
        let number = inner.state.file(&tidy(path))?;
        let inode = inner.state.inode_mut(number);
        alter(&mut inode.live);
        alter(&mut inode.durable);
        Ok(())
    }

    fn put(&self, path: &Path, content: Content) -> io::Result<()> {
        let mut inner = self.inner();
        let number = inner.state.new_inode(Inode::at_rest(content));
        inner.name(tidy(path), Entry::File(number))
    }
}

impl Inner {
    fn name(&mut self, path: PathBuf, entry: Entry) -> io::Result<()> {
        self.state.dir(parent(&path))?;
        Arc::make_mut(&mut self.state.durable_names).insert(path.clone(), entry);
        Arc::make_mut(&mut self.state.names).insert(path, entry);
        Ok(())
    }
}
