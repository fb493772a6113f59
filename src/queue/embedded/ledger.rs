//! The ledger: what every sink is done with, what is paused, which offsets are void. The truth about
//! everything that is not in the event log itself.
//!
//! [`Ledger::run`] is a thread of its own around [`Ledger::step`], which does all of its work in order:
//!
//! ```text
//! changes ─► records ─► one write, one sync ─► segments below every durable checkpoint are freed
//!                              │
//!                              └► more than one ledger segment? snapshot, sync, free the old ones
//! ```
//!
//! Changes are not queued: the shared state is the queue, the newest state of a thing replaces older
//! ones, and a checkpoint shows what is there when it is written. So memory is bounded by the number of
//! sinks, however far the ledger falls behind.
//!
//! Order that promises rest on: the sink has made its target durable → checkpoint durable → event
//! segment freed. A failed write or sync latches the queue, and the process must end. No room on the
//! disk cannot happen after the start, because a spare is prepared before anything is accepted and
//! compaction gives one back for each one taken; should it happen all the same, checkpoints wait, the
//! event log fills up and pushes back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::Micros;
use crate::log::frame::{self, Record as Frame};
use crate::log::{AppendError, Chunk, Log, LogError, ReadError, Step, Stock, Writer};
use crate::queue::QueueError;

use super::codec::{self, Checkpoint, Dropped, Record};
use super::feed::Feed;
use super::ranges::RangeSet;
use super::state::{Shared, Work};
use super::table::Table;

/// Without anything to write, the thread looks after the dedupe ring this often.
const TICK: Duration = Duration::from_millis(500);
/// Records and bytes read at once while replaying.
const REPLAY_RECORDS: usize = 1024;
const REPLAY_BYTES: usize = 256 * 1024;

/// Tells the time; injected, so that tests decide it.
pub type Clock = Arc<dyn Fn() -> Micros + Send + Sync>;

/// What the ledger said when it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// The last checkpoint of each sink there ever was, by name.
    pub checkpoints: BTreeMap<String, Checkpoint>,
    /// Sinks an operator paused or resumed, by name.
    pub paused: BTreeMap<String, bool>,
    /// Which events each sink dropped, by name.
    pub dropped: BTreeMap<String, Dropped>,
    /// Offsets that hold no event.
    pub voids: RangeSet,
    /// Damaged ranges since the data directory was made.
    pub damaged_ranges: u64,
    /// The highest durable end of the event log that any record knows.
    pub durable_end: u64,
    /// Whether there was any record at all.
    pub is_blank: bool,
}

impl Memory {
    fn apply(&mut self, record: Record) {
        self.is_blank = false;
        match record {
            Record::Checkpoint(checkpoint) => {
                self.durable_end = self.durable_end.max(checkpoint.durable_end);
                self.checkpoints.insert(checkpoint.sink.clone(), checkpoint);
            }
            Record::Paused { sink, paused } => {
                self.paused.insert(sink, paused);
            }
            Record::Dropped(dropped) => {
                self.dropped.insert(dropped.sink.clone(), dropped);
            }
            Record::Findings(findings) => {
                self.durable_end = self.durable_end.max(findings.durable_end);
                self.damaged_ranges = self.damaged_ranges.max(findings.damaged_ranges);
                findings.voids.iter().filter(|(s, e)| s < e).for_each(|(s, e)| self.voids.insert(*s..*e));
            }
            Record::SnapshotBegin | Record::SnapshotEnd { .. } => {}
        }
    }
}

/// Reads what the ledger holds. Records that cannot be read are left out, which costs a redelivery
/// at most: an earlier checkpoint stands then. Returns how many were left out.
pub(super) fn replay_log(log: &Log) -> Result<(Memory, u64), ReadError> {
    let mut reader = log.reader(log.first_offset());
    replay(|records, bytes| reader.read(records, bytes))
}

/// The same of whatever `read` gives, the next run of at most so many records and bytes each time, until
/// it gives none.
pub(super) fn replay(
    mut read: impl FnMut(usize, usize) -> Result<Chunk, ReadError>,
) -> Result<(Memory, u64), ReadError> {
    let blank = || Memory { is_blank: true, ..Memory::default() };
    let mut memory = blank();
    let mut snapshot: Option<(Memory, u64)> = None;
    let mut left_out = 0;
    loop {
        let chunk = read(REPLAY_RECORDS, REPLAY_BYTES)?;
        if chunk.range.is_empty() {
            return Ok((memory, left_out));
        }
        left_out += chunk.damage.iter().map(|d| d.lost.end.saturating_sub(d.lost.start)).sum::<u64>();
        for at in &chunk.records {
            let record: Record = match codec::decode(chunk.bytes(at)) {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(offset = at.offset, %error, "a ledger record cannot be used");
                    left_out += 1;
                    continue;
                }
            };
            match (&record, &mut snapshot) {
                (Record::SnapshotBegin, _) => snapshot = Some((blank(), 0)),
                (Record::SnapshotEnd { records }, Some((whole, count))) if records == count => {
                    memory = std::mem::take(whole);
                    snapshot = None;
                }
                (Record::SnapshotEnd { .. }, _) => snapshot = None, // not whole: as if it were not there
                (_, Some((part, count))) => {
                    part.apply(record.clone());
                    *count += 1;
                    memory.apply(record);
                }
                (_, None) => memory.apply(record),
            }
        }
    }
}

/// The single owner of the ledger's writer, of its spares, and of the dedupe ring.
pub struct Ledger {
    shared: Arc<Shared>,
    log: Log,
    writer: Writer,
    stock: Stock,
    table: Table,
    feed: Feed,
    clock: Clock,
    interval: Duration,
    /// What is kept about sinks that are not configured any more.
    gone: Vec<Record>,
    /// It is not what the ledger says, and a snapshot must say so before anything is freed.
    gone_changed: bool,
    /// A lack of room was told; it is told once.
    is_blocked: bool,
}

/// What a ledger is made of.
pub(super) struct Parts {
    pub shared: Arc<Shared>,
    pub log: Log,
    pub writer: Writer,
    pub stock: Stock,
    pub table: Table,
    pub feed: Feed,
    pub clock: Clock,
    pub interval: Duration,
    pub gone: Vec<Record>,
    pub gone_changed: bool,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("log", &self.log).field("feed", &self.feed).finish_non_exhaustive()
    }
}

impl Ledger {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { shared, log, writer, stock, table, feed, clock, interval, gone, gone_changed } = parts;
        let is_blocked = false;
        Self { shared, log, writer, stock, table, feed, clock, interval, gone, gone_changed, is_blocked }
    }

    /// Writes and frees until the queue asks it to stop; the body of a thread of its own.
    pub fn run(mut self) -> Result<(), QueueError> {
        loop {
            self.shared.ledger_pulse.beat();
            let began = Instant::now();
            let more = self.step()?;
            let (stop, urgent) = {
                let mut state = self.shared.state();
                (state.stop, std::mem::take(&mut state.urgent))
            };
            if stop {
                return self.close();
            }
            if let Some(reason) = self.shared.failed() {
                // Perhaps only a log is latched, and who waits for this thread does not know of it.
                return Err(latch(&self.shared, reason));
            }
            if !more && !urgent {
                let wait = self.interval.saturating_sub(began.elapsed());
                let _excuse = self.shared.ledger_pulse.excuse(wait + TICK);
                self.shared.wait_for_urgency(wait);
                self.shared.wait_for_work(TICK);
            }
        }
    }

    /// One round: settles rows of the failure table, writes what changed, compacts, prepares a spare,
    /// feeds the ring, frees segments. `true` when there is more to do at once. What a copy of the files
    /// holds stays as it is.
    pub fn step(&mut self) -> Result<bool, QueueError> {
        let shared = Arc::clone(&self.shared);
        let round = shared.hold.round();
        let table_failed = |error: LogError| latch(&shared, format!("the failure table: {error}"));
        let mut more = self.table.settle().map_err(table_failed)?;
        self.write_changes(round.may_change_ledger())?;
        // Only what a durable checkpoint counts may be given up, so this comes after it.
        let counted_end = self.table.counted_end().filter(|_| !self.gone_changed);
        shared.index.follow(counted_end.unwrap_or(0));
        if !self.gone_changed && round.may_change_ledger() {
            more |= self.table.clean().map_err(table_failed)?;
        }
        if round.may_change_ledger() {
            more |= self.feed.step();
        }
        if round.may_release_events() {
            self.release();
        }
        Ok(more)
    }

    /// For a repair: what was lost may be sent again, and is no duplicate then.
    pub(super) fn forget_lost_tags(&mut self) -> Result<(), QueueError> {
        let voids: Vec<_> = self.shared.state().voids.iter().collect();
        let forgotten = self.feed.forget(&voids);
        forgotten.map_err(|error| latch(&self.shared, format!("the dedupe ring: {error}")))
    }

    /// The last round of an orderly stop: everything is written, then the mark of a clean stop.
    pub fn close(mut self) -> Result<(), QueueError> {
        // Ends: nobody brings rows any more, and each round settles some or has no room.
        while self.step()? && self.table.is_busy() {}
        let shared = Arc::clone(&self.shared);
        self.table.close().map_err(|error| latch(&shared, format!("the failure table: {error}")))?;
        shared.index.close();
        self.writer.close().map_err(|error| failed(&shared, &error))
    }

    fn write_changes(&mut self, may_compact: bool) -> Result<(), QueueError> {
        let work = {
            let state = self.shared.state();
            state.is_dirty().then(|| state.work(&self.shared.infos, self.shared.log.durable_end(), false))
        };
        if let Some(work) = work {
            // After a start the spare that was left is only a file. Should the segment be full, the
            // first record would find no room, and requests would hear of a full disk.
            if self.log.usage().spares == 0 {
                self.restock();
            }
            let written = self.write(&work, &work.records)?;
            self.tell_blocked(!written);
        }
        self.restock();
        if may_compact && (self.log.usage().segments > 1 || self.gone_changed) {
            self.compact()?;
            self.restock();
        }
        let is_written = !self.shared.state().is_dirty();
        if is_written && self.log.usage().spares > 0 {
            self.shared.set_ready();
        }
        Ok(())
    }

    /// Writes everything there is to say, syncs it, then lets everything older go.
    fn compact(&mut self) -> Result<(), QueueError> {
        let begin = self.log.next_offset();
        let work = {
            let mut state = self.shared.state();
            // Released events need no notes.
            state.voids.remove(0..self.shared.log.first_offset());
            state.work(&self.shared.infos, self.shared.log.durable_end(), true)
        };
        let mut records = vec![Record::SnapshotBegin];
        records.extend(self.gone.iter().cloned());
        records.extend(work.records.iter().cloned());
        records.push(Record::SnapshotEnd { records: records.len() as u64 - 1 });
        if self.write(&work, &records)? {
            self.gone_changed = false;
            self.log.release_below(begin);
        }
        Ok(())
    }

    /// Writes and syncs `records`; `false` when there was no room for all of them.
    fn write(&mut self, work: &Work, records: &[Record]) -> Result<bool, QueueError> {
        let mut encoded = Vec::with_capacity(records.len());
        for record in records {
            encoded.push(codec::encode(record).map_err(|reason| {
                let reason = format!("a ledger record cannot be encoded: {reason}");
                self.shared.fail(reason.clone());
                QueueError::StorageFailed(reason)
            })?);
        }
        let mut rest = &encoded[..];
        let mut fits = true;
        while !rest.is_empty() && fits {
            let (frame, after) = rest.split_at(records_per_frame(rest, self.log.max_frame_bytes()));
            let records =
                frame.iter().map(|bytes| Frame { tag: 0, crc: crc32fast::hash(bytes), bytes: &bytes[..] });
            match self.writer.append((self.clock)().0, records) {
                Ok(_) => rest = after,
                Err(AppendError::Failed(error)) => return Err(failed(&self.shared, &error)),
                Err(error) => {
                    tracing::debug!(%error, "the ledger has no room");
                    fits = false;
                }
            }
        }
        self.writer.commit().map_err(|error| failed(&self.shared, &error))?;
        if fits {
            let mut state = self.shared.state();
            state.settle(work);
            let written = state.written;
            drop(state);
            self.shared.written.send_replace(written);
        }
        Ok(fits)
    }

    fn tell_blocked(&mut self, is_blocked: bool) {
        if std::mem::replace(&mut self.is_blocked, is_blocked) == is_blocked {
            return;
        }
        if is_blocked {
            tracing::warn!("the ledger has no room on the disk; checkpoints wait and nothing is freed");
        } else {
            tracing::info!("the ledger has room again");
        }
    }

    fn restock(&mut self) {
        // Ends: each step that worked brings the number of spares nearer to what is kept, or takes
        // one released segment back.
        while self.stock.step() == Step::Worked {}
    }

    /// Frees what every sink is durably done with and whose tags are in the ring.
    fn release(&self) {
        // While the ledger still calls a sink configured that is not, nothing goes.
        if !self.shared.is_ready() || self.gone_changed {
            return;
        }
        let acked = {
            let state = self.shared.state();
            state.sinks.iter().map(|sink| sink.durable_acked).min()
        };
        let acked = acked.unwrap_or_else(|| self.shared.log.durable_end());
        self.shared.log.release_below(acked.min(self.feed.release_limit()));
        let first_offset = self.shared.log.first_offset();
        self.shared.state().sinks.iter_mut().for_each(|sink| sink.dropped.release_below(first_offset));
    }
}

/// How many of `records` fit into one frame; at least one.
fn records_per_frame(records: &[Vec<u8>], max_bytes: u64) -> usize {
    let mut bytes = 0;
    let fits = records.iter().zip(1..).take_while(|(record, count)| {
        bytes += record.len() as u64;
        frame::frame_bytes(*count, bytes) <= max_bytes
    });
    fits.count().max(1)
}

fn failed(shared: &Shared, error: &LogError) -> QueueError {
    latch(shared, format!("the ledger: {error}"))
}

fn latch(shared: &Shared, reason: String) -> QueueError {
    shared.fail(reason.clone());
    QueueError::StorageFailed(reason)
}
