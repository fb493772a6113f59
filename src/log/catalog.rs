//! What the parts of one log share: the segments and spares there are, the watermarks, the latch,
//! and the wake-ups. [`Log`](super::Log) is the handle to it that others hold.
//!
//! No thread of its own: every call does its own work on the caller's thread, without I/O, and so
//! cannot fail. The one lock is held for a few instructions at a time, never across I/O or an await.
//! The hot watermarks are atomics beside it.

use std::collections::VecDeque;
use std::mem::Discriminant;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::frame;
use super::quarantine::Known;
use super::segment::{DATA_START, Segment};
use super::{LogError, NoRoom, Options};
use crate::disk::{Disk, DiskFile};
use crate::planted::{self, Mistake};
use crate::waits::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Notify};

/// Bytes of a frame without records.
pub(super) const MARKER_BYTES: u64 = frame::HEADER_BYTES as u64;
/// How long a roll waits for a spare that is being prepared: longer than a healthy disk takes for a
/// segment, shorter than a client waits for an answer.
const WAIT_FOR_SPARE: Duration = Duration::from_secs(2);

/// Where an offset is to be found.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In this segment. A sealed one ends at `end`, the base of the next; the newest ends at the
    /// durable end (`None`). Load [`Log::durable_end`] first, then `Segment::durable_position`:
    /// they are published the other way round, so the position covers that end.
    In {
        /// The segment.
        segment: Arc<Segment>,
        /// Where it ends, once sealed.
        end: Option<u64>,
    },
    /// Below everything held.
    Released {
        /// What is held begins here.
        first_offset: u64,
    },
    /// The log holds no segment at all yet.
    NotYet,
}

/// A prepared file, its descriptor open, its name durable, its blocks written.
#[derive(Debug)]
pub(super) struct Spare {
    pub path: PathBuf,
    pub file: Arc<dyn DiskFile>,
    pub size: u64,
    pub allocated: u64,
}

/// Behind every handle of one log.
#[derive(Debug)]
pub(super) struct Shared {
    pub disk: Arc<dyn Disk>,
    pub options: Options,
    /// first ≤ durable ≤ next, each only grows. Published after the catalog knows the segment.
    first_offset: AtomicU64,
    durable_end: AtomicU64,
    next_offset: AtomicU64,
    /// Bytes left in the active segment for records; the writer's to store.
    active_room: AtomicU64,
    /// Bytes the ready spares offer; changed under the lock.
    spare_room: AtomicU64,
    is_failed: AtomicBool,
    failure: OnceLock<String>,
    durable_moved: Notify,
    state: Mutex<State>,
    /// What readers need not tell again.
    known: Mutex<Known>,
    /// The stock waits here for something to do.
    pub stock_work: Condvar,
    /// The writer waits here for a spare.
    spare_ready: Condvar,
}

/// What the lock protects.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Ascending by base; the last is the active one, or the newest sealed one.
    pub segments: VecDeque<Arc<Segment>>,
    /// Given up, to be taken back by the stock, oldest first.
    pub released: VecDeque<Arc<Segment>>,
    /// Ready to be used.
    pub spares: VecDeque<Spare>,
    /// Bytes of all of them and of files being prepared.
    pub bytes: u64,
    /// Why the stock prepares no further spare although it should.
    pub shortage: Option<NoRoom>,
    /// The kind of shortage the operator was told of.
    pub told_shortage: Option<Discriminant<NoRoom>>,
    /// A stock thread runs, so waiting for a spare makes sense.
    pub stock_runs: bool,
    /// Something happened since its last step began: a release, or a spare was used.
    pub stock_has_work: bool,
    /// It was asked to return.
    pub stock_stops: bool,
}

/// What recovery found, from which the parts of an open log are made.
#[derive(Debug)]
pub(super) struct Inventory {
    /// Segments that hold records, ascending by base. Each ends where the next begins, the last one
    /// at `next_offset`.
    pub segments: Vec<Segment>,
    /// Where to go on in the last of them; `None` begins a new one.
    pub resume: Option<Resume>,
    /// Files whose content nobody needs, whatever their names, the best one first.
    pub spares: Vec<FoundFile>,
    /// Numbers of spares from here on were never used.
    pub next_spare_number: u64,
    /// The offset the next record gets; everything below it is durable.
    pub next_offset: u64,
}

/// Where to go on in a segment that was closed in order.
#[derive(Debug)]
pub(super) struct Resume {
    /// The file, open for writing.
    pub file: Arc<dyn DiskFile>,
    /// The end of its last frame.
    pub position: u64,
    /// The last frame is the mark of a clean stop.
    pub is_marked_clean: bool,
}

/// A file in the log's directory that may become a spare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundFile {
    pub path: PathBuf,
    pub len: u64,
    pub allocated: u64,
}

impl FoundFile {
    /// What it counts against the budget.
    pub fn counted_bytes(&self) -> u64 {
        self.len.max(self.allocated)
    }
}

/// The largest frame of records a segment of `size` bytes takes. The end of every segment is kept
/// for the marker of a clean stop.
pub(super) fn capacity(size: u64) -> u64 {
    size.saturating_sub(DATA_START + MARKER_BYTES)
}

impl Shared {
    pub fn new(disk: Arc<dyn Disk>, options: Options, inventory: &mut Inventory) -> Self {
        let segments: VecDeque<_> = inventory.segments.drain(..).map(Arc::new).collect();
        let bytes = segments.iter().map(|segment| segment.allocated).sum::<u64>()
            + inventory.spares.iter().map(FoundFile::counted_bytes).sum::<u64>();
        let first_offset = segments.front().map_or(inventory.next_offset, |first| first.base());
        Self {
            disk,
            options,
            first_offset: AtomicU64::new(first_offset),
            durable_end: AtomicU64::new(inventory.next_offset),
            next_offset: AtomicU64::new(inventory.next_offset),
            active_room: AtomicU64::new(0),
            spare_room: AtomicU64::new(0),
            is_failed: AtomicBool::new(false),
            failure: OnceLock::new(),
            durable_moved: Notify::new(),
            state: Mutex::new(State { segments, bytes, ..State::default() }),
            known: Mutex::default(),
            stock_work: Condvar::new(),
            spare_ready: Condvar::new(),
        }
    }

    /// The lock. A thread that panicked with it cannot have left a broken invariant behind: every
    /// change under it is a push, a pop or a sum.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the log is latched.
    pub fn is_failed(&self) -> bool {
        self.is_failed.load(Ordering::Acquire)
    }

    /// Remembers what is damaged or void; `false` when it was known.
    pub fn learn(&self, base: u64, bytes: &Range<u64>, offsets: &Range<u64>) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).learn(base, bytes, offsets)
    }

    /// The latch as an error.
    pub fn check(&self) -> Result<(), LogError> {
        if !self.is_failed() {
            return Ok(());
        }
        Err(LogError::Failed(self.failure().unwrap_or_default().to_owned()))
    }

    /// Latches the log: the first reason stays, everyone who waits wakes up to see it.
    pub fn fail(&self, error: LogError) -> LogError {
        if self.failure.set(error.to_string()).is_ok() {
            tracing::error!(reason = %error, "the log has failed");
        }
        self.is_failed.store(true, Ordering::Release);
        self.durable_moved.notify_waiters();
        let _state = self.state(); // nobody may be between looking and waiting
        self.stock_work.notify_all();
        self.spare_ready.notify_all();
        error
    }

    /// Why the log is latched, if it is.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    pub fn first_offset(&self) -> u64 {
        self.first_offset.load(Ordering::Acquire)
    }

    pub fn next_offset(&self) -> u64 {
        self.next_offset.load(Ordering::Acquire)
    }

    pub fn durable_end(&self) -> u64 {
        self.durable_end.load(Ordering::Acquire)
    }

    /// Resolves once the durable end is beyond `offset`, or the log has failed.
    pub async fn wait_beyond(&self, offset: u64) {
        let is_over = || self.durable_end() > offset || self.is_failed();
        loop {
            let too_early = planted::made(Mistake::EnlistedAfterLook).then(is_over);
            let notified = self.durable_moved.notified();
            tokio::pin!(notified);
            // Enlisted before the look, so a commit between the look and the wait is not missed.
            notified.as_mut().enable();
            if too_early.unwrap_or_else(is_over) {
                return;
            }
            notified.await;
        }
    }

    /// Everything below `end` is durable from now on. The caller has published positions and
    /// segments before.
    pub fn publish_durable(&self, end: u64) {
        debug_assert!(end >= self.durable_end.load(Ordering::Relaxed));
        if planted::made(Mistake::WokenBeforePublished) {
            self.durable_moved.notify_waiters();
            return self.durable_end.store(end, Ordering::Release);
        }
        self.durable_end.store(end, Ordering::Release);
        self.durable_moved.notify_waiters(); // one uncontended lock when nobody waits
    }

    pub fn publish_next(&self, next: u64, active_room: u64) {
        self.next_offset.store(next, Ordering::Release);
        self.active_room.store(active_room, Ordering::Relaxed);
    }

    /// The largest frame that can be appended.
    pub fn largest_frame(&self) -> u64 {
        capacity(self.options.segment_bytes).min(u32::MAX as u64) // its header counts in 32 bits
    }

    /// Bytes of frames that fit into the active segment and the ready spares.
    pub fn room_bytes(&self) -> u64 {
        self.active_room.load(Ordering::Relaxed).saturating_add(self.spare_room.load(Ordering::Relaxed))
    }

    /// Makes every segment wholly below `offset` free, but for the newest.
    pub fn release_below(&self, offset: u64) {
        let mut state = self.state();
        let mut released = false;
        while state.segments.get(1).is_some_and(|next| next.base() <= offset) {
            let segment = state.segments.pop_front().expect("there are two");
            segment.set_released();
            state.released.push_back(segment);
            released = true;
        }
        if released {
            let first = state.segments.front().expect("the newest stays");
            self.first_offset.store(first.base(), Ordering::Release);
            state.shortage = None; // the stock will say if it still is one
            state.stock_has_work = true;
            self.stock_work.notify_all();
        }
    }

    /// Makes a segment, durable with its name, the newest one. It takes the place of one with the
    /// same base, whose file it has just replaced.
    pub fn push_segment(&self, segment: Arc<Segment>) {
        let mut state = self.state();
        if state.segments.back().is_some_and(|last| last.base() == segment.base()) {
            let replaced = state.segments.pop_back().expect("there is a last one");
            replaced.set_released();
            state.bytes = state.bytes.saturating_sub(replaced.allocated);
        }
        if state.segments.is_empty() {
            self.first_offset.store(segment.base(), Ordering::Release);
        }
        debug_assert!(state.segments.back().is_none_or(|last| last.base() < segment.base()));
        state.segments.push_back(segment);
    }

    /// Hands a spare out. Waits for one, a bounded time, only when a stock thread runs and nothing
    /// keeps it from preparing one.
    pub fn take_spare(&self) -> Result<Spare, NoRoom> {
        let deadline = Instant::now() + WAIT_FOR_SPARE;
        let mut state = self.state();
        loop {
            if let Some(spare) = state.spares.pop_front() {
                self.spare_room.fetch_sub(capacity(spare.size), Ordering::Relaxed);
                state.stock_has_work = true;
                self.stock_work.notify_all();
                return Ok(spare);
            }
            if let Some(shortage) = &state.shortage {
                return Err(shortage.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !state.stock_runs || state.stock_stops || self.is_failed() || left.is_zero() {
                return Err(NoRoom::Preparing);
            }
            let waited = self.spare_ready.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes a spare in, a new one or one that was not used after all.
    pub fn put_spare(&self, spare: Spare) {
        let mut state = self.state();
        self.spare_room.fetch_add(capacity(spare.size), Ordering::Relaxed);
        state.spares.push_back(spare);
        self.end_shortage(state);
    }

    /// Says why there will be no further spare for now, and sends away who waits for one.
    pub fn set_shortage(&self, shortage: NoRoom) {
        let mut state = self.state();
        let kind = Some(std::mem::discriminant(&shortage));
        let is_news = state.spares.is_empty() && state.told_shortage != kind;
        if is_news {
            tracing::warn!(reason = %shortage, "appends are refused until there is room");
            state.told_shortage = kind;
        }
        state.shortage = Some(shortage);
        self.spare_ready.notify_all();
    }

    /// Nothing keeps spares from being prepared.
    pub fn clear_shortage(&self) {
        self.end_shortage(self.state());
    }

    fn end_shortage(&self, mut state: MutexGuard<'_, State>) {
        state.shortage = None;
        if state.told_shortage.take().is_some() {
            tracing::info!("there is room for appends again");
        }
        self.spare_ready.notify_all();
    }

    /// The oldest released segment is no more; `bytes` of it are off the disk.
    pub fn forget_released(&self, bytes: u64) {
        let mut state = self.state();
        state.released.pop_front();
        state.bytes = state.bytes.saturating_sub(bytes);
    }

    /// A file of `bytes` is off the disk.
    pub fn forget_bytes(&self, bytes: u64) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(bytes);
    }

    /// Base of the newest segment.
    pub fn newest_base(&self) -> Option<u64> {
        self.state().segments.back().map(|segment| segment.base())
    }

    /// Sends away who waits for a spare that nobody prepares any more.
    pub fn wake_writer(&self) {
        self.spare_ready.notify_all();
    }
}
