//! Group commit: everything that waits goes into the log with one write and one sync, then everyone
//! is answered.
//!
//! [`Committer::run`] is a task on the ingest runtime: it wakes when something waits, yields once, so
//! that it runs behind every request that is ready to be read, and commits inline. A large group, and
//! any on a disk that turns out to be slow, it commits on another thread instead: then the way there
//! costs nothing that counts, and the next requests are read meanwhile. The steps are plain functions, so that tests drive them by hand. When a write or sync fails, everyone who waits is
//! told so, the queue is latched, and the task ends with the error; the process must end (contract,
//! promise 8). When the task is dropped, receipts resolve to the same answer.
//!
//! Nobody is told "duplicate" before the first copy is durable: it is in the log already, or in this
//! very group, which is answered after its sync.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::log::frame::Record;
use crate::log::{AppendError, LogError, Writer};
use crate::meter::{Counter, Histogram};
use crate::planted::{self, Mistake};
use crate::queue::{Appended, Commits, Refusal};
use crate::waits::{Instant, spawn_blocking, timeout};

use super::dedupe::{self, Dedupe};
use super::state::{Append, Shared, refusal_of};

/// After a commit that took this long the next one runs on another thread. Far more than the way there
/// takes, and far less than anybody who asks for the daemon's health would wait.
const SLOW: Duration = Duration::from_millis(20);

/// A group of this many bytes is committed on another thread: it takes long enough for the next
/// requests to be received meanwhile.
const LARGE_BYTES: u64 = 512 << 10;

/// The single owner of the event log's writer and of the dedupe window.
#[derive(Debug)]
pub struct Committer {
    shared: Arc<Shared>,
    writer: Writer,
    dedupe: Dedupe,
    idle_marker: Duration,
    /// The group being written; kept for its memory, like the two below.
    group: Vec<Append>,
    /// Positions of one batch's events that are no duplicates.
    fresh: Vec<u32>,
    answers: Vec<Answer>,
    _farewell: Farewell,
}

type Answer = (oneshot::Sender<Result<Appended, Refusal>>, Result<Appended, Refusal>);

/// What the committer does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Commit,
    MarkIdle,
}

/// What commits were like, counted once a group.
#[derive(Debug)]
pub struct CommitMeter {
    requests: Histogram,
    events: Histogram,
    micros: Histogram,
    duplicates: Counter,
}

/// Requests or events of a group.
const SIZES: [u64; 14] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16_384, 65_536];
/// Microseconds, from a cache that lies to a disk that fails.
const MICROS: [u64; 15] = [
    100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000,
];

impl Default for CommitMeter {
    fn default() -> Self {
        Self {
            requests: Histogram::new(&SIZES),
            events: Histogram::new(&SIZES),
            micros: Histogram::new(&MICROS),
            duplicates: Counter::default(),
        }
    }
}

impl CommitMeter {
    /// One look.
    pub fn look(&self) -> Commits {
        Commits {
            requests: self.requests.look(),
            events: self.events.look(),
            micros: self.micros.look(),
            duplicates: self.duplicates.get(),
        }
    }

    fn note(&self, committed: Committed, took: Duration) {
        self.requests.observe(committed.answered as u64);
        self.events.observe(committed.events);
        self.micros.observe(took.as_micros() as u64);
        if committed.duplicates > 0 {
            self.duplicates.add(committed.duplicates);
        }
    }
}

/// What one commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Committed {
    /// Appends answered, refused ones included.
    pub answered: usize,
    /// Events appended.
    pub events: u64,
    /// Events that had been accepted before.
    pub duplicates: u64,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, writer: Writer, dedupe: Dedupe, idle_marker: Duration) -> Self {
        Self {
            _farewell: Farewell(Arc::clone(&shared)),
            shared,
            writer,
            dedupe,
            idle_marker,
            group: Vec::new(),
            fresh: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Commits groups until the queue takes no more appends, then leaves the mark of a clean stop.
    pub async fn run(mut self) -> Result<(), LogError> {
        let shared = Arc::clone(&self.shared);
        let mut marked = true;
        let mut is_slow = false;
        loop {
            shared.committer_pulse.beat();
            let (waits, closed) = {
                let waiting = shared.waiting();
                (!waiting.appends.is_empty(), waiting.closed)
            };
            let mut is_large = false;
            let step = if waits {
                // Behind everything that is ready now: its appends belong to this group.
                tokio::task::yield_now().await;
                is_large = shared.waiting().bytes >= LARGE_BYTES;
                Step::Commit
            } else if closed || shared.failed().is_some() {
                return self.close();
            } else if marked {
                shared.committer_pulse.while_waiting(shared.append_waits.notified()).await;
                continue;
            } else {
                let idle = timeout(self.idle_marker, shared.append_waits.notified());
                match shared.committer_pulse.while_waiting(idle).await {
                    Ok(()) => continue,
                    Err(_) => Step::MarkIdle,
                }
            };
            let began = Instant::now();
            self = if is_slow || is_large { self.step_aside(step).await? } else { self.step(step)? };
            is_slow = began.elapsed() >= SLOW;
            marked = step == Step::MarkIdle;
        }
    }

    fn step(mut self, step: Step) -> Result<Self, LogError> {
        match step {
            Step::Commit => self.commit_pending().map(drop)?,
            Step::MarkIdle => self.mark_idle()?,
        }
        Ok(self)
    }

    /// The step on another thread; a panic there goes on here. When it takes too long, nobody waits
    /// behind it.
    async fn step_aside(self, step: Step) -> Result<Self, LogError> {
        let shared = Arc::clone(&self.shared);
        let mut stepping = spawn_blocking(move || self.step(step));
        let ended = match timeout(shared.max_wait, &mut stepping).await {
            Ok(ended) => ended,
            Err(_) => {
                tracing::warn!("a write to the log takes long; requests are refused until it is done");
                shared.stall();
                let ended = stepping.await;
                shared.waiting().stalled = false;
                tracing::info!("the write to the log is done; requests are taken again");
                ended
            }
        };
        match ended {
            Ok(stepped) => stepped,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(cancelled) => Err(LogError::Failed(cancelled.to_string())),
            },
        }
    }

    /// Writes and syncs everything that waits as one group, then answers it.
    pub fn commit_pending(&mut self) -> Result<Committed, LogError> {
        {
            let mut waiting = self.shared.waiting();
            std::mem::swap(&mut waiting.appends, &mut self.group);
            waiting.bytes = 0;
        }
        let mut committed = Committed::default();
        let mut group = std::mem::take(&mut self.group);
        for append in group.drain(..) {
            let appended = self.append(&append);
            if let Err(AppendError::Failed(error)) = appended {
                self.answers.push((append.answer, Err(Refusal::StorageFailed)));
                // Whoever is left of the group is dropped unanswered, which says the same.
                return Err(self.fail(error));
            }
            committed.answered += 1;
            if let Ok(Appended { accepted, duplicates, .. }) = &appended {
                committed.events += accepted;
                committed.duplicates += duplicates;
            }
            self.answers.push((append.answer, appended.map_err(refusal)));
        }
        self.group = group;
        let began = Instant::now();
        if let Err(error) = self.writer.commit()
            && !planted::made(Mistake::AckOnError)
        {
            return Err(self.fail(error));
        }
        if committed.answered > 0 {
            self.shared.commits.note(committed, began.elapsed());
        }
        for (answer, outcome) in self.answers.drain(..) {
            // A client that is gone does not want to know.
            let _ = answer.send(outcome);
        }
        Ok(committed)
    }

    /// Puts what is new in one batch into the group; nothing of it when there is no room.
    fn append(&mut self, append: &Append) -> Result<Appended, AppendError> {
        let batch = &append.batch;
        let first_offset = self.dedupe.next();
        self.fresh.clear();
        self.dedupe.begin();
        for index in 0..batch.len() {
            if index % dedupe::AHEAD == 0 {
                let ahead = index..batch.len().min(index + dedupe::AHEAD);
                self.dedupe.touch(ahead.map(|index| batch.get(index).tag));
            }
            if self.dedupe.offer(batch.get(index).tag) {
                self.fresh.push(index as u32);
            }
        }
        let appended = Appended {
            accepted: self.fresh.len() as u64,
            duplicates: (batch.len() - self.fresh.len()) as u64,
            first_offset,
        };
        if self.fresh.is_empty() {
            return Ok(appended);
        }
        let records = self.fresh.iter().map(|index| {
            let event = batch.get(*index as usize);
            Record { tag: event.tag, crc: event.crc, bytes: event.text }
        });
        match self.writer.append(append.accepted_at.0, records) {
            Ok(base) => {
                debug_assert_eq!(base, first_offset, "log and dedupe window count alike");
                Ok(Appended { first_offset: base, ..appended })
            }
            Err(error) => {
                self.dedupe.undo();
                Err(error)
            }
        }
    }

    /// Records in the log that everything is durable.
    pub fn mark_idle(&mut self) -> Result<(), LogError> {
        self.writer.mark_idle().map_err(|error| self.fail(error))
    }

    /// Leaves the mark of a clean stop; unless the log has failed, everything is durable by now.
    pub fn close(self) -> Result<(), LogError> {
        if let Some(reason) = self.shared.failed() {
            return Err(LogError::Failed(reason));
        }
        let shared = self.shared;
        self.writer.close().inspect_err(|error| shared.fail(error.to_string()))
    }

    /// Latches the queue and answers everyone who waits.
    fn fail(&mut self, error: LogError) -> LogError {
        self.shared.fail(error.to_string());
        for (answer, _) in self.answers.drain(..) {
            let _ = answer.send(Err(Refusal::StorageFailed));
        }
        let mut waiting = self.shared.waiting();
        waiting.closed = true;
        for append in waiting.appends.drain(..) {
            let _ = append.answer.send(Err(Refusal::StorageFailed));
        }
        error
    }
}

/// A committer that is gone answers nobody: whoever still waits must not wait for ever.
#[derive(Debug)]
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.closed = true;
        waiting.appends.clear();
    }
}

fn refusal(error: AppendError) -> Refusal {
    match error {
        AppendError::NoRoom(no_room) => refusal_of(no_room),
        AppendError::TooLarge { bytes, limit_bytes } => Refusal::TooLarge { bytes, limit_bytes },
        AppendError::Failed(_) => Refusal::StorageFailed,
    }
}
