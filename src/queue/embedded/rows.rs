//! The failure rows of one sink, without their events: pure, no I/O, no clock.
//!
//! A row here is where its records are and when it is due, some hundred bytes, so that a hundred
//! thousand of them cost little and their events nothing.
//!
//! Invariant: a row is in `due` when it will be tried again, nobody holds it and no row of its key
//! comes before it; a held row is being tried or changed, and nobody else touches it meanwhile.
//!
//! A power loss can keep a row that waits and lose one before it, whose event is then in the log as ever. So
//! a row with a key that was not tried before a start is `early`, and not in `due`, until the sink is done with
//! all of the log before it. One that was tried is not: what is before it had come through by then.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// What a row takes in its log beside its record: table entry, its part of a frame's header, filling.
const FRAME_SHARE_BYTES: u64 = 104;

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Place of the record with its event.
    pub place: u64,
    /// Place of the record with its last failure; the same one until it changes.
    pub told: u64,
    /// Given up.
    pub is_dead: bool,
    /// Attempts made.
    pub attempts: u32,
    /// When it is tried again, microseconds since the Unix epoch.
    pub due_at: i64,
    /// Length of the record with its event.
    pub bytes: u32,
}

impl Row {
    /// What it takes in its log.
    pub fn cost(&self) -> u64 {
        record_cost(u64::from(self.bytes))
    }
}

/// What a record of so many bytes takes in its log, frame and filling included.
pub fn record_cost(bytes: u64) -> u64 {
    bytes + FRAME_SHARE_BYTES
}

/// All rows of a sink.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    rows: BTreeMap<u64, Row>,
    due: BTreeSet<(i64, u64)>,
    held: BTreeSet<u64>,
    /// The keys of rows that have one and will be tried again, and the rows of each key by offset.
    keys: BTreeMap<u64, u64>,
    chains: BTreeSet<(u64, u64)>,
    /// Rows that the log may hold something for that comes before them.
    early: BTreeSet<u64>,
    dead: u64,
    cost: u64,
}

impl Rows {
    /// Adds a row, or puts it in the place of the one there is.
    pub fn insert(&mut self, offset: u64, row: Row) {
        self.remove(offset);
        self.rows.insert(offset, row);
        self.dead += u64::from(row.is_dead);
        self.cost += row.cost();
        self.offer(offset);
    }

    /// The same for a row found at a start, when the sink is done with everything below `acked`.
    pub fn link_found(&mut self, offset: u64, key: u64, acked: u64) {
        self.link(offset, key);
        if let Some(row) = self.rows.get(&offset).filter(|row| row.attempts == 0 && offset >= acked) {
            self.due.remove(&(row.due_at, offset));
            self.early.insert(offset);
        }
    }

    /// The sink is done with everything below `acked`, so what is there is not early any more.
    pub fn passed(&mut self, acked: u64) {
        while let Some(offset) = self.early.first().copied().filter(|offset| *offset < acked) {
            self.early.pop_first();
            self.offer(offset);
        }
    }

    /// Whether nothing can be tried but what is early.
    pub fn has_only_early(&self) -> bool {
        self.due.is_empty() && self.held.is_empty() && !self.early.is_empty()
    }

    /// Lets a row that will be tried again wait for those of its key that come before it.
    pub fn link(&mut self, offset: u64, key: u64) {
        if self.rows.get(&offset).is_none_or(|row| row.is_dead) {
            return;
        }
        let was_first = self.first_of(key);
        self.keys.insert(offset, key);
        self.chains.insert((key, offset));
        let first = self.first_of(key);
        // Whoever is not the first of its key, or not any more, is not to be tried.
        for other in was_first.into_iter().chain([offset]).filter(|other| first != Some(*other)) {
            if let Some(row) = self.rows.get(&other) {
                self.due.remove(&(row.due_at, other));
            }
        }
    }

    /// Takes a row out.
    pub fn remove(&mut self, offset: u64) -> Option<Row> {
        let row = self.rows.remove(&offset)?;
        self.due.remove(&(row.due_at, offset));
        self.held.remove(&offset);
        self.dead -= u64::from(row.is_dead);
        self.cost -= row.cost();
        self.early.remove(&offset);
        self.unlink(offset);
        Some(row)
    }

    /// Changes a row and lets it go; nothing when there is none.
    pub fn change(&mut self, offset: u64, change: impl FnOnce(&mut Row)) {
        let Some(row) = self.rows.get_mut(&offset) else { return };
        self.due.remove(&(row.due_at, offset));
        self.held.remove(&offset);
        self.dead -= u64::from(row.is_dead);
        self.cost -= row.cost();
        change(row);
        let row = *row;
        self.dead += u64::from(row.is_dead);
        self.cost += row.cost();
        if row.is_dead {
            self.unlink(offset); // given up, it holds up nobody; redriven, it stands for itself
        }
        self.offer(offset);
    }

    /// Whether a row of this key will be tried again.
    pub fn has_key(&self, key: u64) -> bool {
        self.first_of(key).is_some()
    }

    fn first_of(&self, key: u64) -> Option<u64> {
        self.chains.range((key, 0)..=(key, u64::MAX)).next().map(|(_, offset)| *offset)
    }

    fn unlink(&mut self, offset: u64) {
        let Some(key) = self.keys.remove(&offset) else { return };
        self.chains.remove(&(key, offset));
        if let Some(next) = self.first_of(key) {
            self.offer(next);
        }
    }

    /// Puts a row where it is found when it is due, unless it is dead, held or behind another.
    fn offer(&mut self, offset: u64) {
        let Some(row) = self.rows.get(&offset) else { return };
        let is_behind = self.keys.get(&offset).is_some_and(|key| self.first_of(*key) != Some(offset));
        let must_wait = is_behind || self.early.contains(&offset);
        if !row.is_dead && !self.held.contains(&offset) && !must_wait {
            self.due.insert((row.due_at, offset));
        }
    }

    /// Notes where a row's record was written anew, whoever holds the row.
    pub fn moved(&mut self, offset: u64, to: u64, bytes: u32) {
        if let Some(row) = self.rows.get_mut(&offset) {
            self.cost -= row.cost();
            (row.place, row.told, row.bytes) = (to, to, bytes);
            self.cost += row.cost();
        }
    }

    /// The row of an event.
    pub fn get(&self, offset: u64) -> Option<&Row> {
        self.rows.get(&offset)
    }

    /// Takes hold of rows that are due at `now`, the longest due first: at most `events` of them, and at
    /// most `bytes` of records but always one. Ascending by offset.
    pub fn take_due(&mut self, now: i64, events: usize, bytes: usize) -> Vec<(u64, Row)> {
        let (mut taken, mut sum) = (Vec::new(), 0);
        while let Some(&(due_at, offset)) = self.due.first() {
            let Some(row) = self.rows.get(&offset) else { break };
            sum += row.bytes as usize;
            let is_over = taken.len() >= events || (sum > bytes && !taken.is_empty());
            if due_at > now || is_over {
                break;
            }
            taken.push((offset, *row));
            self.due.pop_first();
            self.held.insert(offset);
        }
        taken.sort_unstable_by_key(|(offset, _)| *offset);
        taken
    }

    /// Takes hold of a row to change it; `false` when there is none, or somebody holds it.
    pub fn hold(&mut self, offset: u64) -> bool {
        let Some(row) = self.rows.get(&offset) else { return false };
        self.due.remove(&(row.due_at, offset));
        self.held.insert(offset)
    }

    /// Lets a held row go unchanged.
    pub fn give_back(&mut self, offset: u64) {
        if self.held.remove(&offset) {
            self.offer(offset);
        }
    }

    /// When the next row is due that nobody holds.
    pub fn next_due(&self) -> Option<i64> {
        self.due.first().map(|(due_at, _)| *due_at)
    }

    /// The rows behind an offset, ascending; all of them without one.
    pub fn after(&self, offset: Option<u64>) -> impl Iterator<Item = (u64, &Row)> {
        let from = offset.map_or(Bound::Unbounded, Bound::Excluded);
        self.rows.range((from, Bound::Unbounded)).map(|(offset, row)| (*offset, row))
    }

    /// How many rows there are.
    pub fn len(&self) -> u64 {
        self.rows.len() as u64
    }

    /// Rows that were given up.
    pub fn dead(&self) -> u64 {
        self.dead
    }

    /// Rows that will be tried again, those that are being tried included.
    pub fn retrying(&self) -> u64 {
        self.len() - self.dead
    }

    /// What all rows take in their log.
    pub fn cost(&self) -> u64 {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(due_at: i64, is_dead: bool) -> Row {
        Row { place: 1, told: 1, is_dead, attempts: 1, due_at, bytes: 10 }
    }

    #[test]
    fn due_rows_are_taken_once_the_longest_due_first_and_handed_out_in_order() {
        let mut rows = Rows::default();
        for (offset, due_at) in [(1, 30), (2, 10), (3, 20), (4, 40)] {
            rows.insert(offset, row(due_at, false));
        }
        rows.insert(5, row(0, true));
        assert_eq!(rows.next_due(), Some(10));
        let offsets = |taken: Vec<(u64, Row)>| taken.iter().map(|(o, _)| *o).collect::<Vec<_>>();
        assert_eq!(offsets(rows.take_due(30, 2, 1000)), [2, 3]);
        assert_eq!(offsets(rows.take_due(30, 9, 1000)), [1], "held ones are not taken again");
        assert!(rows.take_due(30, 9, 1000).is_empty());
        rows.give_back(3);
        assert!(!rows.hold(2), "it is held");
        assert_eq!(offsets(rows.take_due(50, 9, 1)), [3], "one at least, however large");
        assert_eq!(offsets(rows.take_due(50, 9, 10)), [4]);
        assert_eq!((rows.len(), rows.dead(), rows.retrying()), (5, 1, 4));
    }

    #[test]
    fn a_change_lets_a_row_go_and_counts_follow() {
        let mut rows = Rows::default();
        rows.insert(1, row(10, false));
        assert!(rows.hold(1));
        assert_eq!(rows.next_due(), None);
        rows.change(1, |row| row.is_dead = true);
        assert_eq!((rows.dead(), rows.retrying(), rows.next_due()), (1, 0, None));
        rows.change(1, |row| (row.is_dead, row.due_at) = (false, 7));
        assert_eq!((rows.dead(), rows.retrying(), rows.next_due()), (0, 1, Some(7)));
        assert!(rows.hold(1));
        rows.moved(1, 9, 20);
        assert_eq!(rows.cost(), record_cost(20));
        assert!(rows.remove(1).is_some());
        assert_eq!((rows.len(), rows.cost(), &rows), (0, 0, &Rows::default()));
    }

    #[test]
    fn of_rows_with_one_key_the_first_is_due_and_the_next_once_it_is_gone_or_dead() {
        let mut rows = Rows::default();
        for (offset, due_at) in [(7, 10), (3, 50), (5, 20), (4, 15)] {
            rows.insert(offset, row(due_at, false));
        }
        for (offset, key) in [(7, 1), (3, 1), (5, 1), (4, 2)] {
            rows.link(offset, key);
        }
        let take = |rows: &mut Rows, now| {
            rows.take_due(now, 9, 1000).into_iter().map(|(offset, _)| offset).collect::<Vec<_>>()
        };
        assert_eq!(take(&mut rows, 40), [4], "3 is not due yet, and 5 and 7 wait for it");
        assert_eq!(rows.next_due(), Some(50));
        assert_eq!(take(&mut rows, 60), [3]);
        rows.give_back(3);
        assert_eq!(take(&mut rows, 60), [3], "whoever comes back is still the first");
        rows.change(3, |row| row.is_dead = true);
        assert_eq!(take(&mut rows, 60), [5]);
        rows.change(3, |row| (row.is_dead, row.due_at) = (false, 1));
        assert_eq!(take(&mut rows, 60), [3], "redriven, it stands for itself");
        rows.remove(5);
        assert_eq!((take(&mut rows, 60), rows.has_key(1)), (vec![7], true));
        rows.remove(7);
        assert!(!rows.has_key(1) && rows.has_key(2));
    }

    #[test]
    fn a_row_found_untried_waits_until_the_log_before_it_is_done_with() {
        let mut rows = Rows::default();
        for (offset, attempts) in [(2, 0), (5, 0), (6, 1), (7, 0)] {
            rows.insert(offset, Row { attempts, ..row(0, false) });
            rows.link_found(offset, offset, 4);
        }
        let take =
            |rows: &mut Rows| rows.take_due(9, 9, 1000).into_iter().map(|(o, _)| o).collect::<Vec<_>>();
        assert_eq!(take(&mut rows), [2, 6], "6 was tried, and 2 is behind what is done with");
        assert!(!rows.has_only_early(), "somebody holds some");
        rows.remove(2);
        rows.remove(6);
        assert!(rows.has_only_early());
        assert!(rows.hold(5));
        rows.give_back(5);
        assert_eq!(rows.next_due(), None, "it is early whoever held it");
        rows.passed(7);
        assert_eq!(take(&mut rows), [5]);
        rows.remove(7);
        assert!(!rows.has_only_early());
    }
}
