//! What the outside knows of a queue: a plain list of requests, and for each sink a map from offset to
//! where the event stands. No I/O; compared with the real queue after every step, and after every crash.
//!
//! Each event walks through states that the script knows in order. After a crash it stands in one of
//! them: not before the last that was durable, and not after the last that was begun.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::queue::{EventState, FailureQuery, FailureRow, Lookup, RowState, SinkState};

use super::*;

/// Where an event stands with a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Pending,
    Retrying { attempts: u32, due_at: i64 },
    Dead { attempts: u32 },
    Delivered,
    Dropped,
    Skipped,
}

impl At {
    pub fn is_row(self) -> bool {
        matches!(self, At::Retrying { .. } | At::Dead { .. })
    }

    fn is_finished(self) -> bool {
        matches!(self, At::Delivered | At::Dropped | At::Skipped)
    }
}

/// A state an event got to: the operations before it was begun, and by when it was durable.
#[derive(Debug, Clone, Copy)]
struct Stop {
    at: At,
    begun: u64,
    durable: Option<u64>,
}

/// An event's way through one sink.
#[derive(Debug, Clone)]
pub struct Track {
    /// As the queue shows it.
    pub at: At,
    /// A worker has it, or the ledger has yet to write what became of it.
    pub is_held: bool,
    /// What became of it, once the ledger has written so.
    next: Option<At>,
    stops: Vec<Stop>,
}

impl Track {
    fn new(at: At, begun: u64) -> Self {
        Track { at, is_held: false, next: None, stops: vec![Stop { at, begun, durable: None }] }
    }

    /// It came to a state; `is_shown` at once, or by the ledger's next round.
    pub fn step(&mut self, at: At, operations: u64, is_shown: bool) {
        self.stops.push(Stop { at, begun: operations, durable: None });
        if is_shown {
            (self.at, self.is_held) = (at, false);
        } else {
            (self.next, self.is_held) = (Some(at), true);
        }
    }

    fn settle(&mut self, operations: u64) {
        if let Some(at) = self.next.take() {
            (self.at, self.is_held) = (at, false);
        }
        for stop in &mut self.stops {
            stop.durable.get_or_insert(operations);
        }
    }

    /// The states it may be in after a crash during `operation`.
    fn may(&self, operation: u64) -> impl Iterator<Item = At> + Clone + '_ {
        let is_durable = |stop: &Stop| stop.durable.is_some_and(|by| by <= operation);
        let from = self.stops.iter().rposition(is_durable).unwrap_or(0);
        let to = self.stops.iter().rposition(|stop| stop.begun <= operation).unwrap_or(0);
        self.stops[from..=to.max(from)].iter().map(|stop| stop.at)
    }
}

/// A request that was accepted, by those of its events that were new.
#[derive(Debug, Clone)]
struct Frame {
    base: u64,
    ids: Vec<u64>,
    posted: u64,
    told: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Sink {
    pub events: BTreeMap<u64, Track>,
    pub is_paused: bool,
    /// A pause or a resume that was asked for and not answered.
    pub asked: Option<bool>,
}

/// All that is known.
#[derive(Debug, Clone)]
pub struct Known {
    window: u64,
    pub next_offset: u64,
    pub ids: BTreeMap<u64, u64>,
    frames: Vec<Frame>,
    /// Requests without an answer, all of whose events are new.
    pub unanswered: Vec<Vec<u64>>,
    pub sinks: Vec<Sink>,
}

impl Known {
    pub fn new(window: u64) -> Self {
        let sinks = vec![Sink::default(); SINKS.len()];
        Known { window, next_offset: 0, ids: BTreeMap::new(), frames: vec![], unanswered: vec![], sinks }
    }

    /// A request was committed: what its answer must be.
    pub fn accept(&mut self, ids: &[u64], posted: u64, told: u64) -> Appended {
        let mut appended = Appended { first_offset: self.next_offset, ..Appended::default() };
        let mut fresh = Vec::new();
        for id in ids {
            if self.ids.range(self.next_offset.saturating_sub(self.window)..).any(|(_, known)| known == id) {
                appended.duplicates += 1;
                continue;
            }
            appended.accepted += 1;
            fresh.push(*id);
            self.add(self.next_offset, *id, posted);
            self.next_offset += 1;
        }
        self.frames.push(Frame { base: appended.first_offset, ids: fresh, posted, told });
        appended
    }

    fn add(&mut self, offset: u64, id: u64, operations: u64) {
        self.ids.insert(offset, id);
        for sink in &mut self.sinks {
            sink.events.insert(offset, Track::new(At::Pending, operations));
        }
    }

    /// The ledger has written everything.
    pub fn settle(&mut self, operations: u64) {
        self.sinks.iter_mut().flat_map(|sink| sink.events.values_mut()).for_each(|t| t.settle(operations));
    }

    /// Claims went back.
    pub fn give_back_all(&mut self) {
        let tracks = self.sinks.iter_mut().flat_map(|sink| sink.events.values_mut());
        tracks.filter(|track| track.next.is_none()).for_each(|track| track.is_held = false);
    }

    /// The power went: all of it happened before the first operation on the disk that is left.
    pub fn crashed(&mut self) {
        for stop in self.sinks.iter_mut().flat_map(|sink| sink.events.values_mut()).flat_map(|t| &mut t.stops)
        {
            (stop.begun, stop.durable) = (0, stop.durable.map(|_| 0));
        }
        for frame in &mut self.frames {
            (frame.posted, frame.told) = (0, 0);
        }
    }

    /// Every number the queue shows, and the identity.
    pub fn check(&self, house: &House) {
        let status = house.status();
        assert_eq!(status.next_offset, self.next_offset);
        assert_eq!(status.damaged_ranges, 0, "a crash damages nothing");
        for (sink, shown) in self.sinks.iter().zip(&status.sinks) {
            let count = |wanted: &dyn Fn(&Track) -> bool| {
                sink.events.values().filter(|track| wanted(track)).count() as u64
            };
            let expected = SinkStatus {
                pending: count(&|t| t.at == At::Pending),
                in_flight: count(&|t| t.at == At::Pending && t.is_held),
                retrying: count(&|t| matches!(t.at, At::Retrying { .. })),
                dead: count(&|t| matches!(t.at, At::Dead { .. })),
                delivered: count(&|t| t.at == At::Delivered),
                dropped: count(&|t| t.at == At::Dropped),
                skipped: count(&|t| t.at == At::Skipped),
                ..shown.clone()
            };
            assert_eq!(*shown, expected, "the numbers of the model are on the right");
            let sum = shown.delivered + shown.dropped + shown.dead + shown.retrying + shown.pending;
            assert_eq!(sum + shown.skipped, self.ids.len() as u64, "the identity: {shown:?}");
            let mut undone = sink.events.iter().filter(|(_, track)| track.at == At::Pending);
            let first = undone.next().map_or(self.next_offset, |(offset, _)| *offset);
            assert!(shown.acked_offset <= first, "{shown:?} is past event {first}");
            assert!(
                self.ids.range(shown.acked_offset..first).next().is_none(),
                "{shown:?} is behind {first}"
            );
            assert!(status.first_offset <= shown.acked_offset, "nothing is freed that a sink still needs");
            assert_eq!(shown.state == SinkState::Paused, sink.is_paused, "{shown:?}");
        }
    }

    /// Every row of the failure table is as the model says.
    pub fn check_rows(&self, house: &House) {
        let expected = self.sinks.iter().enumerate().flat_map(|(sink, known)| {
            let rows = known.events.iter().filter(|(_, track)| track.at.is_row());
            rows.map(move |(offset, track)| ((sink, *offset), track.at))
        });
        assert_eq!(rows(house), expected.collect(), "the rows of the model are on the right");
    }

    /// Compares a queue that came up after a crash during `operation` with what may be, and returns what
    /// is: the id of each event, and where it stands with each sink.
    pub fn verdict(&self, house: &House, operation: u64) -> BTreeMap<u64, (u64, Vec<At>)> {
        let next = house.status().next_offset;
        let rows = rows(house);
        let mut is = BTreeMap::new();
        for frame in self.frames.iter().filter(|frame| !frame.ids.is_empty()) {
            let range = frame.base..frame.base + frame.ids.len() as u64;
            let there: Vec<_> =
                range.clone().filter_map(|offset| self.look(house, &rows, offset, operation)).collect();
            let found: Vec<u64> = there.iter().map(|(id, _)| *id).collect();
            assert!(found.is_empty() || found == frame.ids, "a request in part: {found:?} of {frame:?}");
            assert!(frame.told > operation || !found.is_empty(), "acknowledged and lost: {frame:?}");
            assert!(frame.posted <= operation || found.is_empty(), "from the future: {frame:?}");
            assert!(frame.told > operation || range.end <= next, "offsets go back to {next}: {frame:?}");
            is.extend(range.zip(there));
        }
        self.look_for_unanswered(house, self.next_offset..next, &mut is);
        let known = rows.keys().all(|(_, offset)| is.contains_key(offset));
        assert!(known, "a row of an event that is not there: {rows:?}");
        is
    }

    /// An event of a known request: its id, and where it stands, which it may.
    fn look(
        &self,
        house: &House,
        rows: &BTreeMap<(usize, u64), At>,
        offset: u64,
        operation: u64,
    ) -> Option<(u64, Vec<At>)> {
        let states = match house.queue.event(offset).unwrap() {
            Lookup::NotYet | Lookup::Void => return None,
            Lookup::Released => None,
            Lookup::Found { json, sinks, .. } => {
                assert_eq!(id_of(&json), self.ids[&offset], "offset {offset} is another event");
                Some(sinks)
            }
        };
        let stand = |(number, sink): (usize, &Sink)| {
            let may = sink.events[&offset].may(operation);
            let is_pending = states.as_ref().is_some_and(|states| states[number].1 == EventState::Pending);
            let at = match rows.get(&(number, offset)) {
                Some(row) => Some(*row),
                None if is_pending => Some(At::Pending),
                None => may.clone().find(|at| at.is_finished()),
            };
            let at = at.filter(|at| may.clone().any(|may| may == *at));
            let what = || {
                format!("event {offset} of {}: {states:?} {:?}", SINKS[number], rows.get(&(number, offset)))
            };
            at.unwrap_or_else(|| panic!("{} is none of {:?}", what(), may.collect::<Vec<_>>()))
        };
        Some((self.ids[&offset], self.sinks.iter().enumerate().map(stand).collect()))
    }

    /// Requests without an answer are there whole or not at all.
    fn look_for_unanswered(&self, house: &House, range: Range<u64>, is: &mut BTreeMap<u64, (u64, Vec<At>)>) {
        let mut found = Vec::new();
        for offset in range {
            match house.queue.event(offset).unwrap() {
                Lookup::Found { json, .. } => found.push((offset, id_of(&json))),
                Lookup::Void => {}
                other => panic!("offset {offset}, that nobody was told of, is {other:?}"),
            }
        }
        let mut left = &found[..];
        for ids in &self.unanswered {
            if left.iter().map(|(_, id)| id).take(ids.len()).eq(ids) {
                assert!(
                    left[..ids.len()].windows(2).all(|pair| pair[0].0 + 1 == pair[1].0),
                    "{ids:?} torn apart"
                );
                left = &left[ids.len()..];
            }
        }
        assert_eq!(left, [], "events nobody sent, or a request in part, of {:?}", self.unanswered);
        is.extend(found.into_iter().map(|(offset, id)| (offset, (id, vec![At::Pending; SINKS.len()]))));
    }

    /// A process has come up and made durable what it found: that is what is known from now on.
    pub fn adopt(&mut self, house: &House, operation: u64, now: u64) {
        let is = self.verdict(house, operation);
        self.next_offset = house.status().next_offset;
        self.unanswered.clear();
        self.ids.retain(|offset, _| is.contains_key(offset));
        self.frames.retain(|frame| is.contains_key(&frame.base));
        for sink in &mut self.sinks {
            sink.events.retain(|offset, _| is.contains_key(offset));
        }
        for (offset, (id, at)) in is {
            if !self.ids.contains_key(&offset) {
                self.add(offset, id, now);
                self.frames.push(Frame { base: offset, ids: vec![id], posted: now, told: now });
            }
            for (sink, at) in self.sinks.iter_mut().zip(at) {
                let track = sink.events.get_mut(&offset).expect("just kept or added");
                let stop = Stop { at, begun: now, durable: Some(now) };
                (track.at, track.is_held, track.next) = (at, false, None);
                track.stops.push(stop);
            }
        }
        for (sink, shown) in self.sinks.iter_mut().zip(house.status().sinks) {
            let is_paused = shown.state == SinkState::Paused;
            let asked = sink.asked.take();
            assert!(is_paused == sink.is_paused || Some(is_paused) == asked, "{shown:?} of {asked:?}");
            sink.is_paused = is_paused;
        }
    }
}

/// What the failure table lists.
fn rows(house: &House) -> BTreeMap<(usize, u64), At> {
    let query = FailureQuery { limit: 1000, ..FailureQuery::default() };
    let page = house.queue.failures(&query).unwrap();
    assert_eq!(page.next, None, "a script makes fewer rows");
    let at = |row: &FailureRow| match row.state {
        RowState::Retrying => At::Retrying { attempts: row.attempts, due_at: row.due_at.unwrap().0 },
        RowState::Dead => At::Dead { attempts: row.attempts },
    };
    page.rows.iter().map(|row| ((usize::from(row.sink.0), row.offset), at(row))).collect()
}
