//! The failure table's log: rows on their way to the disk, and room made for more.
//!
//! A third use of `log/`: every parked event, every change of a row and every end of one is a record.
//! What is live is kept by place in `rows`; events stay on the disk. Steps run on the ledger thread:
//!
//! ```text
//! settle   records appended ─► one sync ─► windows, rows and counts follow   (then: checkpoint)
//! clean    nearly full? live rows of the oldest segment are told again at the head ─► sync ─► it is freed
//! ```
//!
//! Order that promises rest on: row durable → checkpoint passes its offset → event segment freed; and
//! no segment of this log is freed before a durable checkpoint counts what it said.
//!
//! Room: the last segments of the budget are kept for cleaning, and sinks reserve before they claim,
//! so a row that must be written meets room. A disk without room delays rows: their claims stay in
//! flight, new ones stop, the event log fills and pushes back. A failed write or sync latches the queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::log::frame::{self, Record as Frame};
use crate::log::{AppendError, Log, LogError, ReadError, Reader, Step, Stock, Writer};
use crate::queue::{Redrive, Selection};

use super::codec::{self, Change, Checkpoint, End, Row as RowHead, RowRecord};
use super::index::{Index, Seed};
use super::ledger::Clock;
use super::rows::{Row, Rows};
use super::settle::{self, Entry, Settling, Standing, Tally};
use super::state::{Redriving, Shared};

/// Segments of the budget that only cleaning may begin.
const HEADROOM_SEGMENTS: u64 = 2;
/// Segments of the budget that live rows never take: headroom, the one being written, a spare.
const UNUSED_SEGMENTS: u64 = 4;
/// Most bytes of a frame with more than one record.
const MAX_FRAME_BYTES: u64 = 64 * 1024;
/// Rows one step of a redrive changes at most.
const REDRIVE_ROWS: u64 = 4096;
/// A part of a segment that the record of a redriven row never takes more than.
const REDRIVE_BYTES: u64 = 512;
/// Records and bytes read at once.
const READ_RECORDS: usize = 1024;
const READ_BYTES: usize = 1 << 20;
/// Records that are read on over, to come to one.
const NEAR: u64 = 64;
const NEAR_BYTES: usize = 64 << 10;

/// How much of a log with `segments` of `segment_bytes` live rows may take, when none of them takes
/// more than `row_bytes`: the end of a segment into which a frame did not fit is lost.
pub(super) fn capacity(segments: u64, segment_bytes: u64, row_bytes: u64) -> u64 {
    let waste = 8192 + row_bytes.max(frame_limit(segment_bytes));
    segments.saturating_sub(UNUSED_SEGMENTS) * segment_bytes.saturating_sub(waste)
}

fn frame_limit(segment_bytes: u64) -> u64 {
    MAX_FRAME_BYTES.min(segment_bytes / 8)
}

/// The single owner of the failure table's writer and spares.
pub(super) struct Table {
    shared: Arc<Shared>,
    log: Log,
    writer: Writer,
    stock: Stock,
    clock: Clock,
    max_segments: u64,
    frame_limit: u64,
    redrive_rows: usize,
    waiting: VecDeque<Settling>,
    /// Places of the records of the first waiting one that are written already.
    placed: Vec<u64>,
    /// The generation of the last numbers this made.
    applied: u64,
    /// A lack of room was told; it is told once.
    is_blocked: bool,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("log", &self.log).finish_non_exhaustive()
    }
}

/// A live row that is told again.
struct Carried {
    sink: String,
    offset: u64,
    record: Vec<u8>,
}

impl Table {
    pub fn new(shared: Arc<Shared>, writer: Writer, stock: Stock, clock: Clock, segments: u64) -> Self {
        let log = shared.failures.clone();
        let frame_limit = frame_limit(log.max_frame_bytes());
        let redrive_rows = (log.max_frame_bytes() / REDRIVE_BYTES).clamp(1, REDRIVE_ROWS) as usize;
        Self {
            shared,
            log,
            writer,
            stock,
            clock,
            max_segments: segments,
            frame_limit,
            redrive_rows,
            waiting: VecDeque::new(),
            placed: Vec::new(),
            applied: 1, // what the opening found
            is_blocked: false,
        }
    }

    /// Makes durable what waits and lets it hold; `true` when there is more to do at once.
    pub fn settle(&mut self) -> Result<bool, LogError> {
        if self.waiting.is_empty() {
            self.waiting.extend(self.shared.take_settling());
            self.waiting.extend(self.next_redrive());
        }
        let mut settled = Vec::new();
        while let Some(settling) = self.waiting.pop_front() {
            if !self.append(&settling.entries)? {
                self.waiting.push_front(settling);
                break;
            }
            settled.push((settling, std::mem::take(&mut self.placed)));
        }
        self.writer.commit()?;
        self.restock();
        self.tell_blocked(!self.waiting.is_empty());
        if settled.is_empty() {
            return Ok(false);
        }
        // What is written of the first one that waits is news to every checkpoint made before it holds.
        let rows_end = self.placed.first().copied().unwrap_or_else(|| self.log.next_offset());
        let mut state = self.shared.state();
        state.rows_end = rows_end;
        for (settling, places) in settled {
            let sink = settling.sink;
            let cost = settling.cost();
            state.settling_bytes = state.settling_bytes.saturating_sub(cost);
            let Some(progress) = state.sinks.get_mut(sink) else { continue };
            progress.settling_cost = progress.settling_cost.saturating_sub(cost);
            settling.apply(progress, &places);
            self.shared.changed(&mut state, sink);
        }
        self.applied = state.generation;
        let more = state.has_rows_to_write();
        drop(state);
        self.shared.claimable.notify_waiters();
        Ok(more && self.waiting.is_empty())
    }

    /// Makes room when it is needed: takes one segment back. `true` when that was done. Until a durable
    /// checkpoint counts all that was settled, it does nothing.
    pub fn clean(&mut self) -> Result<bool, LogError> {
        if self.log.usage().segments + HEADROOM_SEGMENTS < self.max_segments {
            return Ok(false);
        }
        let Some(end) = self.log.oldest_end() else { return Ok(false) };
        // What waits half written is in nobody's numbers yet, and must not go either.
        let is_needed = self.placed.first().is_some_and(|place| *place < end);
        if is_needed || self.shared.state().written < self.applied {
            return Ok(false);
        }
        let mut reader = self.log.reader(self.log.first_offset());
        while reader.position() < end {
            let carried = match self.live(&mut reader, end) {
                Ok(carried) => carried,
                Err(error) => {
                    tracing::warn!(%error, "the failure table cannot be cleaned; another try follows");
                    return Ok(false);
                }
            };
            if !self.carry(carried)? {
                return Ok(false);
            }
        }
        self.give_up_unreadable(end);
        self.log.release_below(end);
        self.restock();
        Ok(true)
    }

    /// Durable checkpoints count what the log says below this place; `None` while one has yet to say so.
    pub fn counted_end(&self) -> Option<u64> {
        let state = self.shared.state();
        (state.written >= self.applied).then_some(state.rows_end)
    }

    /// Whether anything waits to be settled.
    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || self.shared.state().has_rows_to_write()
    }

    /// The mark of an orderly stop.
    pub fn close(self) -> Result<(), LogError> {
        self.writer.close()
    }

    fn restock(&mut self) {
        // Ends: each step that worked brings the number of spares nearer to what is kept, or takes
        // one released segment back.
        while self.stock.step() == Step::Worked {}
    }

    /// Appends the records of `entries` behind those that are `placed`; `false` when there was no room
    /// for all of them.
    fn append(&mut self, entries: &[Entry]) -> Result<bool, LogError> {
        while self.placed.len() < entries.len() {
            if self.log.usage().segments + HEADROOM_SEGMENTS >= self.max_segments {
                return Ok(false); // cleaning comes first
            }
            let rest = &entries[self.placed.len()..];
            let lengths = rest.iter().map(|entry| entry.record.len());
            let frame = &rest[..count_for_frame(lengths, self.frame_limit)];
            match self.append_frame(frame.iter().map(|entry| &entry.record[..]))? {
                Some(base) => self.placed.extend((base..).take(frame.len())),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn append_frame<'a>(
        &mut self,
        records: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
    ) -> Result<Option<u64>, LogError> {
        if self.log.usage().spares == 0 {
            self.restock();
        }
        let frames = records.map(|bytes| Frame { tag: 0, crc: crc32fast::hash(bytes), bytes });
        match self.writer.append((self.clock)().0, frames) {
            Ok(base) => Ok(Some(base)),
            Err(AppendError::Failed(error)) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "the failure table has no room");
                Ok(None)
            }
        }
    }

    /// The live rows among the next records before `end`, with what was told of them since.
    fn live(&self, reader: &mut Reader, end: u64) -> Result<Vec<Carried>, ReadError> {
        let before = reader.position();
        let limit = usize::try_from(end - before).unwrap_or(usize::MAX);
        let chunk = reader.read(limit.min(READ_RECORDS), READ_BYTES)?;
        if chunk.range.is_empty() {
            reader.seek(end);
        }
        let mut changes = ByPlace::new(&self.log);
        let mut carried = Vec::new();
        for record in chunk.records.iter().filter(|record| record.offset < end) {
            let Ok((RowRecord::Parked(head) | RowRecord::Kept(head), text)) =
                codec::decode_row(chunk.bytes(record))
            else {
                continue;
            };
            let row = self
                .shared
                .state()
                .rows_of(&self.shared.infos, &head.sink)
                .and_then(|rows| rows.get(head.offset).copied().filter(|row| row.place == record.offset));
            let Some(row) = row else { continue };
            let mut head = told(&mut changes, head, &row);
            (head.is_dead, head.attempts, head.due_at) = (row.is_dead, row.attempts, row.due_at);
            let (sink, offset) = (head.sink.clone(), head.offset);
            match codec::encode_row(&RowRecord::Kept(head), text) {
                Ok(record) => carried.push(Carried { sink, offset, record }),
                Err(error) => tracing::error!(offset, error, "a row of the failure table cannot be kept"),
            }
        }
        Ok(carried)
    }

    /// Tells live rows again, durably; `false` when there was no room.
    fn carry(&mut self, carried: Vec<Carried>) -> Result<bool, LogError> {
        let mut rest = &carried[..];
        let mut places = Vec::with_capacity(carried.len());
        while !rest.is_empty() {
            let lengths = rest.iter().map(|carried| carried.record.len());
            let (frame, after) = rest.split_at(count_for_frame(lengths, self.frame_limit));
            match self.append_frame(frame.iter().map(|carried| &carried.record[..]))? {
                Some(base) => places.extend((base..).take(frame.len())),
                None => break,
            }
            rest = after;
        }
        self.writer.commit()?;
        let mut state = self.shared.state();
        for (carried, place) in carried.iter().zip(&places) {
            if let Some(rows) = state.rows_of_mut(&self.shared.infos, &carried.sink) {
                rows.moved(carried.offset, *place, carried.record.len() as u32);
            }
        }
        Ok(places.len() == carried.len())
    }

    /// Ends the rows below `end` that could not be read: damage took their events.
    fn give_up_unreadable(&mut self, end: u64) {
        let mut state = self.shared.state();
        for (sink, info) in self.shared.infos.iter().enumerate() {
            let Some(progress) = state.sinks.get_mut(sink) else { continue };
            let lost: Vec<u64> =
                progress.rows.after(None).filter(|(_, row)| row.place < end).map(|(o, _)| o).collect();
            if lost.is_empty() {
                continue;
            }
            tracing::error!(
                sink = info.name,
                events = lost.len(),
                first = lost[0],
                "damage took events of the failure table; they are counted as dropped"
            );
            let entries =
                lost.iter().filter_map(|offset| settle::end(&info.name, *offset, End::Dropped).ok());
            let settling = Settling { sink, claimed: None, entries: entries.collect(), keys: Vec::new() };
            state.damaged_ranges += 1;
            state.generation += 1;
            state.findings_changed = state.generation;
            self.shared.push_settling(&mut state, settling);
        }
    }

    /// The next part of the oldest redrive, its rows held; answers those that are done.
    fn next_redrive(&self) -> Option<Settling> {
        let now = (self.clock)().0;
        let mut state = self.shared.state();
        let state = &mut *state;
        loop {
            let job = state.redrives.front_mut()?;
            let sink = job.sink;
            let progress = state.sinks.get_mut(sink)?;
            let offsets = job.next_offsets(&progress.rows, self.redrive_rows);
            if offsets.is_empty() {
                let job = state.redrives.pop_front()?;
                let _ = job.answer.send(job.changed); // nobody may wait any more
                continue;
            }
            let held: Vec<u64> = offsets.into_iter().filter(|offset| progress.rows.hold(*offset)).collect();
            if held.is_empty() {
                continue;
            }
            let name = &self.shared.infos[sink].name;
            let entry = |offset: &u64| match job.action {
                Redrive::Retry => {
                    settle::change(name, *offset, Standing { is_dead: false, attempts: 0, due_at: now }, None)
                }
                Redrive::Drop => settle::end(name, *offset, End::Dropped),
            };
            let entries: Vec<Entry> = held.iter().filter_map(|offset| entry(offset).ok()).collect();
            job.changed += entries.len() as u64;
            let settling = Settling { sink, claimed: None, entries, keys: Vec::new() };
            let cost = settling.cost();
            progress.settling_cost += cost;
            state.settling_bytes += cost;
            return Some(settling);
        }
    }

    fn tell_blocked(&mut self, is_blocked: bool) {
        // Waiting for cleaning is no lack of room.
        let is_blocked = is_blocked && self.log.usage().segments + HEADROOM_SEGMENTS < self.max_segments;
        if std::mem::replace(&mut self.is_blocked, is_blocked) == is_blocked {
            return;
        }
        if is_blocked {
            tracing::warn!("the failure table has no room on the disk; failed events wait in the log");
        } else {
            tracing::info!("the failure table has room again");
        }
    }
}

impl Redriving {
    /// The next offsets to look at, some of which may have no row; none when all were.
    fn next_offsets(&mut self, rows: &Rows, max: usize) -> Vec<u64> {
        let next: Vec<u64> = match &mut self.selection {
            Selection::All => rows.after(self.after).take(max).map(|(offset, _)| offset).collect(),
            Selection::Offsets(offsets) => offsets.drain(..offsets.len().min(max)).collect(),
        };
        self.after = next.last().copied().or(self.after);
        next
    }
}

/// How many records of these lengths go into one frame; at least one.
fn count_for_frame(lengths: impl Iterator<Item = usize>, max_bytes: u64) -> usize {
    let mut bytes = 0;
    let fits = lengths.zip(1..).take_while(|(length, count)| {
        bytes += *length as u64;
        frame::frame_bytes(*count, bytes) <= max_bytes
    });
    fits.count().max(1)
}

/// Reads single records by place, those not far behind the one before without beginning anew.
#[derive(Debug)]
pub(super) struct ByPlace {
    reader: Reader,
}

impl ByPlace {
    pub fn new(log: &Log) -> Self {
        Self { reader: log.reader(log.first_offset()) }
    }

    /// The record at `place`; `None` when damage took it.
    pub fn record(&mut self, place: u64) -> Result<Option<Bytes>, ReadError> {
        let at = self.reader.position();
        if !(at..=at.saturating_add(NEAR)).contains(&place) {
            self.reader.seek(place);
        }
        loop {
            let most = place.saturating_sub(self.reader.position()) as usize + 1;
            let chunk = match self.reader.read(most, NEAR_BYTES) {
                Ok(chunk) => chunk,
                Err(error) => {
                    // What lies before may be gone when the place itself is not.
                    self.reader.seek(place);
                    return Err(error);
                }
            };
            if chunk.range.is_empty() || chunk.range.end > place {
                let record = chunk.records.iter().find(|record| record.offset == place);
                return Ok(record.map(|record| chunk.share(record)));
            }
        }
    }
}

/// The head of a row with the last failure told of it.
pub(super) fn told(changes: &mut ByPlace, mut head: RowHead, row: &Row) -> RowHead {
    if row.told == row.place {
        return head;
    }
    let Ok(Some(record)) = changes.record(row.told) else { return head };
    if let Ok((RowRecord::Changed(change), _)) = codec::decode_row(&record) {
        tell(&mut head, change);
    }
    head
}

/// Puts the failure that a change tells of into the head of its row.
pub(super) fn tell(head: &mut RowHead, change: Change) {
    if (&change.sink, change.offset) == (&head.sink, head.offset)
        && let Some((at, reason)) = change.failure
    {
        (head.last_failed_at, head.reason) = (at, reason);
    }
}

/// What the log of the failure table says about one sink.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Its rows.
    pub rows: Rows,
    /// Events parked that its checkpoint does not know of yet.
    parked: Vec<u64>,
    /// Rows ended that its checkpoint does not know of yet.
    ended: Tally,
    /// The offsets of those that were dropped.
    pub dropped: Vec<u64>,
}

/// What the failure table holds: what the index says, and the log from there on. Where the index is not to
/// be believed, which it hears, or is none, all of the log is read.
pub(super) fn recall(
    log: &Log,
    checkpoints: &BTreeMap<String, Checkpoint>,
    index: &Index,
    seed: Option<Seed>,
) -> Result<BTreeMap<String, Told>, ReadError> {
    let Some(Seed { applied, rows }) = seed else {
        return replay(log, checkpoints, log.first_offset(), BTreeMap::new());
    };
    // A ledger that knows less was set back: what is no news to the index is news to it.
    let newest = checkpoints.values().map(|known| known.rows_end).max();
    if newest.is_some_and(|newest| newest >= applied) {
        let of = |rows| Told { rows, ..Told::default() };
        let seeded = rows.into_iter().map(|(name, rows)| (name, of(rows))).collect();
        let told = replay(log, checkpoints, applied, seeded)?;
        if agree(checkpoints, &told, log.first_offset()) {
            return Ok(told);
        }
    }
    index.distrust("it does not agree with the ledger");
    replay(log, checkpoints, log.first_offset(), BTreeMap::new())
}

/// Whether the ledger counts the same rows, and all of them may still be read.
fn agree(
    checkpoints: &BTreeMap<String, Checkpoint>,
    told: &BTreeMap<String, Told>,
    first_place: u64,
) -> bool {
    let known_rows = |name: &String| checkpoints.get(name).map_or(0, |known| known.rows);
    let counted = told.iter().all(|(name, told)| told.expected(known_rows(name)) == told.rows.len());
    let held = told.values().flat_map(|told| told.rows.after(None)).all(|(_, row)| row.place >= first_place);
    counted && held && checkpoints.iter().all(|(name, known)| known.rows == 0 || told.contains_key(name))
}

/// Reads the log of the failure table from a place on, `sinks` being what it said before; `checkpoints`
/// say what is news. Records that cannot be read are left out.
fn replay(
    log: &Log,
    checkpoints: &BTreeMap<String, Checkpoint>,
    from: u64,
    mut sinks: BTreeMap<String, Told>,
) -> Result<BTreeMap<String, Told>, ReadError> {
    let mut reader = log.reader(from);
    loop {
        let chunk = reader.read(READ_RECORDS, READ_BYTES)?;
        if chunk.range.is_empty() {
            return Ok(sinks);
        }
        for read in &chunk.records {
            let is_news =
                |sink: &str| checkpoints.get(sink).is_none_or(|known| read.offset >= known.rows_end);
            if let Err(error) = take(&mut sinks, read.offset, chunk.bytes(read), is_news) {
                tracing::error!(place = read.offset, %error, "a record of the failure table cannot be used");
            }
        }
    }
}

/// Takes note of the record at `place`; `is_news` says whether its sink's checkpoint does not know of it.
pub(super) fn take(
    sinks: &mut BTreeMap<String, Told>,
    place: u64,
    bytes: &[u8],
    is_news: impl FnOnce(&str) -> bool,
) -> Result<(), codec::DecodeError> {
    let (record, _) = codec::decode_row(bytes)?;
    let sink = match &record {
        RowRecord::Parked(row) | RowRecord::Kept(row) => &row.sink,
        RowRecord::Changed(change) => &change.sink,
        RowRecord::Gone { sink, .. } => sink,
    };
    let is_news = is_news(sink);
    if !sinks.contains_key(sink) {
        sinks.insert(sink.clone(), Told::default());
    }
    if let Some(told) = sinks.get_mut(sink) {
        told.take(record, place, bytes.len() as u32, is_news);
    }
    Ok(())
}

impl Told {
    fn take(&mut self, record: RowRecord, place: u64, bytes: u32, is_news: bool) {
        let is_parked = matches!(record, RowRecord::Parked(_));
        match record {
            RowRecord::Parked(head) | RowRecord::Kept(head) => {
                if is_news && is_parked {
                    self.parked.push(head.offset);
                }
                let codec::Row { offset, is_dead, attempts, due_at, .. } = head;
                self.rows.insert(offset, Row { place, told: place, is_dead, attempts, due_at, bytes });
            }
            RowRecord::Changed(change) => self.rows.change(change.offset, |row| {
                (row.is_dead, row.attempts, row.due_at) = (change.is_dead, change.attempts, change.due_at);
                if change.failure.is_some() {
                    row.told = place;
                }
            }),
            RowRecord::Gone { offset, end, .. } => {
                if self.rows.remove(offset).is_some() && is_news {
                    self.ended.add(end);
                    self.dropped.extend((end == End::Dropped).then_some(offset));
                }
            }
        }
    }

    /// How many rows there should be, when a checkpoint knows of so many.
    fn expected(&self, known: u64) -> u64 {
        (known + self.parked.len() as u64).saturating_sub(self.ended.total())
    }

    /// The checkpoint with the news in it, up to `rows_end`. Rows that it counts and that are not there
    /// were lost with damage: they count as dropped, and their number is returned.
    pub fn fold(&self, known: &Checkpoint, rows_end: u64) -> (Checkpoint, u64) {
        let mut next = known.clone();
        let mut finished: super::ranges::RangeSet =
            known.finished.iter().filter(|(s, e)| s < e).map(|(s, e)| *s..*e).collect();
        let live = self.rows.after(None).map(|(offset, _)| offset);
        for offset in self.parked.iter().copied().chain(live).filter(|offset| *offset >= known.acked) {
            finished.insert(offset..offset + 1);
        }
        next.finished = finished.iter().map(|range| (range.start, range.end)).collect();
        next.delivered += self.ended.delivered;
        next.dropped += self.ended.dropped;
        next.skipped += self.ended.skipped;
        let expected = self.expected(known.rows);
        let lost = expected.saturating_sub(self.rows.len());
        next.dropped += lost;
        // More rows than there should be: the record of an end was lost, and the row lives on.
        next.delivered = next.delivered.saturating_sub(self.rows.len().saturating_sub(expected));
        next.rows = self.rows.len();
        next.rows_end = rows_end;
        (next, lost)
    }
}
