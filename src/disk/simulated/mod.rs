//! A disk in memory that can lose its power at any operation, lie, fill up and fail.
//!
//! Compiled always: unit tests of several modules, the integration tests and the fuzz targets all
//! run on it. Nothing in the daemon uses it.
//!
//! # The model
//!
//! Two disks in one. The **live** one is what a process sees: the page cache and the directory
//! cache. The **durable** one is what is on the platter for certain. Between them stand, in order,
//! the *unsynced changes*: per file its writes and changes of length, and for all directories
//! together the changes of names. [`DiskFile::sync_data`] moves one file's changes to the platter,
//! [`Disk::sync_dir`] one directory's. Nothing else does: closing a file does not, syncing a file
//! does not sync its name (ext4 would), syncing a name does not sync the file.
//!
//! A **process kill** ([`SimulatedDisk::kill`]) keeps the live disk, and keeps the unsynced changes
//! unsynced: a power loss later on, even after a recovery that read them, may still lose them.
//!
//! A **power loss** ([`SimulatedDisk::power_loss`]) starts from the durable disk and adds what a
//! [`Policy`] and a seed choose from the unsynced changes:
//!
//! * *Data.* The page cache holds one version of each 512-byte sector, so a sector comes back as it
//!   was after some number of the writes to it, never as a later write without an earlier one. Beyond
//!   that every sector of every write is free: all of the writes, a prefix of them, a subset of
//!   them, or sectors of them. A sector itself does not tear.
//! * *Size.* A file's size is metadata and moves on its own: behind the data, which is then cut off;
//!   or ahead of it, and the gap then reads as zeros or as whatever was on these blocks before:
//!   rubbish, or another file's bytes at the same place, which is what tempts a log that trusts
//!   stale frames.
//! * *Names.* Each change of a name is kept or lost by itself, across directories as well, with one
//!   limit: the changes of one name are kept in order. A rename changes two names at once, so a file
//!   that had a durable name never loses both of them, nor keeps both. Only a rename into another
//!   directory can keep both, when the directory it went to was synced and the one it left was not.
//!   (All of ext4, XFS and Btrfs keep more order than this. Losing both names or tearing a rename is
//!   what file systems without a journal do; we do not promise anything on those.)
//! * *Both together.* Data does not wait for names nor names for data: a file may come back under
//!   its new name, empty.
//!
//! What is not modelled: reordering around a sync that has returned (a disk that lies about flush; but
//! see [`SimulatedDisk::ignore_syncs`]), bits that rot (see [`SimulatedDisk::overwrite`]), symbolic
//! links, permissions, renamed or removed directories, inodes running out.
//!
//! # Operations
//!
//! Every call that can change something durable is an **operation** and has a running number,
//! starting at 1: creating a directory, creating, linking, renaming, replacing and removing a file, a write,
//! a change of length, both syncs. [`SimulatedDisk::stop_at`] takes the power away *during* one of
//! them. [`SimulatedDisk::record`] keeps the state after every one of them, so that one run of a
//! script gives every crash point: the state in the midst of operation n is covered by the state
//! after n with n's change still unsynced, or, for a sync, by the state before it.
//!
//! # What it does when it fails
//!
//! It panics only on a broken invariant of its own. Every choice comes from a seed: the same script
//! with the same seeds does the same.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Access, DirEntry, Disk, DiskFile, EntryKind};
use content::{MAX_FILE_BYTES, PAGE_BYTES};
pub use crash_states::CrashStates;
use fault::Faults;
pub use fault::{Failure, PagesAfter, Times};
use file::SimulatedFile;
pub use random::Random;
use state::{Change, Entry, Inode, NameChange, State, parent};

mod content;
mod crash_states;
mod fault;
mod file;
mod loss;
mod random;
mod state;
mod tamper;
#[cfg(test)]
mod tests;

/// Free bytes of a disk without a capacity.
const UNLIMITED_BYTES: u64 = 1 << 50;

/// What a power loss leaves of the changes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// Nothing.
    Drop,
    /// All changes of names, no data: renamed and created files come back old, or empty.
    NamesOnly,
    /// All data, no change of a name.
    DataOnly,
    /// Of each file the first so many changes, and the first so many changes of names.
    Prefix,
    /// Each write and each change of a name is kept or lost; sizes on their own.
    Subset,
    /// Each 512-byte sector of each write is kept or lost; sizes on their own, gaps are zeros.
    Torn,
    /// Like [`Policy::Torn`], but gaps hold rubbish or bytes of another file.
    Stale,
    /// Everything.
    Keep,
}

impl Policy {
    /// Every policy, the plainest first.
    pub const ALL: [Policy; 8] = [
        Policy::Drop,
        Policy::Keep,
        Policy::NamesOnly,
        Policy::DataOnly,
        Policy::Prefix,
        Policy::Subset,
        Policy::Torn,
        Policy::Stale,
    ];

    /// Whether the seed has a say: the others give one state each, so one seed is enough.
    pub fn is_random(self) -> bool {
        matches!(self, Policy::Prefix | Policy::Subset | Policy::Torn | Policy::Stale)
    }
}

/// A disk in memory. Clones are the same disk; [`SimulatedDisk::kill`] and
/// [`SimulatedDisk::power_loss`] make new ones and leave this one as it is.
#[derive(Debug, Clone)]
pub struct SimulatedDisk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    state: State,
    /// Open handles of each file; a removed file lives on while it has one.
    open: BTreeMap<u64, u64>,
    operations: u64,
    stop_at: Option<u64>,
    stopped: bool,
    faults: Faults,
    capacity_pages: Option<u64>,
    descriptors: Option<u64>,
    ignore_data_syncs: bool,
    ignore_dir_syncs: bool,
    unreadable: BTreeMap<u64, std::ops::Range<u64>>,
    recorded: Option<Recorded>,
    random: Random,
}

/// The states after each operation since `first`, with what the operation was.
#[derive(Debug)]
struct Recorded {
    first: u64,
    states: Vec<(String, State)>,
}

impl SimulatedDisk {
    /// An empty disk: it has the directories `/` and, for relative paths, the empty one.
    ///
    /// `seed` decides what is left to chance while it runs: how much of a write gets through when the
    /// power goes or a sync fails.
    pub fn new(seed: u64) -> Self {
        Self::with(State::empty(), Random::new(seed))
    }

    fn with(state: State, random: Random) -> Self {
        SimulatedDisk(Arc::new(Mutex::new(Inner {
            state,
            open: BTreeMap::new(),
            operations: 0,
            stop_at: None,
            stopped: false,
            faults: Faults::default(),
            capacity_pages: None,
            descriptors: None,
            ignore_data_syncs: false,
            ignore_dir_syncs: false,
            unreadable: BTreeMap::new(),
            recorded: None,
            random,
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another disk with this one's limits and bad sectors, but without its faults, its handles and
    /// its count of operations: the machine has been started again.
    fn boot(inner: &Inner, mut state: State) -> Self {
        state.forget_unreferenced(&BTreeMap::new());
        let disk = Self::with(state, inner.random.clone());
        let mut next = disk.inner();
        next.capacity_pages = inner.capacity_pages;
        next.descriptors = inner.descriptors;
        next.unreadable = inner.unreadable.clone();
        drop(next);
        disk
    }

    // ---- crashes

    /// How many operations there have been.
    pub fn operations(&self) -> u64 {
        self.inner().operations
    }

    /// Takes the power away during the `operation`-th operation: it may take effect in part, and it
    /// and every call after it, reads included, fail.
    pub fn stop_at(&self, operation: u64) {
        self.inner().stop_at = Some(operation);
    }

    /// The disk the next boot finds after the power went now. What happens to this disk later does
    /// not show in it, nor the other way round.
    pub fn power_loss(&self, policy: Policy, seed: u64) -> SimulatedDisk {
        let inner = self.inner();
        Self::boot(&inner, loss::power_loss(&inner.state, policy, &mut Random::new(seed)))
    }

    /// The disk the next process finds after this one was killed now: all that was written can be
    /// read, and what was not synced can still be lost by a power loss.
    pub fn kill(&self) -> SimulatedDisk {
        let inner = self.inner();
        Self::boot(&inner, inner.state.clone())
    }

    /// From now on keeps the state after every operation, for [`SimulatedDisk::at`].
    pub fn record(&self) {
        let mut inner = self.inner();
        let first = inner.operations;
        let states = vec![(String::from("the start"), inner.state.clone())];
        inner.recorded = Some(Recorded { first, states });
    }

    /// The disk as [`SimulatedDisk::kill`] would have given it right after the `operation`-th
    /// operation. `None` when that was not recorded.
    pub fn at(&self, operation: u64) -> Option<SimulatedDisk> {
        let inner = self.inner();
        let recorded = inner.recorded.as_ref()?;
        let index = usize::try_from(operation.checked_sub(recorded.first)?).ok()?;
        let (_, state) = recorded.states.get(index)?;
        Some(Self::boot(&inner, state.clone()))
    }

    /// What the `operation`-th operation was, for the message of a failed test.
    pub fn describe(&self, operation: u64) -> String {
        let inner = self.inner();
        let recorded = inner.recorded.as_ref();
        let what = recorded.and_then(|recorded| {
            let index = usize::try_from(operation.checked_sub(recorded.first)?).ok()?;
            Some(recorded.states.get(index)?.0.clone())
        });
        what.unwrap_or_else(|| String::from("not recorded"))
    }

    // ---- faults

    /// The `nth` write from now (1 is the next one) puts down its first `written` bytes and fails.
    pub fn fail_write(&self, nth: u64, failure: Failure, written: usize, times: Times) {
        self.inner().faults.write.set(nth, times, (failure, written));
    }

    /// The `nth` sync from now, of a file or of a directory, fails with EIO.
    ///
    /// Of a file's unsynced changes `reached` says what got to the disk nevertheless, and `pages`
    /// what the kernel did with its copies. A directory's changes stay unsynced (a file system whose
    /// journal fails goes read-only rather than lie).
    pub fn fail_sync(&self, nth: u64, pages: PagesAfter, reached: Policy, times: Times) {
        self.inner().faults.sync.set(nth, times, (pages, reached));
    }

    /// The `nth` operation from now, whatever it is, fails without having any effect.
    pub fn fail_operation(&self, nth: u64, failure: Failure, times: Times) {
        self.inner().faults.operation.set(nth, times, failure);
    }

    /// Ends every fault that was set. The damage they did stays.
    pub fn heal(&self) {
        self.inner().faults = Faults::default();
    }

    /// Gives the disk a size, in whole pages of 4096 bytes. Writes that need a page more than there
    /// is write what fits and fail with ENOSPC; writing over written bytes never does.
    pub fn set_capacity(&self, bytes: u64) {
        self.inner().capacity_pages = Some(bytes / PAGE_BYTES as u64);
    }

    /// Limits the open files. Opening, creating and listing fail with EMFILE beyond it.
    pub fn set_descriptors(&self, limit: u64) {
        self.inner().descriptors = Some(limit);
    }

    /// Makes syncs of files, of directories or of both return at once having done nothing: a
    /// program that forgot them. For tests that prove a test can fail.
    pub fn ignore_syncs(&self, data: bool, dirs: bool) {
        let mut inner = self.inner();
        inner.ignore_data_syncs = data;
        inner.ignore_dir_syncs = dirs;
    }

    /// Runs one operation: counts it, fails it where it was told to, records the state after it.
    /// `action` is told whether the power goes while it runs.
    fn operate<T>(
        &self,
        describe: impl FnOnce() -> String,
        action: impl FnOnce(&mut Inner, Power) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut inner = self.inner();
        inner.powered()?;
        inner.operations += 1;
        let power = match inner.stop_at {
            Some(last) if inner.operations >= last => Power::Going,
            _ => Power::On,
        };
        inner.stopped = power == Power::Going;
        let result = match inner.faults.operation.hit() {
            Some(failure) => Err(failure.error()),
            None => action(&mut inner, power),
        };
        let inner = &mut *inner;
        if let Some(recorded) = &mut inner.recorded {
            recorded.states.push((describe(), inner.state.clone()));
        }
        inner.powered()?;
        result
    }
}

/// Whether the power lasts until the end of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    Going,
}

impl Inner {
    fn powered(&self) -> io::Result<()> {
        if self.stopped { Err(io::Error::other("the simulated power is off")) } else { Ok(()) }
    }

    fn needs_descriptor(&self) -> io::Result<()> {
        match self.descriptors {
            Some(limit) if self.open.values().sum::<u64>() >= limit => Err(Failure::TooManyOpenFiles.error()),
            _ => Ok(()),
        }
    }

    fn free_pages(&self) -> u64 {
        let capacity = self.capacity_pages.unwrap_or(UNLIMITED_BYTES / PAGE_BYTES as u64);
        capacity.saturating_sub(self.state.allocated_pages(&self.open))
    }

    fn vacant(&self, path: &Path) -> io::Result<()> {
        self.state.dir(parent(path))?;
        match self.state.entry(path) {
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
            None => Ok(()),
        }
    }

    fn rename(&mut self, from: PathBuf, to: PathBuf) -> io::Result<()> {
        let entry = Entry::File(self.state.file(&from)?);
        if from != to {
            self.state.change_names(NameChange::Rename { from, to, entry });
        }
        Ok(())
    }

    fn write(&mut self, inode: u64, bytes: &[u8], position: u64, power: Power) -> io::Result<()> {
        if position.saturating_add(bytes.len() as u64) > MAX_FILE_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut taken = bytes.len();
        let mut error = None;
        if let Some((failure, written)) = self.faults.write.hit() {
            (taken, error) = (taken.min(written), Some(failure.error()));
        }
        if self.capacity_pages.is_some() {
            let fits = self.state.inode(inode).live.writable(position, taken, self.free_pages());
            if fits < taken {
                (taken, error) = (fits, Some(Failure::NoSpace.error()));
            }
        }
        if power == Power::Going && self.random.coin() {
            taken = self.random.below(taken as u64 + 1) as usize;
        }
        if taken > 0 {
            let change = Change::Write { position, bytes: bytes[..taken].into() };
            self.state.inode_mut(inode).change(change);
        }
        error.map_or(Ok(()), Err)
    }

    fn sync_data(&mut self, number: u64, power: Power) -> io::Result<()> {
        if let Some((pages, reached)) = self.faults.sync.hit() {
            let inode = self.state.inode(number);
            let content = loss::surviving(inode, reached, &self.state.inodes, &mut self.random);
            pages.apply(self.state.inode_mut(number), content);
            return Err(Failure::Io.error());
        }
        if power == Power::On && !self.ignore_data_syncs && !self.state.inode(number).unsynced.is_empty() {
            self.state.inode_mut(number).sync();
        }
        Ok(())
    }

    fn sync_dir(&mut self, dir: &Path, power: Power) -> io::Result<()> {
        self.state.dir(dir)?;
        if self.faults.sync.hit().is_some() {
            return Err(Failure::Io.error());
        }
        if power == Power::On && !self.ignore_dir_syncs {
            self.state.sync_names(dir);
            self.state.forget_unreferenced(&self.open);
        }
        Ok(())
    }
}

/// One spelling for each path.
fn tidy(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

impl Disk for SimulatedDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let dir = tidy(dir);
        let mut missing = Vec::new();
        let mut deepest = dir.as_path();
        loop {
            let inner = self.inner();
            inner.powered()?;
            match inner.state.dir(deepest) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => missing.push(deepest),
                found => break found?,
            }
            deepest = parent(deepest);
        }
        self.sync_dir(parent(deepest))?;
        for dir in missing.into_iter().rev() {
            let describe = || format!("create directory {}", dir.display());
            self.operate(describe, |inner, _| {
                inner.vacant(dir)?;
                inner.state.change_names(NameChange::Add { path: dir.to_owned(), entry: Entry::Dir });
                Ok(())
            })?;
            self.sync_dir(parent(dir))?;
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let dir = tidy(dir);
        let inner = self.inner();
        inner.powered()?;
        inner.needs_descriptor()?;
        inner.state.dir(&dir)?;
        let within = inner.state.names.iter().filter(|(path, _)| path.parent() == Some(&dir));
        let entries = within.map(|(path, entry)| DirEntry {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            kind: match entry {
                Entry::Dir => EntryKind::Dir,
                Entry::File(_) => EntryKind::File,
            },
        });
        Ok(entries.collect())
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.inner();
        inner.powered()?;
        let inode = inner.state.file(&tidy(path))?;
        inner.needs_descriptor()?;
        *inner.open.entry(inode).or_default() += 1;
        let path = path.to_owned();
        Ok(Box::new(SimulatedFile { disk: self.clone(), inode, access, path }))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let at = tidy(path);
        let describe = || format!("create {}", at.display());
        let inode = self.operate(describe, |inner, _| {
            inner.needs_descriptor()?;
            inner.vacant(&at)?;
            let inode = inner.state.new_inode(Inode::default());
            inner.state.change_names(NameChange::Add { path: at.clone(), entry: Entry::File(inode) });
            *inner.open.entry(inode).or_default() += 1;
            Ok(inode)
        })?;
        let path = path.to_owned();
        Ok(Box::new(SimulatedFile { disk: self.clone(), inode, access: Access::ReadWrite, path }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (tidy(from), tidy(to));
        let describe = || format!("rename {} to {}", from.display(), to.display());
        self.operate(describe, |inner, _| {
            inner.state.file(&from)?;
            inner.vacant(&to)?;
            inner.rename(from.clone(), to.clone())
        })
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (tidy(from), tidy(to));
        let describe = || format!("replace {} by {}", to.display(), from.display());
        self.operate(describe, |inner, _| {
            inner.state.dir(parent(&to))?;
            if inner.state.entry(&to) == Some(Entry::Dir) {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            inner.rename(from.clone(), to.clone())
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (tidy(from), tidy(to));
        let describe = || format!("link {} as {}", from.display(), to.display());
        self.operate(describe, |inner, _| {
            let entry = Entry::File(inner.state.file(&from)?);
            inner.vacant(&to)?;
            inner.state.change_names(NameChange::Add { path: to.clone(), entry });
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let path = tidy(path);
        let describe = || format!("remove {}", path.display());
        self.operate(describe, |inner, _| {
            inner.state.file(&path)?;
            inner.state.change_names(NameChange::Remove { path: path.clone() });
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = tidy(dir);
        let describe = || format!("sync directory {}", dir.display());
        self.operate(describe, |inner, power| inner.sync_dir(&dir, power))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let inner = self.inner();
        inner.powered()?;
        inner.state.dir(&tidy(dir))?;
        Ok(inner.free_pages() * PAGE_BYTES as u64)
    }
}
