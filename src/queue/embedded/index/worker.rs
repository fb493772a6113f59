//! The thread that keeps the index: opens it, looks whether it may be believed, reads the row log behind it.
//!
//! ```text
//! prepare ─► open ─► load: every block, their sum, the mark, the anchor ─► seed, or: set aside, built anew
//!                                                   │
//!                    ┌──────────────────────────────┘
//!                    └► catch up with the row log ─► sync ─► answer ─► …
//! ```
//!
//! The index is a function of the row log up to `applied`, and each batch carries that place with it. It
//! reads only what is durable and what durable checkpoints count, so it is never ahead of either; a log
//! that lost its tail, was restored or made anew is found by the anchor. Every call into the store runs
//! under `catch_unwind` and shows the time it began, so that the owner can tell a hang. Whatever goes wrong
//! costs a rebuild, and after a few of them the index is left alone until the next start.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::Hasher as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::event::Attributes;
use crate::log::{Log, ReadError, Reader};

use super::super::codec::{self, IndexMark, Indexed, RowRecord};
use super::super::rows::{Row, Rows};
use super::store::{self, Store};
use super::{Ask, Common, MAX_ENTRIES, Place, Seed, tell};

/// Without news the row log is looked at this often.
const TICK: Duration = Duration::from_millis(200);
/// Time between two syncs, while there is something to sync.
const SYNC_EVERY: Duration = Duration::from_secs(5);
/// Rows that share a key at most; so many of the largest still fit into a record.
const BLOCK_ROWS: u64 = 32;
/// Records and bytes of the row log, and blocks of the index, that are read at once.
const READ_RECORDS: usize = 1024;
const READ_BYTES: usize = 512 << 10;
const READ_BLOCKS: usize = 128;
/// Longest `type` that is kept; a longer one is looked up in the row log.
const MAX_KIND_BYTES: usize = 256;
/// The key of the mark; no sink's name begins with it.
const MARK: &[u8] = b"\0";
/// Below every key of an entry.
const FIRST: &[u8] = b"\x01";
/// Above every key.
const LAST: &[u8] = b"\xff";

/// Neighbouring rows, with their offsets: what one key holds. A row of its own for each would make sled keep
/// some hundred bytes about each key, and a start read them one by one.
type Block = Vec<(u64, Indexed)>;

/// The key of a sink's block.
fn key(sink: &str, block: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(sink.len() + 9);
    key.extend_from_slice(sink.as_bytes());
    key.push(0);
    key.extend_from_slice(&block.to_be_bytes());
    key
}

/// The sink that a key belongs to.
fn sink_of(key: &[u8]) -> Option<&str> {
    let (rest, _) = key.split_last_chunk::<8>()?;
    let (zero, name) = rest.split_last()?;
    std::str::from_utf8(name).ok().filter(|_| *zero == 0)
}

fn digest(parts: [&[u8]; 2]) -> u128 {
    let mut hasher = SipHasher13::new();
    for part in parts {
        hasher.write_u64(part.len() as u64);
        hasher.write(part);
    }
    hasher.finish128().as_u128()
}

/// Why the index cannot go on as it is.
enum Trouble {
    /// It is broken, or does not fit the row log.
    Broken(String),
    /// It is whole but no use: too far behind the row log, or too large.
    Useless(&'static str),
    /// The owner has given up on this thread.
    Replaced,
}

impl From<String> for Trouble {
    fn from(reason: String) -> Self {
        Trouble::Broken(reason)
    }
}

/// The thread's own.
pub(super) struct Worker {
    pub place: Place,
    pub common: Arc<Common>,
    pub asks: Receiver<Ask>,
    /// Brings the row log, which is recovered while the index opens.
    pub logs: Receiver<Log>,
    /// The row log, once it is there.
    pub log: OnceCell<Log>,
    /// Which worker this is; another one that counts means that it was replaced.
    pub ticket: u64,
}

/// An open store and how far it is.
struct Open {
    store: Box<dyn Store>,
    mark: IndexMark,
    reader: Reader,
    synced_at: Instant,
    is_synced: bool,
    /// It is being built from nothing.
    is_building: bool,
    /// Bytes it took when it had been built.
    built_bytes: u64,
}

impl Worker {
    /// Keeps the index until it is told to end. `first` gets what the first opening found; `aside` says
    /// that what is there is not to be opened at all.
    pub fn run(self, first: &SyncSender<Option<Seed>>, aside: bool) {
        if aside {
            self.set_aside();
        }
        // What was set aside was told and counted.
        let mut is_known = aside;
        loop {
            let ended = self.live(first, is_known);
            is_known = true;
            // Whoever waits goes on without.
            let _ = first.try_send(None);
            match ended {
                Ok(()) | Err(Trouble::Replaced) => return,
                Err(Trouble::Useless(reason)) => {
                    tracing::info!(reason, "the index of the failure table is built anew");
                    let removed = self.inside(|| store::remove(&self.place.dir).map_err(|e| e.to_string()));
                    if removed.is_err() {
                        self.set_aside();
                    }
                }
                Err(Trouble::Broken(reason)) => {
                    let Some(goes_on) = self.common.note_trouble(self.ticket) else { return };
                    tell(&self.place, &reason, goes_on);
                    self.set_aside();
                    if !goes_on {
                        return;
                    }
                }
            }
        }
    }

    /// Moves what is there aside; where that does not work it is removed, and where not even that does the
    /// next opening will say so.
    fn set_aside(&self) {
        let dir = &self.place.dir;
        let moved = self.inside(|| {
            let moved = store::set_aside(dir).map(drop).or_else(|_| store::remove(dir));
            moved.map_err(|error| format!("{}: {error}", dir.display()))
        });
        if let Err(Trouble::Broken(reason)) = moved {
            tracing::debug!(reason, "the index of the failure table cannot be moved");
        }
    }

    /// Runs something that may panic, and shows since when it runs.
    fn inside<T>(&self, work: impl FnOnce() -> Result<T, String>) -> Result<T, Trouble> {
        if !self.common.enter(self.ticket) {
            return Err(Trouble::Replaced);
        }
        let done = catch_unwind(AssertUnwindSafe(work));
        if !self.common.leave(self.ticket) {
            return Err(Trouble::Replaced);
        }
        match done {
            Ok(done) => Ok(done?),
            Err(panic) => {
                let said = panic.downcast_ref::<String>().map(String::as_str);
                let said =
                    said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
                Err(Trouble::Broken(format!("it panicked: {said}")))
            }
        }
    }

    /// One life of a store, from its opening to its end.
    fn live(&self, first: &SyncSender<Option<Seed>>, is_known: bool) -> Result<(), Trouble> {
        let store = self.inside(|| {
            store::prepare(&self.place.dir)?;
            (self.place.open)(&self.place.dir, self.place.cache_bytes)
        })?;
        let (mark, seed) = self.load(&*store, is_known)?;
        self.inside(|| store::opened(&self.place.dir))?;
        let is_building = seed.is_none();
        let _ = first.try_send(seed);
        let reader = self.log()?.reader(mark.applied);
        let mut open = Open {
            store,
            mark,
            reader,
            synced_at: Instant::now(),
            is_synced: true,
            is_building,
            built_bytes: 0,
        };
        let ended = self.serve(&mut open);
        // Closing it may panic as well.
        let closed = self.inside(|| {
            drop(open);
            Ok(())
        });
        ended.and(closed)
    }

    fn serve(&self, open: &mut Open) -> Result<(), Trouble> {
        loop {
            let more = self.catch_up(open)?;
            if !open.is_synced && open.synced_at.elapsed() >= SYNC_EVERY {
                self.sync(open)?;
            }
            let ask = match more {
                true => self.asks.try_recv().map_err(|error| error == TryRecvError::Disconnected),
                false => {
                    self.asks.recv_timeout(TICK).map_err(|error| error == RecvTimeoutError::Disconnected)
                }
            };
            match ask {
                Ok(Ask::Entries { sink, offsets, answer }) => {
                    let entries = self.inside(|| entries(&*open.store, &sink, offsets))?;
                    let _ = answer.try_send(entries); // who asked may have gone on
                }
                Ok(Ask::Distrust(reason)) => return Err(Trouble::Broken(reason)),
                Ok(Ask::Close) => {
                    while self.catch_up(open)? {}
                    return self.sync(open);
                }
                Err(false) => {}
                Err(true) => return Ok(()),
            }
        }
    }

    fn sync(&self, open: &mut Open) -> Result<(), Trouble> {
        let bytes = self.inside(|| open.store.sync().and_then(|()| open.store.bytes()))?;
        (open.synced_at, open.is_synced) = (Instant::now(), true);
        if open.is_building {
            if open.mark.applied >= self.common.counted_end() {
                (open.is_building, open.built_bytes) = (false, bytes);
            }
            return Ok(());
        }
        // What it takes as small as it can be is no reason to build it anew.
        if bytes > self.place.max_bytes.max(2 * open.built_bytes) {
            return Err(Trouble::Useless("it has grown too large"));
        }
        Ok(())
    }

    /// Reads the index whole. What it says is a seed when it may be believed, and without an index there is
    /// none; everything else is trouble.
    fn load(&self, store: &dyn Store, is_known: bool) -> Result<(IndexMark, Option<Seed>), Trouble> {
        let mut found = IndexMark::default();
        let mut rows: BTreeMap<String, Rows> = BTreeMap::new();
        let mut after = FIRST.to_vec();
        loop {
            let blocks = self.inside(|| store.scan(&after, LAST, READ_BLOCKS))?;
            let Some((last, _)) = blocks.last() else { break };
            after.clone_from(last);
            for (key, value) in &blocks {
                let sink = sink_of(key).ok_or("it has a key that is none".to_owned())?;
                let block: Block = codec::decode(value).map_err(|error| error.to_string())?;
                found.rows += block.len() as u64;
                found.sum = found.sum.wrapping_add(digest([key, value]));
                if !rows.contains_key(sink) {
                    rows.insert(sink.to_owned(), Rows::default());
                }
                if let Some(rows) = rows.get_mut(sink) {
                    block.iter().for_each(|(offset, entry)| rows.insert(*offset, row(entry)));
                }
            }
        }
        let mark = self.inside(|| store.get(MARK))?;
        let log = self.log()?;
        let fresh = IndexMark { applied: log.first_offset(), ..IndexMark::default() };
        let Some(mark) = mark else {
            if found.rows > 0 {
                return Err(Trouble::Broken("it has rows and no mark".to_owned()));
            }
            if !is_known && log.durable_end() > fresh.applied {
                self.common.note_rebuild();
                let dir = self.place.dir.display();
                tracing::warn!(%dir, "there is no index of the failure table; it is built from the row log");
            }
            return Ok((fresh, None));
        };
        let mark: IndexMark = codec::decode(&mark).map_err(|error| error.to_string())?;
        if (mark.rows, mark.sum) != (found.rows, found.sum) {
            return Err(Trouble::Broken("its entries are not what its mark says".to_owned()));
        }
        if !is_of_this_log(&mark, log) {
            return Err(Trouble::Broken("it belongs to another row log, or is far behind".to_owned()));
        }
        let applied = mark.applied.max(fresh.applied);
        Ok((IndexMark { applied, ..mark }, Some(Seed { applied, rows })))
    }

    /// The row log; waits until it is there.
    fn log(&self) -> Result<&Log, Trouble> {
        if let Some(log) = self.log.get() {
            return Ok(log);
        }
        // Whoever opens has given up.
        let log = self.logs.recv().map_err(|_| Trouble::Replaced)?;
        Ok(self.log.get_or_init(|| log))
    }

    /// Takes in some of what the row log says beyond; `true` when there is more.
    fn catch_up(&self, open: &mut Open) -> Result<bool, Trouble> {
        let until = self.common.counted_end();
        if open.mark.applied >= until {
            return Ok(false);
        }
        open.reader.seek(open.mark.applied);
        let most = usize::try_from(until - open.mark.applied).unwrap_or(usize::MAX).min(READ_RECORDS);
        let chunk = match open.reader.read(most, READ_BYTES) {
            Ok(chunk) if chunk.range.is_empty() => return Ok(false),
            Ok(chunk) => chunk,
            Err(ReadError::Released { .. }) => {
                return Err(Trouble::Useless("the row log has let go of what it had not read yet"));
            }
            Err(error) => {
                tracing::debug!(%error, "the row log cannot be read for its index; another try follows");
                return Ok(false);
            }
        };
        let mark = self.inside(|| {
            let mut batch = Batch { store: &*open.store, mark: open.mark.clone(), touched: BTreeMap::new() };
            for record in chunk.records.iter().filter(|record| record.offset < until) {
                let bytes = chunk.bytes(record);
                let told = digest([bytes, &record.accepted_at_micros.to_le_bytes()]);
                batch.mark.anchor = Some((record.offset, told));
                batch.take(record.offset, bytes)?;
            }
            batch.mark.applied = chunk.range.end.min(until);
            batch.finish()
        })?;
        open.mark = mark;
        open.is_synced = false;
        Ok(open.mark.applied < until)
    }
}

/// Whether the row log still is the one that an index was read from.
fn is_of_this_log(mark: &IndexMark, log: &Log) -> bool {
    if mark.applied > log.durable_end() {
        return false;
    }
    let Some((place, known)) = mark.anchor else {
        return mark.rows == 0 && mark.applied <= log.first_offset();
    };
    let Ok(chunk) = log.reader(place).read(1, 1) else { return false };
    let record = chunk.records.first().filter(|record| record.offset == place);
    record.is_some_and(|record| {
        digest([chunk.bytes(record), &record.accepted_at_micros.to_le_bytes()]) == known
    })
}

/// The entries of a sink's rows from one offset to another.
fn entries(store: &dyn Store, sink: &str, (from, to): (u64, u64)) -> Result<Vec<(u64, Indexed)>, String> {
    let first = from / BLOCK_ROWS;
    let after = match first.checked_sub(1) {
        Some(before) => key(sink, before),
        None => key(sink, 0)[..sink.len() + 1].to_vec(), // below every key of the sink
    };
    let below = key(sink, (to / BLOCK_ROWS).saturating_add(1));
    let mut found = Vec::new();
    for (_, value) in store.scan(&after, &below, MAX_ENTRIES)? {
        let block: Block = codec::decode(&value).map_err(|error| error.to_string())?;
        found.extend(block.into_iter().filter(|(offset, _)| (from..=to).contains(offset)));
    }
    Ok(found)
}

fn row(entry: &Indexed) -> Row {
    let Indexed { place, told, is_dead, attempts, due_at, bytes, .. } = *entry;
    Row { place, told, is_dead, attempts, due_at, bytes }
}

/// Changes to the index on their way, and the mark that goes with them.
struct Batch<'a> {
    store: &'a dyn Store,
    mark: IndexMark,
    touched: BTreeMap<Vec<u8>, Touched>,
}

/// A block that changes.
#[derive(Default)]
struct Touched {
    /// Its digest and the number of its rows in the mark so far.
    counted: Option<(u128, u64)>,
    rows: BTreeMap<u64, Indexed>,
}

impl Batch<'_> {
    /// Takes in the record at `place`. One that cannot be read tells nothing, here as in a replay.
    fn take(&mut self, place: u64, bytes: &[u8]) -> Result<(), String> {
        let Ok((record, text)) = codec::decode_row(bytes) else { return Ok(()) };
        match record {
            RowRecord::Parked(head) | RowRecord::Kept(head) => {
                let kind = Attributes::of(text).unwrap_or_default().event_type;
                let entry = Indexed {
                    place,
                    told: place,
                    is_dead: head.is_dead,
                    attempts: head.attempts,
                    due_at: head.due_at,
                    bytes: bytes.len() as u32,
                    last_failed_at: head.last_failed_at,
                    reason: head.reason,
                    kind: (kind.len() <= MAX_KIND_BYTES).then(|| kind.into_owned()),
                };
                self.block(&head.sink, head.offset)?.insert(head.offset, entry);
            }
            RowRecord::Changed(change) => {
                let block = self.block(&change.sink, change.offset)?;
                let Some(entry) = block.get_mut(&change.offset) else { return Ok(()) };
                (entry.is_dead, entry.attempts, entry.due_at) =
                    (change.is_dead, change.attempts, change.due_at);
                if let Some((at, reason)) = change.failure {
                    (entry.told, entry.last_failed_at, entry.reason) = (place, at, reason);
                }
            }
            RowRecord::Gone { sink, offset, .. } => {
                self.block(&sink, offset)?.remove(&offset);
            }
        }
        Ok(())
    }

    /// The rows of the block that an offset belongs to, to be changed.
    fn block(&mut self, sink: &str, offset: u64) -> Result<&mut BTreeMap<u64, Indexed>, String> {
        let touched = match self.touched.entry(key(sink, offset / BLOCK_ROWS)) {
            Entry::Occupied(touched) => touched.into_mut(),
            Entry::Vacant(place) => {
                let mut touched = Touched::default();
                if let Some(value) = self.store.get(place.key())? {
                    let block: Block = codec::decode(&value).map_err(|error| error.to_string())?;
                    touched.counted = Some((digest([place.key(), &value]), block.len() as u64));
                    touched.rows = block.into_iter().collect();
                }
                place.insert(touched)
            }
        };
        Ok(&mut touched.rows)
    }

    /// Writes everything at once; the mark as it stands now.
    fn finish(mut self) -> Result<IndexMark, String> {
        let mut changes = Vec::with_capacity(self.touched.len() + 1);
        for (key, Touched { counted, rows }) in self.touched {
            if let Some((digest, rows)) = counted {
                self.mark.rows = self.mark.rows.wrapping_sub(rows);
                self.mark.sum = self.mark.sum.wrapping_sub(digest);
            }
            let value = if rows.is_empty() {
                None
            } else {
                self.mark.rows = self.mark.rows.wrapping_add(rows.len() as u64);
                let value = codec::encode(&rows.into_iter().collect::<Block>())?;
                self.mark.sum = self.mark.sum.wrapping_add(digest([&key, &value]));
                Some(value)
            };
            changes.push((key, value));
        }
        changes.push((MARK.to_vec(), Some(codec::encode(&self.mark)?)));
        self.store.change(changes)?;
        Ok(self.mark)
    }
}
