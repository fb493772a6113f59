//! Spares prepared ahead, and freed segments taken back.
//!
//! # Why a reused file can never be mistaken for another
//!
//! ```text
//! released      <old base>.seg ──rename──► spare-N.seg ──sync dir──► ready
//! used again    write header and frames into spare-N.seg ──sync data──► rename ──► <base>.seg ──sync dir
//! ```
//!
//! * Crash before the first directory sync: the file is whole, under either name. As a segment it
//!   holds records that were released, which means that everyone is durably past them: nothing is
//!   delivered twice, and it is released again. As a spare it is no data, whatever its header says.
//! * Crash before the second rename is durable: the name is the spare's, so the file is no data, and
//!   none of its new frames was promised to anybody yet.
//! * So the name of a segment is only ever durable over a header that was synced before it. Should a
//!   disk break that order, or a person copy files about, then base, salt and E decide: a header
//!   whose base is not the name's is stale, and a frame of another salt is no frame.
//! * Segments are taken back oldest first, each with a directory sync of its own, so a crash never
//!   leaves a hole between two segments that are still there.
//!
//! # Thread and failure
//!
//! [`Stock::run`] needs a thread; [`Stock::step`] does one piece of its work on the caller's. What
//! the disk or the process lacks (space, descriptors, inodes) is written down as a shortage that
//! appends are refused with, and tried again; the active segment is never touched. A file whose sync failed
//! is thrown away. Only a failed sync of the directory latches the log, because the writer's next
//! sync of the same directory could then claim what is not so.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::catalog::{FoundFile, Shared, Spare};
use super::segment::{Segment, parse_spare_name, spare_name};
use super::{LogError, NoRoom};
use crate::disk::{Access, DiskFile};

/// Zeros are written in pieces of this size: small, because an allocator keeps what one thread of
/// many has once used.
const FILL_BYTES: u64 = 64 << 10;
/// A file being filled is synced this often, so that the writer's syncs never wait behind a whole
/// segment of dirty pages.
const SYNC_EVERY_BYTES: u64 = 8 << 20;
/// How long to wait before a shortage is looked at again.
const RETRY: Duration = Duration::from_secs(1);

/// Owner of every file that is not a live segment.
#[derive(Debug)]
pub struct Stock {
    shared: Arc<Shared>,
    /// Left behind by an earlier run, to be used or removed.
    found: VecDeque<FoundFile>,
    /// Numbers are never used twice, so no name is ever in the way for long.
    next_number: u64,
}

/// What one step of the stock did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something; there may be more to do.
    Worked,
    /// Nothing: all is as it should be. A release or a used spare gives it work again.
    Idle,
    /// Nothing, for want of room; `Log::room_for` says of which. Worth another try later.
    Blocked,
}

impl Stock {
    pub(super) fn new(shared: Arc<Shared>, found: Vec<FoundFile>, next_number: u64) -> Self {
        Self { shared, found: found.into(), next_number }
    }

    /// Does one unit of work: takes back one released segment, adopts one found file or prepares one
    /// spare. Blocks.
    pub fn step(&mut self) -> Step {
        if self.shared.is_failed() {
            return Step::Idle;
        }
        let released = {
            let mut state = self.shared.state();
            state.stock_has_work = false;
            state.released.front().cloned()
        };
        if let Some(segment) = released {
            return self.take_back(&segment);
        }
        if let Some(found) = self.found.front().cloned() {
            return self.adopt(&found);
        }
        self.prepare()
    }

    /// Steps whenever there is something to do, until [`Log::stop_stock`](super::Log::stop_stock)
    /// or the log fails. Needs a thread of its own.
    pub fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _running = Running::begin(&shared);
        loop {
            let step = self.step();
            let state = shared.state();
            if state.stock_stops || shared.is_failed() {
                return;
            }
            if step == Step::Worked || state.stock_has_work {
                continue;
            }
            if step == Step::Blocked {
                let _state =
                    shared.stock_work.wait_timeout(state, RETRY).unwrap_or_else(PoisonError::into_inner);
            } else {
                let _state = shared.stock_work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Makes a spare out of a released segment, or removes it when there are spares enough.
    fn take_back(&mut self, segment: &Segment) -> Step {
        if segment.is_kept() {
            self.shared.forget_released(0); // still on the disk, so still counted
            return Step::Worked;
        }
        let size = segment.header.size;
        if size != self.shared.options.segment_bytes || !self.wants_reused() {
            return match self.shared.disk.remove(&segment.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => self.blocked("removing", &segment.path, &e),
                _ => self.sync_dir_then(|shared| shared.forget_released(segment.allocated)),
            };
        }
        // Opened before it is renamed: a lack of descriptors changes nothing.
        let file = match self.shared.disk.open(&segment.path, Access::ReadWrite) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return self.sync_dir_then(|shared| shared.forget_released(segment.allocated));
            }
            Err(e) => return self.blocked("opening", &segment.path, &e),
        };
        let path = self.new_path();
        match self.shared.disk.rename(&segment.path, &path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Step::Worked, // the next number is free
            Err(e) => return self.blocked("renaming", &segment.path, &e),
        }
        let spare = Spare { path, file: file.into(), size, allocated: segment.allocated };
        self.sync_dir_then(|shared| {
            // Counted on as the spare it has become.
            shared.forget_released(0);
            shared.put_spare(spare);
        })
    }

    /// Makes a spare out of a file an earlier run left, or removes it when it does not fit.
    fn adopt(&mut self, found: &FoundFile) -> Step {
        let is_spare = found.path.file_name().and_then(|name| parse_spare_name(name.to_str()?)).is_some();
        if found.len != self.shared.options.segment_bytes || !self.wants_reused() {
            self.found.pop_front();
            if !is_spare {
                // Under a segment's name, it may be what keeps offsets from starting again.
                return Step::Worked;
            }
            return match self.shared.disk.remove(&found.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => self.blocked("removing", &found.path, &e),
                _ => self.sync_dir_then(|shared| shared.forget_bytes(found.counted_bytes())),
            };
        }
        let file = match self.shared.disk.open(&found.path, Access::ReadWrite) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.found.pop_front();
                self.shared.forget_bytes(found.counted_bytes());
                return Step::Worked;
            }
            Err(e) => return self.blocked("opening", &found.path, &e),
        };
        self.found.pop_front();
        // A power loss can leave the length of a half-prepared file ahead of its blocks.
        let has_holes = is_spare && found.allocated < found.len;
        let filled = if has_holes { fill(&*file, found.len) } else { file.sync_data() };
        if let Err(e) = filled {
            return self.discard(&found.path, found.counted_bytes(), "preparing", &e);
        }
        let spare = Spare {
            path: found.path.clone(),
            file: file.into(),
            size: found.len,
            allocated: found.counted_bytes(),
        };
        self.sync_dir_then(|shared| shared.put_spare(spare))
    }

    /// Makes a spare from nothing, within the budget and what the disk can give.
    fn prepare(&mut self) -> Step {
        let size = self.shared.options.segment_bytes;
        let (ready, bytes) = {
            let state = self.shared.state();
            (state.spares.len(), state.bytes)
        };
        if ready >= self.shared.options.spares as usize {
            self.shared.clear_shortage();
            return Step::Idle;
        }
        if bytes.saturating_add(size) > self.shared.options.budget_bytes {
            self.shared.set_shortage(NoRoom::Budget);
            return Step::Blocked;
        }
        let dir = self.shared.options.dir.clone();
        let min_free = self.shared.options.min_free_disk_bytes;
        match self.shared.disk.free_bytes(&dir) {
            Ok(free) if free < size.saturating_add(min_free) => {
                let reason = format!(
                    "{} has {free} bytes free, a segment takes {size} and {min_free} are to stay free",
                    dir.display()
                );
                self.shared.set_shortage(NoRoom::Disk(reason));
                return Step::Blocked;
            }
            Ok(_) => {}
            Err(e) => return self.blocked("asking for the free space of", &dir, &e),
        }
        let path = self.new_path();
        let file = match self.shared.disk.create(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Step::Worked, // the next number is free
            Err(e) => return self.blocked("creating", &path, &e),
        };
        self.shared.state().bytes += size;
        if let Err(e) = fill(&*file, size) {
            drop(file);
            return self.discard(&path, size, "preparing", &e);
        }
        // Where the file system cannot say, or compresses zeros away, the size is what it may become.
        let allocated = file.allocated_bytes().unwrap_or(size).max(size);
        let spare = Spare { path, file: file.into(), size, allocated };
        self.sync_dir_then(|shared| {
            shared.state().bytes += allocated - size;
            shared.put_spare(spare);
        })
    }

    /// One more than is prepared ahead is kept of what comes back, so that a log whose readers keep
    /// up rolls through the same files for ever instead of making and removing them in turn.
    fn wants_reused(&self) -> bool {
        self.shared.state().spares.len() <= self.shared.options.spares as usize
    }

    fn new_path(&mut self) -> PathBuf {
        let path = self.shared.options.dir.join(spare_name(self.next_number));
        self.next_number += 1;
        path
    }

    /// Makes the last rename, creation or removal durable; what relies on it happens in `then`.
    fn sync_dir_then(&self, then: impl FnOnce(&Shared)) -> Step {
        let dir = &self.shared.options.dir;
        if let Err(e) = self.shared.disk.sync_dir(dir) {
            self.shared.fail(LogError::io("syncing directory", dir, &e));
            return Step::Idle;
        }
        then(&self.shared);
        Step::Worked
    }

    /// Throws a file away that could not be prepared. Its removal need not be durable: if the name
    /// comes back, recovery finds a spare like any other.
    fn discard(&self, path: &Path, counted_bytes: u64, action: &str, error: &io::Error) -> Step {
        if self.shared.disk.remove(path).is_ok() {
            self.shared.forget_bytes(counted_bytes);
        }
        self.blocked(action, path, error)
    }

    fn blocked(&self, action: &str, path: &Path, error: &io::Error) -> Step {
        self.shared.set_shortage(NoRoom::Disk(format!("{action} {} failed: {error}", path.display())));
        Step::Blocked
    }
}

/// Writes zeros over `size` bytes and syncs them, so that later writes change no block map.
fn fill(file: &dyn DiskFile, size: u64) -> io::Result<()> {
    let zeros = vec![0u8; FILL_BYTES.min(size) as usize];
    let mut position = 0;
    let mut synced = 0;
    while position < size {
        let piece = (size - position).min(FILL_BYTES);
        file.write_all_at(&zeros[..piece as usize], position)?;
        position += piece;
        if position - synced >= SYNC_EVERY_BYTES || position == size {
            file.sync_data()?;
            synced = position;
        }
    }
    Ok(())
}

/// Tells the log that a stock thread runs, until it is dropped, also by a panic.
struct Running<'a>(&'a Shared);

impl<'a> Running<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.state().stock_runs = true;
        Self(shared)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state().stock_runs = false;
        self.0.wake_writer();
    }
}

#[cfg(test)]
mod tests;
