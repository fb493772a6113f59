//! What the committer, the workers and the ledger thread share: every sink's progress, the void
//! offsets, and the wake-ups between them.
//!
//! One lock guards the numbers, so that [`State`] seen under it is consistent; it is held for a few
//! instructions, never across I/O or an await. The queue of waiting appends has a lock of its own,
//! because the ingest thread takes it for every request.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot, watch};

use crate::event::{Micros, NewBatch};
use crate::log::{Chunk, Log, NoRoom, Reader};
use crate::planted::{self, Mistake};
use crate::pulse::Pulse;
use crate::queue::{Appended, Redrive, Refusal, Selection, SinkInfo};
use crate::waits::{AtomicBool, Condvar, Mutex, MutexGuard, Notify};

use super::codec::{Checkpoint, Findings, Record};
use super::commit::CommitMeter;
use super::dropped::Dropped;
use super::hold::Hold;
use super::index::Index;
use super::ledger::Clock;
use super::order::Order;
use super::ranges::RangeSet;
use super::rows::Rows;
use super::settle::{Settling, Tally};
use super::window::Window;

/// Ranges finished ahead that one checkpoint keeps; what is beyond is delivered again after a crash.
pub(super) const MAX_CHECKPOINT_RANGES: usize = 256;
/// Void ranges one ledger record holds. Both bounds keep every record below the smallest segment.
const MAX_FINDINGS_RANGES: usize = 256;

/// Redrives under way or waiting at the same time; more wait for their turn to wait.
const MAX_REDRIVES: usize = 8;

/// Behind every handle of one queue.
pub(super) struct Shared {
    /// The event log.
    pub log: Log,
    /// The ledger's log.
    pub ledger: Log,
    /// The failure table's log.
    pub failures: Log,
    /// What must not be freed for now.
    pub hold: Hold,
    /// The index over it.
    pub index: Index,
    /// What the failure table has room for.
    pub room: TableRoom,
    /// What group commits were like.
    pub commits: CommitMeter,
    /// Tells the time.
    pub clock: Clock,
    /// Who may ask for a redrive.
    pub redrive_permits: Semaphore,
    /// The configured sinks, in order.
    pub infos: Vec<SinkInfo>,
    /// Most bytes of appends that wait for the committer.
    pub max_waiting_bytes: u64,
    /// How long appends may wait behind one commit.
    pub max_wait: Duration,
    state: Mutex<State>,
    /// Of each sink, who reads and sorts for it now, where it has an order.
    pub turns: Vec<Mutex<()>>,
    /// The ledger thread waits here for something to write.
    ledger_work: Condvar,
    /// Generations of [`State`] that are in the ledger.
    pub written: watch::Sender<u64>,
    waiting: Mutex<Waiting>,
    /// The committer waits here for an append.
    pub append_waits: Notify,
    /// Whether the committer still goes round, and whether the ledger does.
    pub committer_pulse: Arc<Pulse>,
    pub ledger_pulse: Arc<Pulse>,
    /// Claims wait here for anything but new events.
    pub claimable: Notify,
    /// What recovery found is in the ledger, and the ledger has a spare: events may be taken and
    /// handed out.
    ready: AtomicBool,
    draining: AtomicBool,
    failure: OnceLock<String>,
}

/// What a [`Shared`] is made of.
pub(super) struct Fixed {
    pub log: Log,
    pub ledger: Log,
    pub failures: Log,
    pub index: Index,
    pub room: TableRoom,
    pub clock: Clock,
    pub infos: Vec<SinkInfo>,
    pub max_waiting_bytes: u64,
    pub max_wait: Duration,
}

/// What the failure table has room for, in bytes of its log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TableRoom {
    /// For all rows.
    pub total: u64,
    /// For the rows of one sink, so that a broken target leaves room to the others.
    pub share: u64,
    /// The most one row takes.
    pub row: u64,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub(super) struct State {
    /// One for each configured sink, in order.
    pub sinks: Vec<SinkProgress>,
    /// Rows of sinks that are not configured any more; kept, never claimed.
    pub gone_rows: BTreeMap<String, Rows>,
    /// Records on their way into the failure table.
    pub settling: VecDeque<Settling>,
    /// What they will take, those the ledger thread works on included.
    pub settling_bytes: u64,
    /// Redrives under way.
    pub redrives: VecDeque<Redriving>,
    /// Everything the failure table's log says below this place is in these numbers.
    pub rows_end: u64,
    /// Offsets that hold no event, as far as they still matter.
    pub voids: RangeSet,
    /// Damaged ranges that cost events, since the data directory was made.
    pub damaged_ranges: u64,
    /// Damage that cost nothing, met since the start.
    pub harmless_damage: u64,
    /// Counts changes that belong into the ledger.
    pub generation: u64,
    /// The generation of the last change to voids or damage.
    pub findings_changed: u64,
    /// Everything up to this generation is in the ledger.
    pub written: u64,
    /// Somebody waits for the ledger; no coalescing.
    pub urgent: bool,
    /// The ledger thread is asked to finish.
    pub stop: bool,
}

/// One sink's progress.
#[derive(Debug)]
pub(super) struct SinkProgress {
    /// Claims as ranges.
    pub window: Window,
    /// Its events in the failure table.
    pub rows: Rows,
    /// Which events wait for others of their key.
    pub order: Order,
    /// Room in the failure table that claims under way may need.
    pub reserved: u64,
    /// Room that records on their way will take.
    pub settling_cost: u64,
    /// Nothing is claimed from the log, because what it might park would not fit: told once.
    pub is_crowded: bool,
    /// Events that are done with and have no row.
    pub tally: Tally,
    /// Which of them were dropped.
    pub dropped: Dropped,
    /// What the sink wants handed back on open.
    pub token: Option<Vec<u8>>,
    /// Nothing is claimed.
    pub paused: bool,
    /// What the ledger is to say about a pause.
    pub paused_by_operator: bool,
    /// Why it waits for its target, if it does.
    pub backing_off: Option<String>,
    /// The last reason for a failure.
    pub last_error: Option<String>,
    /// The low-water mark of the last durable checkpoint: segments below it may go.
    pub durable_acked: u64,
    /// Its reader, while no claim uses it.
    pub reader: Option<Reader>,
    /// The generation of its last change.
    pub changed: u64,
    /// The generation of its last pause or resume.
    pub pause_changed: u64,
}

/// A redrive under way.
#[derive(Debug)]
pub(super) struct Redriving {
    /// Index of the sink.
    pub sink: usize,
    /// What is still to be looked at.
    pub selection: Selection,
    /// The last offset that was.
    pub after: Option<u64>,
    /// What to do.
    pub action: Redrive,
    /// Rows changed so far.
    pub changed: u64,
    /// Who waits for the number.
    pub answer: oneshot::Sender<u64>,
}

/// Appends that wait for the next group commit.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// In order of arrival.
    pub appends: Vec<Append>,
    /// Bytes their frames will take.
    pub bytes: u64,
    /// Nothing more is taken.
    pub closed: bool,
    /// A commit takes longer than anybody is to wait behind it: nothing is taken until it is done.
    pub stalled: bool,
}

/// One append that waits.
#[derive(Debug)]
pub(super) struct Append {
    /// Its events.
    pub batch: NewBatch,
    /// When they were accepted.
    pub accepted_at: Micros,
    /// Who waits for the answer.
    pub answer: oneshot::Sender<Result<Appended, Refusal>>,
}

/// What the ledger is to write.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// The records.
    pub records: Vec<Record>,
    /// The generation they show.
    pub generation: u64,
    /// Each sink's low-water mark in them.
    pub acked: Vec<u64>,
}

impl Shared {
    pub fn new(fixed: Fixed, state: State) -> Self {
        let Fixed { log, ledger, failures, index, room, clock, infos, max_waiting_bytes, max_wait } = fixed;
        Self {
            log,
            ledger,
            failures,
            hold: Hold::default(),
            index,
            room,
            commits: CommitMeter::default(),
            clock,
            redrive_permits: Semaphore::new(MAX_REDRIVES),
            infos,
            max_waiting_bytes,
            max_wait,
            turns: state.sinks.iter().map(|_| Mutex::new(())).collect(),
            state: Mutex::new(state),
            ledger_work: Condvar::new(),
            written: watch::Sender::new(0),
            waiting: Mutex::new(Waiting::default()),
            append_waits: Notify::new(),
            committer_pulse: Arc::default(),
            ledger_pulse: Arc::default(),
            claimable: Notify::new(),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            failure: OnceLock::new(),
        }
    }

    /// The numbers. A thread that panicked with the lock cannot have broken them: each change is
    /// complete before the next call that could panic.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the storage has failed, if it has.
    pub fn failed(&self) -> Option<String> {
        self.failure.get().cloned().or_else(|| self.log.failed()).or_else(|| self.failures.failed())
    }

    /// Latches the queue; everyone who waits wakes up to see it.
    pub fn fail(&self, reason: String) {
        if self.failure.set(reason).is_ok() {
            self.append_waits.notify_one();
            self.claimable.notify_waiters();
            self.written.send_modify(|_| {});
            if !planted::made(Mistake::FailureUntold) {
                self.state().redrives.clear(); // nobody goes on with them, and who waits for one hears so
            }
            self.wake_ledger();
        }
    }

    /// Why an append whose frame takes `frame_bytes`, behind those that wait, is refused.
    pub fn refusal(&self, frame_bytes: u64, waiting: &Waiting) -> Option<Refusal> {
        if self.failed().is_some() {
            return Some(Refusal::StorageFailed);
        }
        if !self.is_ready() {
            return Some(Refusal::StorageFull);
        }
        // A request that waits alone is never too much, whatever its size.
        let bytes = waiting.bytes.saturating_add(frame_bytes);
        if waiting.stalled || (waiting.bytes > 0 && bytes > self.max_waiting_bytes) {
            return Some(Refusal::Overloaded);
        }
        match self.log.room_for(bytes) {
            // The next segment is on its way and the writer waits for it, a bounded time. To refuse
            // would turn every roll on a slow disk into a retry a second later.
            Ok(()) | Err(NoRoom::Preparing) => None,
            Err(no_room) => Some(refusal_of(no_room)),
        }
    }

    /// Refuses whoever waits, and whoever comes until the commit under way is done. Nothing of theirs
    /// has been written.
    pub fn stall(&self) {
        let mut waiting = self.waiting();
        waiting.stalled = true;
        waiting.bytes = 0;
        for append in waiting.appends.drain(..) {
            // A client that is gone does not want to know.
            let _ = append.answer.send(Err(Refusal::Overloaded));
        }
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub fn set_ready(&self) {
        if !self.ready.swap(true, Ordering::AcqRel) {
            self.claimable.notify_waiters();
        }
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.claimable.notify_waiters();
    }

    /// Wakes the ledger thread. The lock makes sure that it is not between looking and waiting.
    pub fn wake_ledger(&self) {
        let _state = self.state();
        self.ledger_work.notify_one();
    }

    /// Waits until something is to be written, or `timeout` has passed.
    pub fn wait_for_work(&self, timeout: Duration) {
        let idle = |state: &mut State| {
            !state.is_dirty() && !state.has_rows_to_write() && !state.stop && self.failed().is_none()
        };
        let state = self.state();
        let waited = self.ledger_work.wait_timeout_while(state, timeout, idle);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits out the pause between two checkpoints, unless somebody is in a hurry.
    pub fn wait_for_urgency(&self, timeout: Duration) {
        let calm = |state: &mut State| !state.urgent && !state.stop && self.failed().is_none();
        let state = self.state();
        let waited = self.ledger_work.wait_timeout_while(state, timeout, calm);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Notes a change to a sink that belongs into the ledger.
    pub fn changed(&self, state: &mut State, sink: usize) {
        let was_dirty = state.is_dirty();
        state.generation += 1;
        let progress = &mut state.sinks[sink];
        progress.changed = state.generation;
        if progress.dropped.take_news() {
            progress.dropped.changed = state.generation;
        }
        if !was_dirty && !planted::made(Mistake::LedgerLeftAsleep) {
            self.ledger_work.notify_one();
        }
    }

    /// Takes note of records for the failure table.
    pub fn push_settling(&self, state: &mut State, settling: Settling) {
        let cost = settling.cost();
        state.settling_bytes += cost;
        if let Some(progress) = state.sinks.get_mut(settling.sink) {
            progress.settling_cost += cost;
        }
        state.settling.push_back(settling);
        self.ledger_work.notify_one();
    }

    /// What waits for the failure table.
    pub fn take_settling(&self) -> VecDeque<Settling> {
        std::mem::take(&mut self.state().settling)
    }

    /// Takes note of what a read found out about offsets without an event; whatever is new goes into
    /// the ledger. Damage is counted once, however many readers and restarts meet it; the log tells it.
    pub fn note(&self, state: &mut State, chunk: &Chunk) {
        for damage in &chunk.damage {
            if damage.lost.is_empty() {
                state.harmless_damage += 1;
            } else if self.add_void(state, &damage.lost) {
                state.damaged_ranges += 1;
            }
        }
        // What damage took is void as well, so this comes second.
        chunk.voids.iter().for_each(|range| {
            self.add_void(state, range);
        });
    }

    fn add_void(&self, state: &mut State, range: &Range<u64>) -> bool {
        if state.voids.covers(range) {
            return false;
        }
        state.voids.insert(range.clone());
        state.generation += 1;
        state.findings_changed = state.generation;
        self.ledger_work.notify_one();
        true
    }
}

/// What a lack of room means to a client.
pub(super) fn refusal_of(no_room: NoRoom) -> Refusal {
    match no_room {
        NoRoom::Budget => Refusal::WalFull,
        NoRoom::Disk(_) => Refusal::StorageFull,
        NoRoom::Preparing => Refusal::Overloaded,
    }
}

impl State {
    /// Whether the ledger does not say everything yet.
    pub fn is_dirty(&self) -> bool {
        self.generation > self.written
    }

    /// Whether something waits for the failure table.
    pub fn has_rows_to_write(&self) -> bool {
        !self.settling.is_empty() || !self.redrives.is_empty()
    }

    /// The rows of a sink by name, configured or not.
    pub fn rows_of(&self, infos: &[SinkInfo], name: &str) -> Option<&Rows> {
        match infos.iter().position(|info| info.name == name) {
            Some(sink) => self.sinks.get(sink).map(|progress| &progress.rows),
            None => self.gone_rows.get(name),
        }
    }

    /// The same, to change them.
    pub fn rows_of_mut(&mut self, infos: &[SinkInfo], name: &str) -> Option<&mut Rows> {
        match infos.iter().position(|info| info.name == name) {
            Some(sink) => self.sinks.get_mut(sink).map(|progress| &mut progress.rows),
            None => self.gone_rows.get_mut(name),
        }
    }

    /// Room in the failure table for what a sink may park.
    pub fn room_for_rows(&self, sink: usize, room: &TableRoom) -> u64 {
        let used =
            |progress: &SinkProgress| progress.rows.cost() + progress.reserved + progress.settling_cost;
        let Some(progress) = self.sinks.get(sink) else { return 0 };
        let all: u64 =
            self.sinks.iter().map(used).sum::<u64>() + self.gone_rows.values().map(Rows::cost).sum::<u64>();
        room.share.saturating_sub(used(progress)).min(room.total.saturating_sub(all))
    }

    /// Everything the ledger does not say yet; with `all`, everything there is.
    pub fn work(&self, infos: &[SinkInfo], durable_end: u64, all: bool) -> Work {
        let mut records = Vec::new();
        if all || self.findings_changed > self.written {
            records.extend(self.findings(durable_end));
        }
        for (sink, info) in self.sinks.iter().zip(infos) {
            if all || sink.dropped.changed > self.written {
                records.extend(sink.dropped.record(&info.name, sink.tally.dropped).map(Record::Dropped));
            }
            if all || sink.changed > self.written {
                let checkpoint = sink.checkpoint(&info.name, durable_end, self.rows_end, &self.voids);
                records.push(Record::Checkpoint(checkpoint));
            }
            if all || sink.pause_changed > self.written {
                records.push(Record::Paused { sink: info.name.clone(), paused: sink.paused_by_operator });
            }
        }
        Work {
            records,
            generation: self.generation,
            acked: self.sinks.iter().map(|sink| sink.window.acked()).collect(),
        }
    }

    /// Notes that `work` is durable in the ledger.
    pub fn settle(&mut self, work: &Work) {
        self.written = self.written.max(work.generation);
        for (sink, acked) in self.sinks.iter_mut().zip(&work.acked) {
            sink.durable_acked = sink.durable_acked.max(*acked);
        }
    }

    fn findings(&self, durable_end: u64) -> Vec<Record> {
        let voids: Vec<_> = self.voids.iter().map(|range| (range.start, range.end)).collect();
        let record = |voids: &[(u64, u64)]| {
            Record::Findings(Findings {
                durable_end,
                voids: voids.to_vec(),
                damaged_ranges: self.damaged_ranges,
            })
        };
        if voids.is_empty() {
            return vec![record(&[])];
        }
        voids.chunks(MAX_FINDINGS_RANGES).map(record).collect()
    }
}

impl SinkProgress {
    fn checkpoint(&self, name: &str, durable_end: u64, rows_end: u64, voids: &RangeSet) -> Checkpoint {
        // A row speaks for itself: opening counts its event as finished, whatever fits here.
        let parked = |range: &Range<u64>| {
            let after = range.start.checked_sub(1);
            self.rows.after(after).take_while(|(offset, _)| *offset < range.end).count() as u64
        };
        let events = |range: Range<u64>| {
            (range.end - range.start).saturating_sub(voids.overlap(range.clone()) + parked(&range))
        };
        // What does not fit is not counted either: it will be delivered, and counted, again.
        let beyond: u64 = self.window.finished().iter().skip(MAX_CHECKPOINT_RANGES).map(events).sum();
        let finished = self.window.finished().iter().take(MAX_CHECKPOINT_RANGES);
        Checkpoint {
            sink: name.to_owned(),
            acked: self.window.acked(),
            finished: finished.map(|range| (range.start, range.end)).collect(),
            delivered: self.tally.delivered.saturating_sub(beyond),
            dropped: self.tally.dropped,
            skipped: self.tally.skipped,
            token: self.token.clone(),
            durable_end,
            rows: self.rows.len(),
            rows_end,
            is_configured: true,
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("log", &self.log)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}
