//! The seam: append, claim, resolve, look up, failures, status.
//!
//! Everything above (HTTP, workers, daemon) knows events by offset and sinks by name, and nothing of
//! segments, files or byte positions; `queue/embedded/` implements this with two logs. A second
//! implementation on a clustered stream must fit beside it without a change above.
//!
//! Calls come from any thread. `append` never blocks on the disk; `claim` may.

pub mod embedded;
mod failures;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::event::{Micros, NewBatch};
use crate::meter::Distribution;
use crate::sink::Batch;

pub use failures::{
    FailedEvent, FailurePage, FailureQuery, FailureRow, MAX_REASON_BYTES, Redrive, RowState, Selection,
};

/// A durable queue of events with one cursor per sink.
pub trait Queue: Send + Sync {
    /// Whether a request of about `body_bytes` could be taken now; asked before its body is read.
    fn admit(&self, body_bytes: u64) -> Result<(), Refusal>;

    /// Queues the events of one request for the next group commit, all or nothing.
    ///
    /// Nothing is accepted until the receipt resolves. `accepted_at` is the time of acceptance.
    fn append(&self, batch: NewBatch, accepted_at: Micros) -> Result<Receipt, Refusal>;

    /// The next events for a sink: waits until there are some, then claims them. Rows of the failure
    /// table that are due come before events of the log. `Ok(None)` once the queue is draining. The wait is asynchronous; reading blocks the calling
    /// thread, so workers have threads of their own.
    fn claim<'a>(
        &'a self,
        sink: SinkId,
        limit: ClaimLimit,
    ) -> BoxFuture<'a, Result<Option<Claim>, QueueError>>;

    /// Stops or starts claiming for a sink; durable when the future resolves.
    fn set_paused<'a>(&'a self, sink: SinkId, paused: bool) -> BoxFuture<'a, Result<(), QueueError>>;

    /// Tells the queue that a sink waits out an unavailability (`Some` with the reason) or works
    /// again (`None`), for status only.
    fn set_backing_off(&self, sink: SinkId, reason: Option<String>);

    /// The event at an offset and where each sink stands with it.
    fn event(&self, offset: u64) -> Result<Lookup, QueueError>;

    /// A page of the failure table. Reads from the disk.
    fn failures(&self, query: &FailureQuery) -> Result<FailurePage, QueueError>;

    /// One row of the failure table with its event, if there is one. Reads from the disk.
    fn failure(&self, sink: SinkId, offset: u64) -> Result<Option<FailedEvent>, QueueError>;

    /// Changes rows of the failure table; resolves to how many once that is durable. Rows that a
    /// worker is trying at the moment are left alone.
    fn redrive<'a>(
        &'a self,
        sink: SinkId,
        selection: Selection,
        action: Redrive,
    ) -> BoxFuture<'a, Result<u64, QueueError>>;

    /// The configured sinks in order; a [`SinkId`] is an index into this.
    fn sinks(&self) -> &[SinkInfo];

    /// One consistent look at everything that is counted.
    fn status(&self) -> Status;

    /// Of each sink, when the oldest event was accepted that it has neither finished nor parked; `None` where
    /// there is none, or where it cannot be read now. Reads from the disk.
    fn pending_since(&self) -> Vec<Option<Micros>>;
}

/// A boxed future; used where a call happens once a batch or less.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A sink, by its position in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SinkId(pub u16);

/// Tells of an event's text which others it has to wait for: those with the same key. Nothing where it
/// waits for none. Two keys may share a number; events then wait that need not.
#[derive(Clone)]
pub struct KeyOf(Arc<TellKey>);

type TellKey = dyn Fn(&[u8]) -> Option<u64> + Send + Sync;

impl KeyOf {
    /// Keys as this function tells them.
    pub fn new(tell: impl Fn(&[u8]) -> Option<u64> + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// The key of the event with this text.
    pub fn key(&self, json: &[u8]) -> Option<u64> {
        (self.0)(json)
    }
}

impl std::fmt::Debug for KeyOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyOf")
    }
}

/// A configured sink, as far as the queue cares.
#[derive(Debug, Clone)]
pub struct SinkInfo {
    /// Its configured name; checkpoints are kept under it.
    pub name: String,
    /// Its type, for status.
    pub kind: &'static str,
    /// Starts paused at every start, whatever the ledger says.
    pub starts_paused: bool,
    /// Whether single events of it may go to the failure table. One that needs every event in order
    /// never parks any, and so a full table never holds it up.
    pub parks: bool,
    /// Events of one key are handed out one after another, in the order of their offsets. Only where it parks.
    pub order: Option<KeyOf>,
}

/// Bounds of one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimLimit {
    /// At most this many events, at least 1.
    pub events: usize,
    /// At most this many bytes of event text, but always at least one event.
    pub bytes: usize,
}

/// Resolves when the events of one append are durable, or will never be.
#[derive(Debug)]
#[must_use = "events are accepted only once the receipt says so"]
pub struct Receipt(oneshot::Receiver<Result<Appended, Refusal>>);

impl Receipt {
    /// A receipt and the end that answers it.
    pub fn channel() -> (oneshot::Sender<Result<Appended, Refusal>>, Receipt) {
        let (answer, receipt) = oneshot::channel();
        (answer, Receipt(receipt))
    }

    /// The answer if there is one already; for tests that drive the committer by hand.
    pub fn try_now(&mut self) -> Option<Result<Appended, Refusal>> {
        match self.0.try_recv() {
            Ok(answer) => Some(answer),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(Refusal::StorageFailed)),
        }
    }
}

impl Future for Receipt {
    type Output = Result<Appended, Refusal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A committer that is gone without an answer has failed; nothing was promised.
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or(Err(Refusal::StorageFailed)))
    }
}

/// What became of one append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Appended {
    /// Newly appended events.
    pub accepted: u64,
    /// Events that had been accepted before.
    pub duplicates: u64,
    /// Offset of the first newly appended event; meaningful only when `accepted` is not 0.
    pub first_offset: u64,
}

/// Why an append was not taken. Nothing of it was stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The log's budget is used up by events that a sink has not finished.
    #[error("the write-ahead log's budget is used up; waiting for sinks to catch up")]
    WalFull,
    /// Too many requests wait for the disk already.
    #[error("too many requests are waiting to be written")]
    Overloaded,
    /// The disk has no room for another segment.
    #[error("the disk is full")]
    StorageFull,
    /// A write or sync failed; the daemon is about to exit.
    #[error("writing to the log failed; the daemon is stopping")]
    StorageFailed,
    /// The daemon is draining.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// The events of this request do not fit into one segment.
    #[error("the request's events take {bytes} bytes in the log; at most {limit_bytes} fit")]
    TooLarge {
        /// What they would take.
        bytes: u64,
        /// The most a request may take.
        limit_bytes: u64,
    },
}

/// Events handed to one worker. Goes back by itself when dropped unresolved.
#[must_use = "a claim that is dropped goes back to the queue"]
pub struct Claim {
    /// What to deliver.
    pub batch: Batch,
    /// Where the events were.
    pub origin: Origin,
    sink: SinkId,
    /// Attempts made before, in batch order; empty when there were none.
    attempts: Vec<u32>,
    owner: Option<Arc<dyn ClaimOwner>>,
}

/// Where claimed events were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the log, at these offsets, void ones included.
    Log(Range<u64>),
    /// In the failure table; the offsets are those of the batch.
    FailureTable,
}

/// What became of the events of a claim, as the worker decided it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Each event's fate.
    pub fates: Fates,
    /// Where the sink stands now; stored with the checkpoint.
    pub token: Option<Vec<u8>>,
}

/// What became of the events of a claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Fates {
    /// Every one was delivered.
    #[default]
    AllDelivered,
    /// One fate an event, in batch order. An event without one goes back.
    Each(Vec<Fate>),
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is at the target.
    Delivered,
    /// The sink's filter does not match it.
    Skipped,
    /// Given up for good, as the sink's policy says.
    Dropped {
        /// Why.
        reason: String,
    },
    /// Goes into the failure table, or stays there, to be tried again.
    Retry {
        /// Why.
        reason: String,
        /// Attempts made so far.
        attempts: u32,
        /// When to try again.
        due_at: Micros,
    },
    /// Goes into the failure table, or stays there, for inspection and redrive.
    Dead {
        /// Why.
        reason: String,
        /// Attempts made so far.
        attempts: u32,
    },
}

/// The side of a queue that claims come back to.
pub trait ClaimOwner: Send + Sync {
    /// Takes note of what became of claimed events. Returns at once; what must be durable follows.
    fn resolve(&self, sink: SinkId, origin: &Origin, batch: &Batch, resolution: Resolution);
    /// Takes claimed events back unresolved.
    fn give_back(&self, sink: SinkId, origin: &Origin, batch: &Batch);
}

impl Claim {
    /// A claim that goes back to `owner`. `attempts` were made before, one number an event, or none
    /// when all are fresh.
    pub fn new(
        owner: Arc<dyn ClaimOwner>,
        sink: SinkId,
        origin: Origin,
        batch: Batch,
        attempts: Vec<u32>,
    ) -> Self {
        Self { batch, origin, sink, attempts, owner: Some(owner) }
    }

    /// How often delivering the event at this place of the batch was attempted before.
    pub fn attempts(&self, index: usize) -> u32 {
        self.attempts.get(index).copied().unwrap_or(0)
    }

    /// Hands in what became of the events.
    pub fn resolve(mut self, resolution: Resolution) {
        if let Some(owner) = self.owner.take() {
            owner.resolve(self.sink, &self.origin, &self.batch, resolution);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            owner.give_back(self.sink, &self.origin, &self.batch);
        }
    }
}

/// An event by offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// It is still held; with the state at each sink, in configured order.
    Found {
        /// When it was accepted.
        accepted_at: Micros,
        /// Its JSON text.
        json: Vec<u8>,
        /// Its state at each sink.
        sinks: Vec<(String, EventState)>,
    },
    /// Every sink is done with it and the log let it go.
    Released,
    /// No event has this offset: it is void.
    Void,
    /// No event has got this offset yet.
    NotYet,
}

/// Where a sink stands with one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventState {
    /// Not claimed yet.
    Pending,
    /// A worker has it.
    InFlight,
    /// In the failure table, to be tried again.
    Retrying,
    /// In the failure table, given up.
    Dead,
    /// Delivered.
    Delivered,
    /// Dropped by policy.
    Dropped,
    /// Delivered or dropped; which of the two is not known any more.
    Done,
}

impl EventState {
    /// The name used in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            EventState::Pending => "pending",
            EventState::InFlight => "in_flight",
            EventState::Retrying => "retrying",
            EventState::Dead => "dead",
            EventState::Delivered => "delivered",
            EventState::Dropped => "dropped",
            EventState::Done => "done",
        }
    }
}

/// One look at the queue.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The oldest offset the log still holds.
    pub first_offset: u64,
    /// The offset the next event will get; everything below it is durable.
    pub next_offset: u64,
    /// Bytes the log takes on disk.
    pub wal_bytes: u64,
    /// Bytes it may take.
    pub wal_budget_bytes: u64,
    /// Segments in use.
    pub segments: u64,
    /// Offsets from the oldest one on that hold no event, those lost to damage included.
    pub voids: u64,
    /// Damaged ranges found since the data directory was made.
    pub damaged_ranges: u64,
    /// Times since the start that the failure table's index was set aside or missing, and built anew.
    pub index_rebuilds: u64,
    /// Why an append would be refused now, if it would.
    pub refusing: Option<Refusal>,
    /// The failure table.
    pub failures: TableStatus,
    /// Group commits since the start.
    pub commits: Commits,
    /// Each sink, in configured order.
    pub sinks: Vec<SinkStatus>,
}

/// What the failure table takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableStatus {
    /// Its rows, those of sinks that are not configured any more included.
    pub rows: u64,
    /// Bytes that its rows need.
    pub bytes: u64,
    /// Bytes that rows may need.
    pub budget_bytes: u64,
}

/// What group commits were like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Commits {
    /// Requests of a group.
    pub requests: Distribution,
    /// Events of a group that were newly appended.
    pub events: Distribution,
    /// Microseconds that writing and syncing a group took.
    pub micros: Distribution,
    /// Events that had been accepted before.
    pub duplicates: u64,
}

/// One sink's numbers. At every instant: accepted = delivered + dropped + dead + retrying + pending +
/// skipped; so accepted and matching is the same sum without the skipped ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SinkStatus {
    /// Its configured name.
    pub name: String,
    /// Its type.
    pub kind: &'static str,
    /// Whether it takes events.
    pub state: SinkState,
    /// The sink is done with every offset below this one.
    pub acked_offset: u64,
    /// Events neither finished nor parked, those in flight included.
    pub pending: u64,
    /// Events a worker holds now.
    pub in_flight: u64,
    /// Events in the failure table that will be tried again.
    pub retrying: u64,
    /// Events in the failure table that were given up.
    pub dead: u64,
    /// Events delivered.
    pub delivered: u64,
    /// Events dropped by policy.
    pub dropped: u64,
    /// Events that the sink's filter does not match.
    pub skipped: u64,
    /// Nothing is claimed from the log for it, because the failure table has no room for what it might park.
    pub is_held_up: bool,
    /// The last reason for a failure or an unavailability.
    pub last_error: Option<String>,
}

/// Whether a sink takes events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SinkState {
    /// It does.
    #[default]
    Running,
    /// An operator paused it.
    Paused,
    /// Its target is unavailable; it waits and tries again.
    BackingOff,
}

impl SinkState {
    /// The name used in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            SinkState::Running => "running",
            SinkState::Paused => "paused",
            SinkState::BackingOff => "backing_off",
        }
    }
}

/// A queue operation failed.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The storage below has failed for good; the process must end with code 4.
    #[error("storage failed: {0}")]
    StorageFailed(String),
    /// A read failed; it may be tried again.
    #[error("reading offset {offset} failed: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
}

/// How long a refused client should wait before it tries again, at least a second.
pub fn retry_after(refusal: &Refusal) -> Option<Duration> {
    match refusal {
        Refusal::WalFull | Refusal::Overloaded => Some(Duration::from_secs(1)),
        Refusal::StorageFull | Refusal::StorageFailed | Refusal::ShuttingDown => Some(Duration::from_secs(5)),
        Refusal::TooLarge { .. } => None,
    }
}
