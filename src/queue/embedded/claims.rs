//! Handing events out, and taking note of what became of them.
//!
//! Due rows of the failure table come first, then the log. A claim reserves the room in the failure
//! table that its events would take if all of them had to be parked; without room for one event a sink
//! that parks claims nothing from the log. Runs on the worker's thread, which a read may block; `resolve`
//! never waits for the disk.

use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::event::{Micros, StoredBatch, StoredEvent};
use crate::log::{Chunk, ReadError, Reader};
use crate::queue::{Claim, ClaimLimit, ClaimOwner, Origin, QueueError, Resolution, SinkId};
use crate::sink::{Batch, MAX_TOKEN_BYTES};
use crate::waits::sleep;

use super::failures::{self, Found};
use super::order::Turn;
use super::ranges::RangeSet;
use super::rows::record_cost;
use super::settle::{self, Claimed, Entry, ROW_OVERHEAD_BYTES, Settling, Sorted, Standing};
use super::state::{Shared, SinkProgress, State};
use super::{EmbeddedQueue, read_failed};

/// Longest sleep until a row is due: a clock that was set is noticed within it.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// Records that wait for the failure table; above it nothing is claimed that might bring more.
const MAX_SETTLING_BYTES: u64 = 8 << 20;
/// How an event stands that waits behind another of its key: due as soon as it is the first.
const FOLLOWER: Standing = Standing { is_dead: false, attempts: 0, due_at: 0 };
const WAITS_FOR_ITS_KEY: &str =
    "it waits for an earlier event of its key (`order_by`), which is being retried";

impl EmbeddedQueue {
    /// Claims what is there now, without waiting. Reading blocks.
    pub fn claim_now(&self, sink: SinkId, limit: ClaimLimit) -> Result<Option<Claim>, QueueError> {
        let shared = &self.shared;
        if let Some(reason) = shared.failed() {
            return Err(QueueError::StorageFailed(reason));
        }
        if shared.is_draining() || !shared.is_ready() {
            return Ok(None);
        }
        match shared.claim_due(sink, limit)? {
            Some(claim) => Ok(Some(claim)),
            None => shared.claim_from_log(sink, limit),
        }
    }

    pub(super) async fn claim_when_there(
        &self,
        sink: SinkId,
        limit: ClaimLimit,
    ) -> Result<Option<Claim>, QueueError> {
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
            let Some(wait) = shared.what_to_wait_for(sink) else { return Ok(None) };
            tokio::select! {
                () = &mut changed => {}
                // New events may be there already; then this ends at once.
                () = async { shared.log.wait_beyond(wait.beyond.unwrap_or(0)).await }, if wait.beyond.is_some() => {}
                () = async { sleep(wait.due_in.unwrap_or(MAX_SLEEP)).await }, if wait.due_in.is_some() => {}
            }
        }
    }
}

/// What a sink without anything to claim waits for, beside changes.
struct Wait {
    /// An event at or above this offset.
    beyond: Option<u64>,
    /// The next row is due.
    due_in: Option<Duration>,
}

impl Shared {
    fn what_to_wait_for(&self, sink: SinkId) -> Option<Wait> {
        let now = (self.clock)().0;
        let state = self.state();
        let index = usize::from(sink.0);
        let progress = state.sinks.get(index)?;
        if progress.paused || !self.is_ready() {
            return Some(Wait { beyond: None, due_in: None });
        }
        let is_held_up = progress.window.is_full() || progress.is_crowded || progress.order.is_stuck();
        let due_at = progress.rows.next_due().filter(|_| self.infos[index].parks);
        let due_in = |at: i64| Duration::from_micros(at.saturating_sub(now).max(0) as u64).min(MAX_SLEEP);
        Some(Wait { beyond: (!is_held_up).then(|| progress.window.next()), due_in: due_at.map(due_in) })
    }

    /// Claims rows of the failure table that are due.
    fn claim_due(self: &Arc<Self>, sink: SinkId, limit: ClaimLimit) -> Result<Option<Claim>, QueueError> {
        let index = usize::from(sink.0);
        if !self.infos.get(index).is_some_and(|info| info.parks) {
            return Ok(None);
        }
        let now = (self.clock)().0;
        let due = {
            let mut state = self.state();
            let Some(progress) = state.sinks.get_mut(index) else { return Ok(None) };
            if progress.paused {
                return Ok(None);
            }
            progress.rows.take_due(now, limit.events, limit.bytes)
        };
        if due.is_empty() {
            return Ok(None);
        }
        let offsets: Vec<u64> = due.iter().map(|(offset, _)| *offset).collect();
        let found = match failures::read_held(self, index, &offsets) {
            Ok(found) => found,
            Err(error) => {
                self.give_back_rows(sink, &offsets);
                return Err(error);
            }
        };
        let mut buffer = Vec::new();
        let mut spans = Vec::with_capacity(found.len());
        let mut attempts = Vec::with_capacity(found.len());
        for Found { offset, row, head, text } in found {
            let start = buffer.len();
            buffer.extend_from_slice(&text);
            spans.push((offset, Micros(head.accepted_at), start..buffer.len()));
            attempts.push(row.attempts);
        }
        if spans.is_empty() {
            return Ok(None);
        }
        let mut events = StoredBatch::over(Bytes::from(buffer));
        spans.into_iter().for_each(|(offset, accepted_at, range)| events.push(offset, accepted_at, range));
        let batch = Batch { events, voids: Vec::new() };
        let owner: Arc<dyn ClaimOwner> = self.clone();
        Ok(Some(Claim::new(owner, sink, Origin::FailureTable, batch, attempts)))
    }

    fn claim_from_log(
        self: &Arc<Self>,
        sink: SinkId,
        limit: ClaimLimit,
    ) -> Result<Option<Claim>, QueueError> {
        let index = usize::from(sink.0);
        // Where there is an order, whoever claims first also sorts first; see `order`.
        let order = self.infos.get(index).and_then(|info| info.order.as_ref());
        let _turn = order.map(|_| self.turns[index].lock().unwrap_or_else(PoisonError::into_inner));
        let durable_end = self.log.durable_end();
        let (range, limit, reserved, reader) = {
            let mut state = self.state();
            if let Some(SinkProgress { order, window, .. }) = state.sinks.get_mut(index) {
                order.begin_turn(window);
            }
            let Some((limit, reserved)) = self.reserve(&mut state, index, limit) else { return Ok(None) };
            let Some(progress) = state.sinks.get_mut(index) else { return Ok(None) };
            let range = match progress.paused {
                true => None,
                false => progress.window.claim(durable_end, limit.events as u64),
            };
            let Some(range) = range else { return Ok(None) };
            progress.reserved += reserved;
            (range, limit, reserved, progress.reader.take())
        };
        let mut reader = reader.unwrap_or_else(|| self.log.reader(range.start));
        let read = read(&mut reader, &range, limit);
        let keys = match (&read, order) {
            (Ok((batch, ..)), Some(of)) => batch.events.iter().map(|event| of.key(event.json)).collect(),
            _ => Vec::new(),
        };
        let mut state = self.state();
        let Some(progress) = state.sinks.get_mut(index) else { return Ok(None) };
        progress.reserved = progress.reserved.saturating_sub(reserved);
        let mut is_stuck = false;
        let claimed = match read {
            Ok((batch, end, chunk)) => {
                let (batch, end) = match order {
                    Some(_) => self.sort(&mut state, index, batch, &keys, range.start..end),
                    None => (batch, end),
                };
                let Some(progress) = state.sinks.get_mut(index) else { return Ok(None) };
                is_stuck = end == range.start;
                // What did not fit into the batch was never handed out.
                let given_back = end >= range.end || progress.window.give_back(end..range.end);
                debug_assert!(given_back, "the range was claimed above");
                progress.reserved += self.cost_of(index, &batch);
                progress.reader = Some(reader);
                self.note(&mut state, &chunk);
                let owner: Arc<dyn ClaimOwner> = self.clone();
                // With an order, all of them may have to wait.
                let is_empty = order.is_some() && batch.events.is_empty() && batch.voids.is_empty();
                let claim = || Claim::new(owner, sink, Origin::Log(range.start..end), batch, Vec::new());
                Ok((!is_empty).then(claim))
            }
            Err(error) => {
                let given_back = progress.window.give_back(range.clone());
                debug_assert!(given_back, "the range was claimed above");
                Err(read_failed(error, range.start))
            }
        };
        drop(state);
        // Another worker of this sink may have found nothing because of the part that went back. Where all of it
        // did, nobody finds anything until something is settled, and whoever was woken would wake itself for ever.
        if !is_stuck {
            self.claimable.notify_waiters();
        }
        claimed
    }

    /// Sorts the events of a claimed range by whose turn it is. Returns what is handed out, and where it
    /// ends; what is held stays claimed, and what is behind a row gets one.
    fn sort(
        &self,
        state: &mut State,
        sink: usize,
        batch: Batch,
        keys: &[Option<u64>],
        range: Range<u64>,
    ) -> (Batch, u64) {
        let now = (self.clock)();
        let Some(SinkProgress { order, rows, .. }) = state.sinks.get_mut(sink) else {
            return (batch, range.end);
        };
        let (mut going, mut entries) = (Vec::new(), Vec::new());
        let (mut parked, mut end) = (RangeSet::default(), range.end);
        for (at, (event, key)) in batch.events.iter().zip(keys).enumerate() {
            let Some(key) = *key else {
                going.push(at);
                continue;
            };
            let mut turn = order.turn(event.offset, key, rows);
            if turn == Turn::Park {
                match self.park(sink, &event, FOLLOWER, WAITS_FOR_ITS_KEY, now, Some(key)) {
                    Some(entry) => {
                        order.park(key);
                        entries.push(entry);
                        parked.insert(event.offset..event.offset + 1);
                    }
                    None if order.hold(event.offset, key) => {}
                    None => turn = Turn::Stop,
                }
            }
            match turn {
                Turn::Go => going.push(at),
                Turn::Hold | Turn::Park => {}
                Turn::Stop => {
                    end = event.offset;
                    break;
                }
            }
        }
        if end == range.start {
            order.stick();
        }
        let voids: RangeSet = batch.voids.iter().cloned().collect();
        let voids = voids.within(range.start..end).collect();
        if !entries.is_empty() {
            let claimed = Claimed { owned: parked, ..Claimed::default() };
            self.push_settling(state, Settling { sink, claimed: Some(claimed), entries, keys: Vec::new() });
        }
        (Batch { events: batch.events.part(going), voids }, end)
    }

    /// The record that parks an event; `None` where the table can hold no such row.
    fn park(
        &self,
        sink: usize,
        event: &StoredEvent<'_>,
        standing: Standing,
        reason: &str,
        now: Micros,
        key: Option<u64>,
    ) -> Option<Entry> {
        let info = &self.infos[sink];
        let entry = settle::park(&info.name, event, standing, reason, now, key).ok()?;
        let fits = record_cost(entry.record.len() as u64) <= self.failures.max_frame_bytes();
        (info.parks && fits).then_some(entry)
    }

    /// The offsets a claim from the log answers for: all of them, but where others of its range wait
    /// for their turn.
    fn owned(&self, sink: usize, range: &Range<u64>, batch: &Batch) -> RangeSet {
        if self.infos.get(sink).is_none_or(|info| info.order.is_none()) {
            return std::iter::once(range.clone()).collect();
        }
        let events = batch.events.iter().map(|event| event.offset..event.offset + 1);
        events.chain(batch.voids.iter().cloned()).collect()
    }

    /// The keys of a claim's events.
    fn keys_of(&self, sink: usize, batch: &Batch) -> Vec<u64> {
        let Some(of) = self.infos.get(sink).and_then(|info| info.order.as_ref()) else { return Vec::new() };
        batch.events.iter().filter_map(|event| of.key(event.json)).collect()
    }

    /// The limit of a claim whose events could all be parked, and the room they may take; `None`
    /// when not even one event fits.
    fn reserve(&self, state: &mut State, sink: usize, limit: ClaimLimit) -> Option<(ClaimLimit, u64)> {
        if !self.infos.get(sink)?.parks {
            return Some((limit, 0));
        }
        let is_backed_up = state.settling_bytes > MAX_SETTLING_BYTES;
        let room = state.room_for_rows(sink, &self.room);
        let progress = state.sinks.get_mut(sink)?;
        let is_crowded = room < self.room.row;
        if is_crowded && progress.window.in_flight().len() == 0 && progress.rows.has_only_early() {
            // They wait for the log, and the log for the room they take. Only a ledger that was lost brings this
            // about; better out of order than never.
            progress.rows.passed(u64::MAX);
        }
        if is_crowded && !progress.is_crowded {
            let reason = "the failure table is full; nothing more is taken from the log until rows go";
            tracing::warn!(sink = self.infos[sink].name, reason, "sink held up");
            progress.last_error = Some(reason.to_owned());
        }
        if std::mem::replace(&mut progress.is_crowded, is_crowded) && !is_crowded {
            tracing::info!(sink = self.infos[sink].name, "the failure table has room again");
        }
        if is_crowded || is_backed_up {
            return None;
        }
        let each = record_cost(ROW_OVERHEAD_BYTES);
        let events = limit.events.min(usize::try_from(room / 2 / each).unwrap_or(usize::MAX));
        let bytes = limit.bytes.min(usize::try_from(room / 2).unwrap_or(usize::MAX));
        // One event is always handed out, however long.
        let longest = if room / 2 < self.room.row { self.room.row } else { bytes as u64 + self.room.row };
        let (events, bytes) = if room / 2 < self.room.row { (1, 0) } else { (events.max(1), bytes) };
        Some((ClaimLimit { events, bytes }, (longest + events as u64 * each).min(room)))
    }

    /// The room that a claim's events would take in the failure table.
    fn cost_of(&self, sink: usize, batch: &Batch) -> u64 {
        if !self.infos.get(sink).is_some_and(|info| info.parks) {
            return 0;
        }
        batch.events.iter().map(|event| record_cost(event.json.len() as u64 + ROW_OVERHEAD_BYTES)).sum()
    }

    fn give_back_rows(&self, sink: SinkId, offsets: &[u64]) {
        let mut state = self.state();
        if let Some(progress) = state.sinks.get_mut(usize::from(sink.0)) {
            offsets.iter().for_each(|offset| progress.rows.give_back(*offset));
        }
        drop(state);
        self.claimable.notify_waiters();
    }

    /// A claim from the log ends: at once when nothing is parked, else once the rows are durable.
    fn resolve_log(
        &self,
        state: &mut State,
        sink: usize,
        owned: RangeSet,
        sorted: Sorted<'_>,
        token: Option<Vec<u8>>,
        keys: Vec<u64>,
    ) {
        let now = (self.clock)();
        let (tally, dropped) = (sorted.tally(), sorted.dropped());
        let mut claimed = Claimed { owned, tally, dropped, returned: sorted.returned, token };
        let mut entries = Vec::new();
        let order = self.infos[sink].order.as_ref();
        let Some(progress) = state.sinks.get_mut(sink) else { return };
        for (event, standing, reason) in &sorted.rows {
            let key = order.and_then(|of| of.key(event.json));
            match self.park(sink, event, *standing, reason, now, key) {
                Some(entry) => {
                    key.into_iter().for_each(|key| progress.order.park(key));
                    entries.push(entry);
                }
                None => claimed.returned.push(event.offset),
            }
        }
        claimed.returned.sort_unstable();
        if entries.is_empty() {
            claimed.apply(progress);
            progress.order.settle(keys);
            self.changed(state, sink);
        } else {
            self.push_settling(state, Settling { sink, claimed: Some(claimed), entries, keys });
        }
    }

    /// What became of rows; they stay held until that is durable.
    fn resolve_rows(&self, state: &mut State, sink: usize, sorted: Sorted<'_>) {
        let name = &self.infos[sink].name;
        let now = (self.clock)();
        let ended = sorted.ends.iter().map(|(event, end)| (event, settle::end(name, event.offset, *end)));
        let changed = sorted.rows.iter().map(|(event, standing, reason)| {
            (event, settle::change(name, event.offset, *standing, Some((now, reason))))
        });
        let mut returned = sorted.returned.clone();
        let mut entries: Vec<Entry> = Vec::new();
        for (event, entry) in ended.chain(changed) {
            let event: &StoredEvent<'_> = event;
            match entry {
                Ok(entry) => entries.push(entry),
                Err(_) => returned.push(event.offset), // a name too long to be written; configuration forbids it
            }
        }
        if let Some(progress) = state.sinks.get_mut(sink) {
            returned.iter().for_each(|offset| progress.rows.give_back(*offset));
        }
        // In parts, so that none needs more room than cleaning can make at once.
        let most = (self.failures.max_frame_bytes() / 2 / record_cost(ROW_OVERHEAD_BYTES)).max(1) as usize;
        while !entries.is_empty() {
            let rest = entries.split_off(most.min(entries.len()));
            self.push_settling(state, Settling { sink, claimed: None, entries, keys: Vec::new() });
            entries = rest;
        }
    }
}

impl ClaimOwner for Shared {
    fn resolve(&self, sink: SinkId, origin: &Origin, batch: &Batch, resolution: Resolution) {
        let Resolution { fates, token } = resolution;
        if token.as_ref().is_some_and(|token| token.len() > MAX_TOKEN_BYTES) {
            tracing::error!(sink = sink.0, "the sink's resume token is too long; its events go back");
            self.give_back(sink, origin, batch);
            return;
        }
        let index = usize::from(sink.0);
        let sorted = Sorted::new(batch, &fates);
        let keys = self.keys_of(index, batch);
        let mut state = self.state();
        let Some(progress) = state.sinks.get_mut(index) else { return };
        progress.backing_off = None;
        if let Some(reason) = sorted.last_error {
            progress.last_error = Some(reason.to_owned());
        }
        match origin {
            Origin::Log(range) => {
                progress.reserved = progress.reserved.saturating_sub(self.cost_of(index, batch));
                let owned = self.owned(index, range, batch);
                self.resolve_log(&mut state, index, owned, sorted, token, keys);
            }
            Origin::FailureTable => self.resolve_rows(&mut state, index, sorted),
        }
        drop(state);
        self.claimable.notify_waiters();
    }

    fn give_back(&self, sink: SinkId, origin: &Origin, batch: &Batch) {
        let index = usize::from(sink.0);
        match origin {
            Origin::Log(range) => {
                let (owned, keys) = (self.owned(index, range, batch), self.keys_of(index, batch));
                let mut state = self.state();
                if let Some(progress) = state.sinks.get_mut(index) {
                    progress.reserved = progress.reserved.saturating_sub(self.cost_of(index, batch));
                    for range in owned.iter() {
                        let given_back = progress.window.give_back(range);
                        debug_assert!(given_back, "a claim is settled once");
                    }
                    progress.order.settle(keys);
                }
                drop(state);
                self.claimable.notify_waiters();
            }
            Origin::FailureTable => {
                let offsets: Vec<u64> = batch.events.iter().map(|event| event.offset).collect();
                self.give_back_rows(sink, &offsets);
            }
        }
    }
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
