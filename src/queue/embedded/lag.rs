//! Since when the oldest event of each sink waits: the one number of a look that the disk is asked for.
//!
//! Runs on the caller's thread, which a read may block. An event that cannot be read, or was freed
//! meanwhile, is none.

use std::collections::BTreeMap;

use crate::event::Micros;

use super::ranges::RangeSet;
use super::state::Shared;
use super::window::Window;

/// When each sink's oldest pending event was accepted.
pub fn pending_since(shared: &Shared) -> Vec<Option<Micros>> {
    let oldest: Vec<Option<u64>> = {
        let state = shared.state();
        let durable_end = shared.log.durable_end();
        state.sinks.iter().map(|sink| oldest_pending(&sink.window, &state.voids, durable_end)).collect()
    };
    // Sinks that keep up with each other wait for the same event.
    let mut accepted_at: BTreeMap<u64, Option<Micros>> = BTreeMap::new();
    let mut read = |offset| *accepted_at.entry(offset).or_insert_with(|| read_time(shared, offset));
    oldest.into_iter().map(|offset| offset.and_then(&mut read)).collect()
}

/// The lowest offset that holds an event and is not finished.
fn oldest_pending(window: &Window, voids: &RangeSet, durable_end: u64) -> Option<u64> {
    let end_of =
        |set: &RangeSet, offset| set.iter().find(|range| range.contains(&offset)).map(|range| range.end);
    let mut offset = window.acked();
    while offset < durable_end {
        match end_of(voids, offset).or_else(|| end_of(window.finished(), offset)) {
            Some(end) => offset = end,
            None => return Some(offset),
        }
    }
    None
}

fn read_time(shared: &Shared, offset: u64) -> Option<Micros> {
    let chunk = shared.log.reader(offset).read(1, 1).ok()?;
    chunk.records.first().map(|record| Micros(record.accepted_at_micros))
}
