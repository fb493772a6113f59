//! The queue on this machine's own disk: an event log, a ledger, a window of claims for each sink, and
//! a dedupe window.
//!
//! ```text
//! append ─► waiting ─► Committer ─► event log ─► claim ─► worker ─► resolve
//!                      │ dedupe                                       │
//!                      ▼                                              ▼
//!                   receipt                            Ledger: checkpoint ─► segments freed
//! ```
//!
//! | part | what it is | thread |
//! | --- | --- | --- |
//! | `window`, `ranges` | one sink's progress as ranges; pure | under the lock of `state` |
//! | `rows` | one sink's failed events, without their texts; pure | under the lock of `state` |
//! | `dropped` | which finished events were dropped; pure | under the lock of `state` |
//! | `claims`, `settle` | handing events out, and what becomes of them | the worker's |
//! | `table` | records of failed events: written, kept, cleaned | the ledger's |
//! | `failures` | looking into the failure table | the caller's |
//! | `index` | what a start and a filter would else read all of the table's log for | a thread of its own |
//! | `lag` | since when events wait | the caller's |
//! | `dedupe` | which tags were accepted lately; pure | the committer's |
//! | `commit` | group commit | a task of the ingest runtime |
//! | `codec`, `ledger` | records of progress, compaction, freeing | a thread |
//! | `ring`, `feed` | the durable side of `dedupe` | the ledger's |
//! | `copy`, `hold` | a copy of all files while the queue works | the caller's |
//! | `open` | recovery of it all | the caller's |
//! | `repair` | the event log written anew without its damage | the caller's |
//!
//! Every part is a plain object with synchronous steps; the daemon only puts threads around them, and
//! tests drive them one by one. When storage fails the queue is latched: appends are refused, claims
//! end with [`QueueError::StorageFailed`], and the process must end with code 4.

mod claims;
mod codec;
mod commit;
mod copy;
mod dedupe;
mod dropped;
mod failures;
mod feed;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod hold;
mod index;
mod lag;
mod ledger;
mod onlooker;
mod open;
mod order;
mod ranges;
mod repair;
mod ring;
mod rows;
mod settle;
mod state;
mod table;
mod window;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::event::{Micros, NewBatch};
use crate::log::{ReadError, frame};
use crate::pulse::Pulse;

use super::{
    Appended, BoxFuture, Claim, ClaimLimit, EventState, FailedEvent, FailurePage, FailureQuery, Lookup,
    Queue, QueueError, Receipt, Redrive, Refusal, Selection, SinkId, SinkInfo, SinkState, SinkStatus, Status,
    TableStatus,
};

pub use commit::{Committed, Committer};
pub use copy::{Copied, CopyError};
pub use ledger::{Clock, Ledger};
pub use onlooker::{FailuresOnDisk, known_durable, resume_token};
pub use open::{OpenError, Opened, ledger_options, open, wal_options};
pub use repair::repair_log;

use dropped::How;
use rows::Rows;
use state::{Append, Shared, SinkProgress, State, TableRoom};

/// The queue. Cheap to share; every call comes from any thread.
#[derive(Debug)]
pub struct EmbeddedQueue {
    shared: Arc<Shared>,
}

impl EmbeddedQueue {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// First step of an orderly stop: new requests are refused and nothing more is claimed. Requests
    /// under way may still append, and batches under way resolve.
    pub fn begin_drain(&self) {
        self.shared.begin_drain();
    }

    /// Second step: appends are refused too. [`Committer::run`] ends once it has answered all.
    pub fn close_appends(&self) {
        self.shared.waiting().closed = true;
        self.shared.append_waits.notify_one();
    }

    /// Third step, after the workers are done: [`Ledger::run`] writes the last checkpoints and ends,
    /// and so does [`Stock::run`](crate::log::Stock::run).
    pub fn stop_background(&self) {
        self.shared.state().stop = true;
        self.shared.wake_ledger();
        self.shared.log.stop_stock();
    }

    /// The pulses of what must go round for anything to be accepted and finished: [`Committer::run`] and
    /// [`Ledger::run`], by the names of their threads.
    pub fn pulses(&self) -> [(&'static str, Arc<Pulse>); 2] {
        let shared = &self.shared;
        [("committer", Arc::clone(&shared.committer_pulse)), ("ledger", Arc::clone(&shared.ledger_pulse))]
    }

    /// Why the storage has failed, if it has.
    pub fn failed(&self) -> Option<String> {
        self.shared.failed()
    }

    /// What is known of an event that the log let go.
    fn released(&self, offset: u64) -> Result<Lookup, QueueError> {
        for sink in (0..).take(self.shared.infos.len()).map(SinkId) {
            if let Some(failed) = failures::one(&self.shared, sink, offset)? {
                return Ok(self.found(offset, failed.accepted_at, failed.json));
            }
        }
        Ok(Lookup::Released)
    }

    fn found(&self, offset: u64, accepted_at: Micros, json: Vec<u8>) -> Lookup {
        let state = self.shared.state();
        let sinks = self.shared.infos.iter().zip(&state.sinks);
        let sinks = sinks.map(|(info, sink)| (info.name.clone(), event_state(sink, offset))).collect();
        Lookup::Found { accepted_at, json, sinks }
    }

    async fn pause(&self, sink: SinkId, paused: bool) -> Result<(), QueueError> {
        let shared = &self.shared;
        let mut written = shared.written.subscribe();
        let wanted = {
            let mut state = shared.state();
            let state = &mut *state;
            state.generation += 1;
            let Some(progress) = state.sinks.get_mut(usize::from(sink.0)) else { return Ok(()) };
            progress.paused = paused;
            progress.paused_by_operator = paused;
            progress.pause_changed = state.generation;
            state.urgent = true;
            state.generation
        };
        shared.wake_ledger();
        shared.claimable.notify_waiters();
        loop {
            if let Some(reason) = shared.failed() {
                return Err(QueueError::StorageFailed(reason));
            }
            if *written.borrow_and_update() >= wanted {
                return Ok(());
            }
            if written.changed().await.is_err() {
                return Err(QueueError::StorageFailed("the ledger is gone".to_owned()));
            }
        }
    }
}

impl Queue for EmbeddedQueue {
    fn admit(&self, body_bytes: u64) -> Result<(), Refusal> {
        let shared = &self.shared;
        // A body is not its frame (it may be packed, or be refused for its own size): never ask for
        // more room than a frame can take, or a request too large for any segment would hear "later".
        let frame_bytes = frame::frame_bytes(1, body_bytes).min(shared.log.max_frame_bytes());
        let waiting = shared.waiting();
        // Storage first: a failed log is closed as well, and that is the reason to give.
        if let Some(refusal) = shared.refusal(frame_bytes, &waiting) {
            return Err(refusal);
        }
        if waiting.closed || shared.is_draining() {
            return Err(Refusal::ShuttingDown);
        }
        Ok(())
    }

    fn append(&self, batch: NewBatch, accepted_at: Micros) -> Result<Receipt, Refusal> {
        let shared = &self.shared;
        let bytes = frame::frame_bytes(batch.len() as u64, batch.text_bytes() as u64);
        let limit_bytes = shared.log.max_frame_bytes();
        if bytes > limit_bytes {
            return Err(Refusal::TooLarge { bytes, limit_bytes });
        }
        let (answer, receipt) = Receipt::channel();
        if batch.is_empty() {
            let _ = answer.send(Ok(Appended::default())); // the receipt is ours, it cannot be gone
            return Ok(receipt);
        }
        let mut waiting = shared.waiting();
        if let Some(refusal) = shared.refusal(bytes, &waiting) {
            return Err(refusal);
        }
        if waiting.closed {
            return Err(Refusal::ShuttingDown);
        }
        let is_first = waiting.appends.is_empty();
        waiting.bytes += bytes;
        waiting.appends.push(Append { batch, accepted_at, answer });
        drop(waiting);
        if is_first {
            shared.append_waits.notify_one();
        }
        Ok(receipt)
    }

    fn claim<'a>(
        &'a self,
        sink: SinkId,
        limit: ClaimLimit,
    ) -> BoxFuture<'a, Result<Option<Claim>, QueueError>> {
        Box::pin(self.claim_when_there(sink, limit))
    }

    fn set_paused<'a>(&'a self, sink: SinkId, paused: bool) -> BoxFuture<'a, Result<(), QueueError>> {
        Box::pin(self.pause(sink, paused))
    }

    fn set_backing_off(&self, sink: SinkId, reason: Option<String>) {
        let mut state = self.shared.state();
        if let Some(progress) = state.sinks.get_mut(usize::from(sink.0)) {
            if reason.is_some() {
                progress.last_error.clone_from(&reason);
            }
            progress.backing_off = reason;
        }
    }

    fn event(&self, offset: u64) -> Result<Lookup, QueueError> {
        let shared = &self.shared;
        if offset >= shared.log.durable_end() {
            return Ok(Lookup::NotYet);
        }
        if offset < shared.log.first_offset() {
            return self.released(offset);
        }
        if shared.state().voids.contains(offset) {
            return Ok(Lookup::Void);
        }
        let chunk = match shared.log.reader(offset).read(1, 1) {
            Ok(chunk) => chunk,
            Err(ReadError::Released { .. }) => return self.released(offset),
            Err(error) => return Err(read_failed(error, offset)),
        };
        shared.note(&mut shared.state(), &chunk);
        let Some(record) = chunk.records.first().filter(|record| record.offset == offset) else {
            return Ok(Lookup::Void);
        };
        let json = chunk.bytes(record).to_vec();
        Ok(self.found(offset, Micros(record.accepted_at_micros), json))
    }

    fn failures(&self, query: &FailureQuery) -> Result<FailurePage, QueueError> {
        failures::page(&self.shared, query)
    }

    fn failure(&self, sink: SinkId, offset: u64) -> Result<Option<FailedEvent>, QueueError> {
        failures::one(&self.shared, sink, offset)
    }

    fn redrive<'a>(
        &'a self,
        sink: SinkId,
        selection: Selection,
        action: Redrive,
    ) -> BoxFuture<'a, Result<u64, QueueError>> {
        Box::pin(failures::redrive(&self.shared, sink, selection, action))
    }

    fn sinks(&self) -> &[SinkInfo] {
        &self.shared.infos
    }

    fn status(&self) -> Status {
        let shared = &self.shared;
        let refusing = self.admit(0).err();
        let usage = shared.log.usage();
        // Before the numbers: what is freed meanwhile is in them all the same.
        let first_offset = shared.log.first_offset();
        let state = shared.state();
        // Loaded under the lock: no claim can be ahead of it.
        let durable_end = shared.log.durable_end();
        Status {
            first_offset,
            next_offset: durable_end,
            wal_bytes: usage.bytes,
            wal_budget_bytes: usage.budget_bytes,
            segments: usage.segments,
            voids: state.voids.overlap(first_offset..durable_end.max(first_offset)),
            damaged_ranges: state.damaged_ranges + state.harmless_damage,
            index_rebuilds: shared.index.rebuilds(),
            refusing,
            failures: table_status(&state, &shared.room),
            commits: shared.commits.look(),
            sinks: sink_status(&shared.infos, &state, durable_end),
        }
    }

    fn pending_since(&self) -> Vec<Option<Micros>> {
        lag::pending_since(&self.shared)
    }
}

fn read_failed(error: ReadError, offset: u64) -> QueueError {
    match error {
        ReadError::Failed(reason) => QueueError::StorageFailed(reason),
        other => QueueError::Read { offset, source: std::io::Error::other(other) },
    }
}

fn event_state(sink: &SinkProgress, offset: u64) -> EventState {
    let window = &sink.window;
    match sink.rows.get(offset) {
        Some(row) if row.is_dead => EventState::Dead,
        Some(_) => EventState::Retrying,
        None if offset < window.acked() || window.finished().contains(offset) => {
            match sink.dropped.how(offset) {
                How::Delivered => EventState::Delivered,
                How::Dropped => EventState::Dropped,
                How::Unknown => EventState::Done,
            }
        }
        None if window.in_flight().contains(offset) && !sink.order.is_held(offset) => EventState::InFlight,
        None => EventState::Pending,
    }
}

fn table_status(state: &State, room: &TableRoom) -> TableStatus {
    let all = || state.sinks.iter().map(|sink| &sink.rows).chain(state.gone_rows.values());
    TableStatus {
        rows: all().map(Rows::len).sum(),
        bytes: all().map(Rows::cost).sum(),
        budget_bytes: room.total,
    }
}

fn sink_status(infos: &[SinkInfo], state: &State, durable_end: u64) -> Vec<SinkStatus> {
    let sinks = infos.iter().zip(&state.sinks);
    sinks
        .map(|(info, sink)| SinkStatus {
            name: info.name.clone(),
            kind: info.kind,
            state: match (sink.paused, &sink.backing_off) {
                (true, _) => SinkState::Paused,
                (false, Some(_)) => SinkState::BackingOff,
                (false, None) => SinkState::Running,
            },
            acked_offset: sink.window.acked(),
            pending: sink.window.pending(durable_end, &state.voids),
            in_flight: sink.window.in_flight_events(&state.voids) - sink.order.held(),
            retrying: sink.rows.retrying(),
            dead: sink.rows.dead(),
            delivered: sink.tally.delivered,
            dropped: sink.tally.dropped,
            skipped: sink.tally.skipped,
            is_held_up: sink.is_crowded,
            last_error: sink.last_error.clone(),
        })
        .collect()
}
