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
//! | `dedupe` | which tags were accepted lately; pure | the committer's |
//! | `commit` | group commit | a task of the ingest runtime |
//! | `codec`, `ledger` | records of progress, compaction, freeing | a thread |
//! | `ring`, `feed` | the durable side of `dedupe` | the ledger's |
//! | `open` | recovery of it all | the caller's |
//!
//! Every part is a plain object with synchronous steps; the daemon only puts threads around them, and
//! tests drive them one by one. When storage fails the queue is latched: appends are refused, claims
//! end with [`QueueError::StorageFailed`], and the process must end with code 4.

mod codec;
mod commit;
mod dedupe;
mod feed;
mod ledger;
mod onlooker;
mod open;
mod ranges;
mod ring;
mod state;
mod window;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use crate::event::{Micros, NewBatch, StoredBatch};
use crate::log::{Chunk, ReadError, Reader, frame};
use crate::sink::{Batch, MAX_TOKEN_BYTES};

use super::{
    Appended, BoxFuture, Claim, ClaimLimit, ClaimOwner, EventState, FailedEvent, FailurePage, FailureQuery,
    Fate, Fates, Lookup, Origin, Queue, QueueError, Receipt, Redrive, Refusal, Resolution, Selection, SinkId,
    SinkInfo, SinkState, SinkStatus, Status,
};

pub use commit::{Committed, Committer};
pub use ledger::{Clock, Ledger};
pub use onlooker::known_durable;
pub use open::{OpenError, Opened, ledger_options, open, wal_options};

use ranges::RangeSet;
use state::{Append, Shared, State};

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

    /// Why the storage has failed, if it has.
    pub fn failed(&self) -> Option<String> {
        self.shared.failed()
    }

    /// Claims what is there now, without waiting. Reading blocks.
    pub fn claim_now(&self, sink: SinkId, limit: ClaimLimit) -> Result<Option<Claim>, QueueError> {
        let shared = &self.shared;
        if let Some(reason) = shared.failed() {
            return Err(QueueError::StorageFailed(reason));
        }
        if shared.is_draining() || !shared.is_ready() {
            return Ok(None);
        }
        let durable_end = shared.log.durable_end();
        let (range, reader) = {
            let mut state = shared.state();
            let Some(progress) = state.sinks.get_mut(usize::from(sink.0)) else { return Ok(None) };
            if progress.paused {
                return Ok(None);
            }
            let Some(range) = progress.window.claim(durable_end, limit.events as u64) else {
                return Ok(None);
            };
            (range, progress.reader.take())
        };
        let mut reader = reader.unwrap_or_else(|| shared.log.reader(range.start));
        let read = read(&mut reader, &range, limit);
        let mut state = shared.state();
        let claimed = match read {
            Ok((batch, end, chunk)) => {
                shared.note(&mut state, &chunk);
                if let Some(progress) = state.sinks.get_mut(usize::from(sink.0)) {
                    // What did not fit into the batch was never handed out.
                    let given_back = end >= range.end || progress.window.give_back(end..range.end);
                    debug_assert!(given_back, "the range was claimed above");
                    progress.reader = Some(reader);
                }
                drop(state);
                let owner: Arc<dyn ClaimOwner> = shared.clone();
                Ok(Some(Claim::new(owner, sink, Origin::Log(range.start..end), batch, Vec::new())))
            }
            Err(error) => {
                if let Some(progress) = state.sinks.get_mut(usize::from(sink.0)) {
                    let given_back = progress.window.give_back(range.clone());
                    debug_assert!(given_back, "the range was claimed above");
                }
                drop(state);
                Err(read_failed(error, range.start))
            }
        };
        // Another worker of this sink may have found nothing because of the part that went back.
        shared.claimable.notify_waiters();
        claimed
    }

    async fn claim_when_there(&self, sink: SinkId, limit: ClaimLimit) -> Result<Option<Claim>, QueueError> {
        let shared = &self.shared;
        loop {
            let changed = shared.claimable.notified();
            tokio::pin!(changed);
            // Enlisted before the look, so that nothing between look and wait is missed.
            changed.as_mut().enable();
            if let Some(claim) = self.claim_now(sink, limit)? {
                return Ok(Some(claim));
            }
            if shared.is_draining() {
                return Ok(None);
            }
            let next = {
                let state = shared.state();
                let Some(progress) = state.sinks.get(usize::from(sink.0)) else { return Ok(None) };
                let waits_for_events = !progress.paused && shared.is_ready();
                (waits_for_events && !progress.window.is_full()).then(|| progress.window.next())
            };
            match next {
                // New events may be there already; then this ends at once.
                Some(next) => tokio::select! {
                    () = &mut changed => {}
                    () = shared.log.wait_beyond(next) => {}
                },
                None => changed.await,
            }
        }
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
        let (waiting_bytes, closed) = {
            let waiting = shared.waiting();
            (waiting.bytes, waiting.closed)
        };
        // A body is not its frame (it may be packed, or be refused for its own size): never ask for
        // more room than a frame can take, or a request too large for any segment would hear "later".
        let frame_bytes = frame::frame_bytes(1, body_bytes).min(shared.log.max_frame_bytes());
        // Storage first: a failed log is closed as well, and that is the reason to give.
        if let Some(refusal) = shared.refusal(frame_bytes, waiting_bytes) {
            return Err(refusal);
        }
        if closed || shared.is_draining() {
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
        if let Some(refusal) = shared.refusal(bytes, waiting.bytes) {
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
            return Ok(Lookup::Released);
        }
        if shared.state().voids.contains(offset) {
            return Ok(Lookup::Void);
        }
        let chunk = match shared.log.reader(offset).read(1, 1) {
            Ok(chunk) => chunk,
            Err(ReadError::Released { .. }) => return Ok(Lookup::Released),
            Err(error) => return Err(read_failed(error, offset)),
        };
        let mut state = shared.state();
        shared.note(&mut state, &chunk);
        let Some(record) = chunk.records.first().filter(|record| record.offset == offset) else {
            return Ok(Lookup::Void);
        };
        let at_sinks = shared.infos.iter().zip(&state.sinks);
        Ok(Lookup::Found {
            accepted_at: Micros(record.accepted_at_micros),
            json: chunk.bytes(record).to_vec(),
            sinks: at_sinks
                .map(|(info, sink)| (info.name.clone(), event_state(&sink.window, offset)))
                .collect(),
        })
    }

    fn failures(&self, _: &FailureQuery) -> Result<FailurePage, QueueError> {
        Ok(FailurePage::default())
    }

    fn failure(&self, _: SinkId, _: u64) -> Result<Option<FailedEvent>, QueueError> {
        Ok(None)
    }

    fn redrive<'a>(&'a self, _: SinkId, _: Selection, _: Redrive) -> BoxFuture<'a, Result<u64, QueueError>> {
        Box::pin(std::future::ready(Ok(0)))
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
            refusing,
            sinks: sink_status(&shared.infos, &state, durable_end),
        }
    }
}

impl ClaimOwner for Shared {
    fn resolve(&self, sink: SinkId, origin: &Origin, batch: &Batch, resolution: Resolution) {
        let Origin::Log(range) = origin else { return };
        let mut state = self.state();
        let Some(progress) = state.sinks.get_mut(usize::from(sink.0)) else { return };
        if resolution.token.as_ref().is_some_and(|token| token.len() > MAX_TOKEN_BYTES) {
            tracing::error!(sink = sink.0, "the sink's resume token is too long; its events go back");
            let given_back = progress.window.give_back(range.clone());
            debug_assert!(given_back, "a claim is settled once");
            return;
        }
        let sorted = sort(batch, &resolution.fates);
        // Until the failure table takes them, events that failed go back and are delivered again.
        // It will take them here: a row made durable first, then the offset counts as finished.
        for (offset, reason) in &sorted.unfinished {
            let given_back = progress.window.give_back(*offset..offset + 1);
            debug_assert!(given_back, "a claim is settled once");
            progress.last_error = Some((*reason).to_owned());
        }
        let mut start = range.start;
        for end in sorted.unfinished.iter().map(|(offset, _)| *offset).chain([range.end]) {
            let finished = start >= end || progress.window.finish(start..end);
            debug_assert!(finished, "a claim is settled once");
            start = end + 1;
        }
        progress.delivered += sorted.delivered;
        progress.dropped += sorted.dropped;
        progress.skipped += sorted.skipped;
        progress.backing_off = None;
        if resolution.token.is_some() {
            progress.token = resolution.token;
        }
        self.changed(&mut state, usize::from(sink.0));
        drop(state);
        self.claimable.notify_waiters();
    }

    fn give_back(&self, sink: SinkId, origin: &Origin, _: &Batch) {
        let Origin::Log(range) = origin else { return };
        let mut state = self.state();
        if let Some(progress) = state.sinks.get_mut(usize::from(sink.0)) {
            let given_back = progress.window.give_back(range.clone());
            debug_assert!(given_back, "a claim is settled once");
        }
        drop(state);
        self.claimable.notify_waiters();
    }
}

/// The events of a claim by their fates.
#[derive(Default)]
struct Sorted<'a> {
    delivered: u64,
    dropped: u64,
    skipped: u64,
    /// Offsets that are not done with, and why.
    unfinished: Vec<(u64, &'a str)>,
}

/// Sorts the events of a claim. An answer that is too short leaves its rest unfinished.
fn sort<'a>(batch: &Batch, fates: &'a Fates) -> Sorted<'a> {
    let Fates::Each(fates) = fates else {
        return Sorted { delivered: batch.events.len() as u64, ..Sorted::default() };
    };
    let missing = "the sink did not say what became of this event";
    let mut sorted = Sorted::default();
    for (event, fate) in batch.events.iter().zip(fates.iter().map(Some).chain(std::iter::repeat(None))) {
        match fate {
            Some(Fate::Delivered) => sorted.delivered += 1,
            Some(Fate::Dropped { .. }) => sorted.dropped += 1,
            Some(Fate::Skipped) => sorted.skipped += 1,
            Some(Fate::Retry { reason, .. } | Fate::Dead { reason, .. }) => {
                sorted.unfinished.push((event.offset, reason));
            }
            None => sorted.unfinished.push((event.offset, missing)),
        }
    }
    sorted
}

/// Reads the events of a claimed range, as many as the limit allows: the batch, and where it ends.
fn read(
    reader: &mut Reader,
    range: &Range<u64>,
    limit: ClaimLimit,
) -> Result<(Batch, u64, Chunk), ReadError> {
    if reader.position() != range.start {
        reader.seek(range.start);
    }
    let events = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let chunk = reader.read(events, limit.bytes)?;
    // Void offsets may carry a chunk beyond the claim; what is there belongs to the next one.
    let end = chunk.range.end.min(range.end);
    let mut batch = Batch { events: StoredBatch::over(chunk.buffer.clone()), voids: Vec::new() };
    for record in chunk.records.iter().filter(|record| range.contains(&record.offset)) {
        let start = record.start as usize;
        batch.events.push(
            record.offset,
            Micros(record.accepted_at_micros),
            start..start + record.len as usize,
        );
    }
    let lost = chunk.damage.iter().map(|damage| damage.lost.clone());
    let voids: RangeSet = chunk.voids.iter().cloned().chain(lost).collect();
    batch.voids = voids.within(range.start..end).collect();
    if end <= range.start {
        // Below the durable end there is always something; nothing would make this claim spin.
        let source = std::io::Error::other("the log returned nothing below its durable end");
        return Err(ReadError::Io { path: std::path::PathBuf::new(), position: 0, source });
    }
    Ok((batch, end, chunk))
}

fn read_failed(error: ReadError, offset: u64) -> QueueError {
    match error {
        ReadError::Failed(reason) => QueueError::StorageFailed(reason),
        other => QueueError::Read { offset, source: std::io::Error::other(other) },
    }
}

fn event_state(window: &window::Window, offset: u64) -> EventState {
    if offset < window.acked() || window.finished().contains(offset) {
        EventState::Delivered
    } else if window.in_flight().contains(offset) {
        EventState::InFlight
    } else {
        EventState::Pending
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
            in_flight: sink.window.in_flight_events(&state.voids),
            retrying: 0,
            dead: 0,
            delivered: sink.delivered,
            dropped: sink.dropped,
            skipped: sink.skipped,
            last_error: sink.last_error.clone(),
        })
        .collect()
}
