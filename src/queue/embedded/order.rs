//! Which events of one sink wait for others of their key. Pure: no I/O, no clock, no thread of its own.
//!
//! ```text
//! an event of the log, in the order of offsets
//!    ├─ one of its key is being delivered ──► held: claimed by nobody until that one is settled
//!    ├─ one of its key has a row ───────────► parked behind it, so that a retry pins no segment
//!    └─ neither ────────────────────────────► goes, and its key is out
//! ```
//!
//! Invariant: of one key, no event is handed out while one with a lower offset is out, held, or to be
//! tried again. It holds because
//!
//! * one claim of a sink at a time takes offsets and sorts them, its *turn*, and the lowest come first;
//! * a key stays out until what became of its event is durable, and then until the next turn begins: what
//!   came back during a turn has a lower offset than what that turn is sorting;
//! * of rows only the first of a key is ever due, and rows become durable in the order they were made; where a
//!   power loss keeps one and loses another before it, `rows` knows what is too early.
//!
//! Held offsets count as claimed to the window. There are at most [`MAX_HELD`], so that they neither
//! grow with the backlog nor take the window's gaps from everybody else.

use std::collections::{BTreeMap, BTreeSet};

use super::rows::Rows;
use super::window::{MAX_FRAGMENTS, Window};

/// Most events held at a time: half of the gaps that a window has.
const MAX_HELD: usize = MAX_FRAGMENTS / 2;

/// The keys of one sink.
#[derive(Debug, Default)]
pub struct Order {
    /// Keys of events that claims from the log have, or whose rows are on their way.
    out: BTreeSet<u64>,
    /// Those of them that are not any more when the next turn begins.
    settled: Vec<u64>,
    /// Rows of a key that are not durable yet: they count, although nobody finds them among the rows.
    on_their_way: BTreeMap<u64, u32>,
    /// Key by offset.
    held: BTreeMap<u64, u64>,
    /// A claim found nothing because no more can be held.
    is_stuck: bool,
}

/// What is to be done with an event of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is handed out.
    Go,
    /// It is held.
    Hold,
    /// It gets a row behind those of its key.
    Park,
    /// Neither it nor anything behind it can be claimed now.
    Stop,
}

impl Order {
    /// Whose turn it is; asked of events in the order of their offsets.
    pub fn turn(&mut self, offset: u64, key: u64, rows: &Rows) -> Turn {
        let is_held = self.held.values().any(|held| *held == key);
        if self.out.contains(&key) || is_held {
            return if self.hold(offset, key) { Turn::Hold } else { Turn::Stop };
        }
        if rows.has_key(key) || self.on_their_way.contains_key(&key) {
            return Turn::Park;
        }
        self.out.insert(key);
        Turn::Go
    }

    /// Holds an event back; `false` when there are too many.
    pub fn hold(&mut self, offset: u64, key: u64) -> bool {
        let has_room = self.held.len() < MAX_HELD;
        if has_room {
            self.held.insert(offset, key);
        }
        has_room
    }

    /// Notes that a claim found nothing it could take.
    pub fn stick(&mut self) {
        self.is_stuck = true;
    }

    /// Whether nothing can be claimed before something is settled.
    pub fn is_stuck(&self) -> bool {
        self.is_stuck
    }

    /// Notes that a row of this key is on its way to the disk.
    pub fn park(&mut self, key: u64) {
        *self.on_their_way.entry(key).or_default() += 1;
    }

    /// Notes that it is there, and found among the rows.
    pub fn parked(&mut self, key: u64) {
        if let Some(rows) = self.on_their_way.get_mut(&key) {
            *rows -= 1;
            if *rows == 0 {
                self.on_their_way.remove(&key);
            }
        }
    }

    /// Events with these keys are settled, durably where they got rows.
    pub fn settle(&mut self, keys: Vec<u64>) {
        self.settled.extend(keys);
        self.is_stuck = false;
    }

    /// Begins a turn: whoever was held for a key that is settled can be claimed again.
    pub fn begin_turn(&mut self, window: &mut Window) {
        for key in self.settled.drain(..) {
            self.out.remove(&key);
        }
        let out = &self.out;
        self.held.retain(|offset, key| {
            let stays = out.contains(key);
            if !stays {
                let given_back = window.give_back(*offset..*offset + 1);
                debug_assert!(given_back, "what is held is claimed");
            }
            stays
        });
    }

    /// Whether an event is held.
    pub fn is_held(&self, offset: u64) -> bool {
        self.held.contains_key(&offset)
    }

    /// Events held.
    pub fn held(&self) -> u64 {
        self.held.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::Row;
    use super::*;

    const KEY: u64 = 9;

    fn row(is_dead: bool) -> Row {
        Row { place: 1, told: 1, is_dead, attempts: 1, due_at: 0, bytes: 10 }
    }

    #[test]
    fn a_key_is_out_until_the_turn_after_it_was_settled() {
        let (mut order, mut window, rows) = (Order::default(), Window::resume(0, []), Rows::default());
        assert_eq!(window.claim(10, 10), Some(0..10));
        assert_eq!(order.turn(0, KEY, &rows), Turn::Go);
        assert_eq!(order.turn(1, KEY, &rows), Turn::Hold);
        assert_eq!(order.turn(2, 7, &rows), Turn::Go);
        order.settle(vec![KEY]);
        assert_eq!(order.turn(3, KEY, &rows), Turn::Hold, "1 could not be claimed yet");
        assert!(order.is_held(1));
        order.begin_turn(&mut window);
        assert_eq!(order.held(), 0);
        assert_eq!(window.claim(10, 10), Some(1..2));
        assert_eq!(order.turn(1, KEY, &rows), Turn::Go);
    }

    #[test]
    fn a_row_counts_from_the_moment_it_is_on_its_way_until_it_is_dead_or_gone() {
        let (mut order, mut rows) = (Order::default(), Rows::default());
        order.park(KEY);
        assert_eq!(order.turn(1, KEY, &rows), Turn::Park, "it is not durable yet");
        rows.insert(0, row(false));
        rows.link(0, KEY);
        order.parked(KEY);
        assert_eq!(order.turn(2, KEY, &rows), Turn::Park);
        rows.change(0, |row| row.is_dead = true);
        assert_eq!(order.turn(3, KEY, &rows), Turn::Go);
    }

    #[test]
    fn no_more_is_held_than_the_bound_and_then_nothing_is_claimed() {
        let (mut order, mut window, rows) = (Order::default(), Window::resume(0, []), Rows::default());
        assert_eq!(window.claim(1000, 1000), Some(0..1000));
        assert_eq!(order.turn(0, KEY, &rows), Turn::Go);
        for offset in 1..=MAX_HELD as u64 {
            assert_eq!(order.turn(offset, KEY, &rows), Turn::Hold);
        }
        assert_eq!(order.turn(MAX_HELD as u64 + 1, KEY, &rows), Turn::Stop);
        order.stick();
        assert!(order.is_stuck());
        order.settle(vec![KEY]);
        order.begin_turn(&mut window);
        assert_eq!((order.is_stuck(), order.held()), (false, 0));
    }
}
