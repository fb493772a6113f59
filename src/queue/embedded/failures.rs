//! Looking into the failure table: pages, single rows, the texts of rows that are due; asking for
//! redrives. Runs on the caller's thread, which reading blocks; never with the lock held.
//!
//! A row may move while it is read, because cleaning tells it again elsewhere; then it is looked up
//! anew. A row whose record is damaged is given up, told, and counted as dropped.

use std::collections::BTreeMap;
use std::io;

use tokio::sync::oneshot;

use crate::event::{Attributes, Micros};
use crate::log::{Log, ReadError};
use crate::queue::{
    FailedEvent, FailurePage, FailureQuery, FailureRow, QueueError, Redrive, RowState, Selection, SinkId,
};

use super::codec::{self, End, Indexed, Row as RowHead, RowRecord};
use super::read_failed;
use super::rows::Row;
use super::settle::{self, Settling};
use super::state::{Redriving, Shared};
use super::table::{ByPlace, told};

/// Most rows a page has.
const MAX_PAGE_ROWS: usize = 1000;
/// Effort of one page while a filter finds nothing: looking at a row in memory and in the index, and
/// reading one from the disk.
const MAX_EFFORT: usize = 20_000;
const LOOK_EFFORT: usize = 1;
const READ_EFFORT: usize = 10;
/// Times a row is looked up anew because it moved.
const MAX_MOVES: usize = 8;

/// A row and what its records say.
#[derive(Debug)]
pub(super) struct Found {
    pub offset: u64,
    pub row: Row,
    pub head: RowHead,
    pub text: Vec<u8>,
}

/// Readers of what rows are made of. Neighbouring rows have neighbouring records of each kind.
struct Records {
    events: ByPlace,
    changes: ByPlace,
}

impl Records {
    fn new(log: &Log) -> Self {
        Self { events: ByPlace::new(log), changes: ByPlace::new(log) }
    }
}

/// A page of rows.
pub(super) fn page(shared: &Shared, query: &FailureQuery) -> Result<FailurePage, QueueError> {
    let limit = query.limit.clamp(1, MAX_PAGE_ROWS);
    let at_once = if asks_for_text(query) { MAX_PAGE_ROWS } else { limit };
    let mut page = FailurePage::default();
    let mut records = Records::new(&shared.failures);
    let mut effort = 0;
    let mut after = query.after;
    loop {
        // One part at a time, so that the lock is never held for long.
        let part = next_rows(shared, query, after, at_once);
        let indexed = look_up_all(shared, query, &part);
        let Some((last, _)) = part.last() else {
            page.next = None;
            return Ok(page);
        };
        after = Some(*last);
        for ((sink, offset), row) in part {
            let known = indexed.get(&(sink, offset));
            let wanted = query.state.is_none_or(|state| state == state_of(&row))
                && known.is_none_or(|known| may_match(query, &row, known));
            effort += if wanted { READ_EFFORT } else { LOOK_EFFORT };
            let found = if wanted { find(shared, &mut records, sink, offset)? } else { None };
            if let Some(row) = found.map(|found| describe(sink, &found)).filter(|row| matches(query, row)) {
                page.rows.push(row);
            }
            if page.rows.len() >= limit || effort >= MAX_EFFORT {
                let next = Some((sink, offset));
                page.next = next.filter(|_| !next_rows(shared, query, next, 1).is_empty());
                return Ok(page);
            }
        }
    }
}

type Key = (SinkId, u64);

/// The next rows behind a key, ascending.
fn next_rows(shared: &Shared, query: &FailureQuery, after: Option<Key>, limit: usize) -> Vec<(Key, Row)> {
    let state = shared.state();
    let ids = (0..).map(SinkId);
    let sinks = ids.zip(&state.sinks).filter(|(id, _)| query.sink.is_none_or(|wanted| wanted == *id));
    let behind = sinks.filter(|(id, _)| after.is_none_or(|(sink, _)| *id >= sink));
    let rows = behind.flat_map(|(id, progress)| {
        let from = after.filter(|(sink, _)| *sink == id).map(|(_, offset)| offset);
        progress.rows.after(from).map(move |(offset, row)| ((id, offset), *row))
    });
    rows.take(limit).collect()
}

/// Whether a filter asks for what only a row's records say.
fn asks_for_text(query: &FailureQuery) -> bool {
    query.event_type.is_some()
        || query.error_contains.is_some()
        || query.failed_from.is_some()
        || query.failed_to.is_some()
}

/// What the index says about some rows, where that saves reading them.
fn look_up_all(shared: &Shared, query: &FailureQuery, part: &[(Key, Row)]) -> BTreeMap<Key, Indexed> {
    let mut indexed = BTreeMap::new();
    if !asks_for_text(query) {
        return indexed;
    }
    for of_sink in part.chunk_by(|((a, _), _), ((b, _), _)| a == b) {
        let (Some(((sink, from), _)), Some(((_, to), _))) = (of_sink.first(), of_sink.last()) else {
            continue;
        };
        let name = &shared.infos[usize::from(sink.0)].name;
        indexed
            .extend(shared.index.entries(name, *from, *to).into_iter().map(|(o, entry)| ((*sink, o), entry)));
    }
    indexed
}

/// Whether a row must be read to know if a filter wants it. The index is believed only about the very
/// records that the row has now: they never change.
fn may_match(query: &FailureQuery, row: &Row, known: &Indexed) -> bool {
    (known.place, known.told) != (row.place, row.told)
        || known.kind.as_ref().is_none_or(|kind| is_wanted(query, kind, &known.reason, known.last_failed_at))
}

/// One row with its event.
pub(super) fn one(shared: &Shared, sink: SinkId, offset: u64) -> Result<Option<FailedEvent>, QueueError> {
    let mut records = Records::new(&shared.failures);
    let found = find(shared, &mut records, sink, offset)?;
    Ok(found.map(|found| FailedEvent {
        row: describe(sink, &found),
        accepted_at: Micros(found.head.accepted_at),
        json: found.text,
    }))
}

/// Changes rows; resolves once that is durable.
pub(super) async fn redrive(
    shared: &Shared,
    sink: SinkId,
    mut selection: Selection,
    action: Redrive,
) -> Result<u64, QueueError> {
    let gone =
        || QueueError::StorageFailed(shared.failed().unwrap_or_else(|| "the ledger is gone".to_owned()));
    let _permit = shared.redrive_permits.acquire().await.map_err(|_| gone())?;
    if let Selection::Offsets(offsets) = &mut selection {
        offsets.sort_unstable();
        offsets.dedup();
    }
    let (answer, changed) = oneshot::channel();
    {
        let mut state = shared.state();
        let index = usize::from(sink.0);
        if index >= state.sinks.len() {
            return Ok(0);
        }
        state.redrives.push_back(Redriving {
            sink: index,
            selection,
            after: None,
            action,
            changed: 0,
            answer,
        });
        state.urgent = true;
    }
    shared.wake_ledger();
    if let Some(reason) = shared.failed() {
        return Err(QueueError::StorageFailed(reason));
    }
    changed.await.map_err(|_| gone())
}

/// The texts of rows that the caller holds, ascending. Rows that are gone meanwhile, and those that
/// damage took, are left out.
pub(super) fn read_held(shared: &Shared, sink: usize, offsets: &[u64]) -> Result<Vec<Found>, QueueError> {
    let mut records = Records::new(&shared.failures);
    let id = SinkId(sink as u16);
    let mut found = Vec::with_capacity(offsets.len());
    for offset in offsets {
        found.extend(find(shared, &mut records, id, *offset)?);
    }
    Ok(found)
}

/// Gives rows that will be tried again their place in the order of their sink. A row does not keep its key: what it
/// is follows from the event and the configuration of today. Once, at the opening.
pub(super) fn link_rows(shared: &Shared) -> Result<(), QueueError> {
    for (sink, info) in shared.infos.iter().enumerate() {
        let Some(order) = &info.order else { continue };
        let mut after = None;
        loop {
            let part: Vec<u64> = {
                let state = shared.state();
                let Some(progress) = state.sinks.get(sink) else { break };
                let live = progress.rows.after(after).filter(|(_, row)| !row.is_dead);
                live.map(|(offset, _)| offset).take(MAX_PAGE_ROWS).collect()
            };
            let Some(last) = part.last() else { break };
            after = Some(*last);
            let found = read_held(shared, sink, &part)?;
            let keys: Vec<_> =
                found.iter().filter_map(|found| Some((found.offset, order.key(&found.text)?))).collect();
            let mut state = shared.state();
            let Some(progress) = state.sinks.get_mut(sink) else { break };
            let acked = progress.window.acked();
            keys.into_iter().for_each(|(offset, key)| progress.rows.link_found(offset, key, acked));
        }
    }
    Ok(())
}

/// Reads a row, wherever it is by now; `None` when there is none.
fn find(
    shared: &Shared,
    records: &mut Records,
    sink: SinkId,
    offset: u64,
) -> Result<Option<Found>, QueueError> {
    let index = usize::from(sink.0);
    let look_up = || shared.state().sinks.get(index).and_then(|progress| progress.rows.get(offset).copied());
    for _ in 0..MAX_MOVES {
        let Some(row) = look_up() else { return Ok(None) };
        let record = match records.events.record(row.place) {
            Ok(record) => record,
            Err(ReadError::Released { .. }) => continue,
            Err(error) => return Err(read_failed(error, offset)),
        };
        if let Some(record) = record
            && let Ok((RowRecord::Parked(head) | RowRecord::Kept(head), text)) = codec::decode_row(&record)
            && (&head.sink, head.offset) == (&shared.infos[index].name, offset)
        {
            let head = told(&mut records.changes, head, &row);
            return Ok(Some(Found { offset, row, head, text: text.to_vec() }));
        }
        if look_up().is_some_and(|now| now.place == row.place) {
            give_up(shared, index, offset);
            return Ok(None);
        }
    }
    let source = io::Error::other("the row moves faster than it can be read");
    Err(QueueError::Read { offset, source })
}

/// Damage took a row's event: it is told, and counted as dropped.
fn give_up(shared: &Shared, sink: usize, offset: u64) {
    let name = &shared.infos[sink].name;
    let Ok(entry) = settle::end(name, offset, End::Dropped) else { return };
    let mut state = shared.state();
    let Some(progress) = state.sinks.get_mut(sink) else { return };
    if !progress.rows.hold(offset) && progress.rows.get(offset).is_none() {
        return;
    }
    tracing::error!(
        sink = name,
        offset,
        "damage took an event of the failure table; it is counted as dropped"
    );
    state.damaged_ranges += 1;
    state.generation += 1;
    state.findings_changed = state.generation;
    shared
        .push_settling(&mut state, Settling { sink, claimed: None, entries: vec![entry], keys: Vec::new() });
}

pub(super) fn state_of(row: &Row) -> RowState {
    if row.is_dead { RowState::Dead } else { RowState::Retrying }
}

pub(super) fn describe(sink: SinkId, found: &Found) -> FailureRow {
    let Found { offset, row, head, text } = found;
    // What was accepted has them; should they be unreadable, the row is shown all the same.
    let attributes = Attributes::of(text).unwrap_or_default();
    FailureRow {
        sink,
        offset: *offset,
        state: state_of(row),
        attempts: row.attempts,
        first_failed_at: Micros(head.first_failed_at),
        last_failed_at: Micros(head.last_failed_at),
        due_at: (!row.is_dead).then_some(Micros(row.due_at)),
        error: head.reason.clone(),
        id: attributes.id.into_owned(),
        source: attributes.source.into_owned(),
        kind: attributes.event_type.into_owned(),
        bytes: text.len() as u64,
    }
}

pub(super) fn matches(query: &FailureQuery, row: &FailureRow) -> bool {
    query.state.is_none_or(|state| state == row.state)
        && is_wanted(query, &row.kind, &row.error, row.last_failed_at.0)
}

fn is_wanted(query: &FailureQuery, kind: &str, error: &str, last_failed_at: i64) -> bool {
    query.event_type.as_ref().is_none_or(|glob| glob.is_match(kind))
        && query.error_contains.as_ref().is_none_or(|text| error.contains(text))
        && query.failed_from.is_none_or(|from| last_failed_at >= from.0)
        && query.failed_to.is_none_or(|to| last_failed_at < to.0)
}
