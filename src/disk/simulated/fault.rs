//! Calls that fail because a test said so.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::Policy;
use super::content::Content;
use super::state::Inode;

/// What a failed call says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// EIO.
    Io,
    /// ENOSPC.
    NoSpace,
    /// EDQUOT.
    Quota,
    /// EMFILE.
    TooManyOpenFiles,
}

impl Failure {
    /// The error as the kernel would give it.
    pub fn error(self) -> io::Error {
        match self {
            Failure::Io => Errno::IO,
            Failure::NoSpace => Errno::NOSPC,
            Failure::Quota => Errno::DQUOT,
            Failure::TooManyOpenFiles => Errno::MFILE,
        }
        .into()
    }
}

/// How long a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// One call fails; the next one of its kind works again.
    Once,
    /// Every call from there on fails.
    Forever,
}

/// What the kernel does with the pages of a file whose sync failed (Rebello et al., ATC 2020).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PagesAfter {
    /// Marked clean (ext4, XFS): reads see the new bytes, they are not on the disk, and no later
    /// sync will bring them there.
    Clean,
    /// Still dirty: a later sync writes them.
    Dirty,
    /// Read again from the disk (Btrfs): reads see what is there.
    Reverted,
}

impl PagesAfter {
    /// Leaves `inode` as a failed sync does that got `reached` onto the disk.
    pub(super) fn apply(self, inode: &mut Inode, reached: Content) {
        match self {
            PagesAfter::Clean => {
                inode.lying = true;
                inode.unsynced = Arc::default();
                inode.durable = reached;
            }
            // The writes stay due as a whole; what reached the disk already is kept or lost with them.
            PagesAfter::Dirty => {}
            PagesAfter::Reverted => *inode = Inode::at_rest(reached),
        }
    }
}

/// A fault waiting for its turn.
#[derive(Debug)]
pub(super) struct Armed<T>(Option<(u64, Times, T)>);

impl<T> Default for Armed<T> {
    fn default() -> Self {
        Armed(None)
    }
}

impl<T: Copy> Armed<T> {
    pub(super) fn set(&mut self, nth: u64, times: Times, fault: T) {
        self.0 = Some((nth.max(1), times, fault));
    }

    /// Counts a call; the fault, when it hits this one.
    pub(super) fn hit(&mut self) -> Option<T> {
        let (left, times, fault) = self.0.as_mut()?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        let fault = *fault;
        match times {
            Times::Once => self.0 = None,
            Times::Forever => *left = 1,
        }
        Some(fault)
    }
}

/// The faults of a disk: at most one of each kind waits.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) write: Armed<(Failure, usize)>,
    pub(super) sync: Armed<(PagesAfter, Policy)>,
    pub(super) operation: Armed<Failure>,
}
