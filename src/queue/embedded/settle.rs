//! From a claim's fates to records of the failure table, and from durable records to numbers.
//!
//! ```text
//! resolve ─► Settling ─► (ledger thread) rows appended and synced ─► apply: window, rows, counts
//! ```
//!
//! A claim with an event to park stays in flight as a whole until the rows are durable, so nobody ever
//! counts an event as parked that a crash could take back. Pure: no I/O; runs under the lock of `state`.

use crate::event::{Micros, StoredEvent};
use crate::queue::{Fate, Fates, MAX_REASON_BYTES};
use crate::sink::Batch;

use super::codec::{self, Change, End, RowRecord};
use super::ranges::RangeSet;
use super::rows::{Row, record_cost};
use super::state::SinkProgress;

/// What a row takes beyond the event's text, at most: reason, numbers, a sink's name.
pub const ROW_OVERHEAD_BYTES: u64 = MAX_REASON_BYTES as u64 + 512;

/// What becomes of events once records of the failure table are durable.
#[derive(Debug)]
pub struct Settling {
    /// Index of the sink.
    pub sink: usize,
    /// The claim from the log that ends with it.
    pub claimed: Option<Claimed>,
    /// The records, and what each means.
    pub entries: Vec<Entry>,
    /// Keys that are free once they are durable.
    pub keys: Vec<u64>,
}

/// The end of a claim from the log.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The claimed offsets.
    pub owned: RangeSet,
    /// Those that go back, ascending.
    pub returned: Vec<u64>,
    /// How many of the others were not parked, and why.
    pub tally: Tally,
    /// Those of them that were dropped, ascending.
    pub dropped: Vec<u64>,
    /// Where the sink stands now.
    pub token: Option<Vec<u8>>,
}

/// Events that are done with, by how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// They are at the target.
    pub delivered: u64,
    /// They were given up.
    pub dropped: u64,
    /// They did not match.
    pub skipped: u64,
}

impl Tally {
    /// Counts one more.
    pub fn add(&mut self, end: End) {
        match end {
            End::Delivered => self.delivered += 1,
            End::Dropped => self.dropped += 1,
            End::Skipped => self.skipped += 1,
        }
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.delivered + self.dropped + self.skipped
    }
}

/// One record on its way into the failure table.
#[derive(Debug)]
pub struct Entry {
    /// The event.
    pub offset: u64,
    /// What holds once the record is durable.
    pub effect: Effect,
    /// The record's bytes.
    pub record: Vec<u8>,
}

/// What a record means for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The row is new; with the key it has in its sink's order.
    Parked(Standing, Option<u64>),
    /// It stands otherwise; after a failure, or because it was redriven.
    Changed(Standing, Cause),
    /// It is gone.
    Gone(End),
}

/// How a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Given up.
    pub is_dead: bool,
    /// Attempts made.
    pub attempts: u32,
    /// When it is tried again.
    pub due_at: i64,
}

/// Why a row changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It failed once more; the record says why.
    Failure,
    /// Somebody redrove it.
    Redrive,
}

impl Standing {
    /// The standing that a fate gives a row, if it keeps one.
    fn of(fate: &Fate) -> Option<(Self, &str)> {
        match fate {
            Fate::Retry { reason, attempts, due_at } => {
                Some((Self { is_dead: false, attempts: *attempts, due_at: due_at.0 }, reason))
            }
            Fate::Dead { reason, attempts } => {
                Some((Self { is_dead: true, attempts: *attempts, due_at: 0 }, reason))
            }
            Fate::Delivered | Fate::Skipped | Fate::Dropped { .. } => None,
        }
    }
}

/// The events of a claim by their fates.
#[derive(Debug, Default)]
pub struct Sorted<'a> {
    /// Those that are done with.
    pub ends: Vec<(StoredEvent<'a>, End)>,
    /// Those that get a row or keep theirs, and why.
    pub rows: Vec<(StoredEvent<'a>, Standing, &'a str)>,
    /// Those the worker said nothing about.
    pub returned: Vec<u64>,
    /// The last reason given.
    pub last_error: Option<&'a str>,
}

impl<'a> Sorted<'a> {
    /// Sorts the events of a claim.
    pub fn new(batch: &'a Batch, fates: &'a Fates) -> Self {
        let mut sorted = Self::default();
        let each = match fates {
            Fates::AllDelivered => None,
            Fates::Each(each) => Some(each),
        };
        for (index, event) in batch.events.iter().enumerate() {
            let fate = each.map_or(Some(&Fate::Delivered), |each| each.get(index));
            match fate {
                Some(Fate::Delivered) => sorted.ends.push((event, End::Delivered)),
                Some(Fate::Skipped) => sorted.ends.push((event, End::Skipped)),
                Some(Fate::Dropped { reason }) => {
                    sorted.ends.push((event, End::Dropped));
                    sorted.last_error = Some(reason);
                }
                Some(fate) => {
                    if let Some((standing, reason)) = Standing::of(fate) {
                        sorted.rows.push((event, standing, reason));
                        sorted.last_error = Some(reason);
                    }
                }
                None => sorted.returned.push(event.offset),
            }
        }
        sorted
    }

    /// Those that were dropped.
    pub fn dropped(&self) -> Vec<u64> {
        let dropped = self.ends.iter().filter(|(_, end)| *end == End::Dropped);
        dropped.map(|(event, _)| event.offset).collect()
    }

    /// The sum of those that are done with.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.ends.iter().for_each(|(_, end)| tally.add(*end));
        tally
    }
}

/// The record that parks an event; an error is one that cannot be encoded.
pub fn park(
    sink: &str,
    event: &StoredEvent<'_>,
    standing: Standing,
    reason: &str,
    now: Micros,
    key: Option<u64>,
) -> Result<Entry, String> {
    let row = codec::Row {
        sink: sink.to_owned(),
        offset: event.offset,
        is_dead: standing.is_dead,
        attempts: standing.attempts,
        due_at: standing.due_at,
        first_failed_at: now.0,
        last_failed_at: now.0,
        reason: cut(reason).to_owned(),
        accepted_at: event.accepted_at.0,
    };
    let record = codec::encode_row(&RowRecord::Parked(row), event.json)?;
    Ok(Entry { offset: event.offset, effect: Effect::Parked(standing, key), record })
}

/// The record that changes a row, after a failure at a time for a reason or without one.
pub fn change(
    sink: &str,
    offset: u64,
    standing: Standing,
    failure: Option<(Micros, &str)>,
) -> Result<Entry, String> {
    let change = Change {
        sink: sink.to_owned(),
        offset,
        is_dead: standing.is_dead,
        attempts: standing.attempts,
        due_at: standing.due_at,
        failure: failure.map(|(at, reason)| (at.0, cut(reason).to_owned())),
    };
    let cause = if failure.is_some() { Cause::Failure } else { Cause::Redrive };
    let record = codec::encode_row(&RowRecord::Changed(change), b"")?;
    Ok(Entry { offset, effect: Effect::Changed(standing, cause), record })
}

/// The record that ends a row.
pub fn end(sink: &str, offset: u64, end: End) -> Result<Entry, String> {
    let record = codec::encode_row(&RowRecord::Gone { sink: sink.to_owned(), offset, end }, b"")?;
    Ok(Entry { offset, effect: Effect::Gone(end), record })
}

impl Settling {
    /// What its records will take in the failure table.
    pub fn cost(&self) -> u64 {
        self.entries.iter().map(|entry| record_cost(entry.record.len() as u64)).sum()
    }

    /// Makes it hold. `places` are those of its records, which are durable.
    pub fn apply(self, progress: &mut SinkProgress, places: &[u64]) {
        for (entry, place) in self.entries.iter().zip(places) {
            apply(progress, entry, *place);
        }
        if let Some(claimed) = self.claimed {
            claimed.apply(progress);
        }
        progress.order.settle(self.keys);
    }
}

fn apply(progress: &mut SinkProgress, entry: &Entry, place: u64) {
    match entry.effect {
        Effect::Parked(Standing { is_dead, attempts, due_at }, key) => {
            let bytes = entry.record.len() as u32;
            let row = Row { place, told: place, is_dead, attempts, due_at, bytes };
            progress.rows.insert(entry.offset, row);
            if let Some(key) = key {
                progress.rows.link(entry.offset, key);
                progress.order.parked(key);
            }
        }
        Effect::Changed(standing, cause) => progress.rows.change(entry.offset, |row| {
            (row.is_dead, row.attempts, row.due_at) = (standing.is_dead, standing.attempts, standing.due_at);
            if cause == Cause::Failure {
                row.told = place;
            }
        }),
        Effect::Gone(end) => {
            if progress.rows.remove(entry.offset).is_some() {
                progress.tally.add(end);
                progress.dropped.remove(entry.offset..entry.offset + 1);
                if end == End::Dropped {
                    progress.dropped.insert(entry.offset);
                }
            }
        }
    }
}

impl Claimed {
    /// Ends the claim: what goes back does, the rest is finished and counted.
    pub fn apply(self, progress: &mut SinkProgress) {
        let Claimed { mut owned, returned, tally, dropped, token } = self;
        for offset in &returned {
            owned.remove(*offset..offset + 1);
            let given_back = progress.window.give_back(*offset..offset + 1);
            debug_assert!(given_back, "a claim is settled once");
        }
        for range in owned.iter() {
            progress.dropped.remove(range.clone());
            let finished = progress.window.finish(range);
            debug_assert!(finished, "a claim is settled once");
        }
        progress.rows.passed(progress.window.acked());
        dropped.into_iter().for_each(|offset| progress.dropped.insert(offset));
        progress.tally.delivered += tally.delivered;
        progress.tally.dropped += tally.dropped;
        progress.tally.skipped += tally.skipped;
        if token.is_some() {
            progress.token = token;
        }
    }
}

/// A reason at most as long as a row keeps.
fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}
