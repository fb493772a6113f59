//! Where one sink stands: claims as ranges. Pure: no I/O, no clock, no thread of its own.
//!
//! ```text
//!        acked                        next              durable end
//! ─────────┼────────────────────────────┼───────────────────┼──────► offsets
//!  done    │ finished, in flight or     │ not claimed yet   │ not readable
//!          │ returned, one of the three │                   │
//! ```
//!
//! Invariant: every offset in `acked..next` is in exactly one of `finished`, `in_flight` and
//! `returned`, and `acked` itself is never finished. Void offsets are claimed and finished like all
//! others; who counts events leaves them out.
//!
//! Memory is bounded: past [`MAX_FRAGMENTS`] gaps the cursor stands still until returned ranges have
//! been claimed again, so a sink that fails every other event cannot grow it without end.

use std::ops::Range;

use super::ranges::RangeSet;

/// Above this many separate ranges nothing new is claimed, only what came back.
pub const MAX_FRAGMENTS: usize = 128;

/// The progress of one sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Everything below is finished. Never goes back.
    acked: u64,
    /// The lowest offset that was never claimed.
    next: u64,
    in_flight: RangeSet,
    /// Finished ahead of something that is not.
    finished: RangeSet,
    /// Claimed before and come back; claimed again first.
    returned: RangeSet,
}

impl Window {
    /// A window that stands where a checkpoint says: everything below `acked` and in `finished` is
    /// done, everything else is still to be claimed.
    pub fn resume(acked: u64, finished: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut done: RangeSet = finished.into_iter().collect();
        done.insert(0..acked);
        let acked = done.first().filter(|first| first.start == 0).map_or(0, |first| first.end);
        done.remove(0..acked);
        let next = done.last().map_or(acked, |last| last.end);
        let mut returned: RangeSet = std::iter::once(acked..next).collect();
        for range in done.iter() {
            returned.remove(range);
        }
        Self { acked, next, in_flight: RangeSet::default(), finished: done, returned }
    }

    /// Claims the lowest unclaimed offsets below `durable_end`, at most `max` (at least 1) in one
    /// range.
    pub fn claim(&mut self, durable_end: u64, max: u64) -> Option<Range<u64>> {
        let max = max.max(1);
        let range = match self.returned.take_first(max) {
            Some(range) => range,
            None => {
                if self.next >= durable_end || self.is_full() {
                    return None;
                }
                let range = self.next..durable_end.min(self.next.saturating_add(max));
                self.next = range.end;
                range
            }
        };
        self.in_flight.insert(range.clone());
        Some(range)
    }

    /// Marks claimed offsets as done. `false`, and nothing changes, when they are not in flight.
    #[must_use]
    pub fn finish(&mut self, range: Range<u64>) -> bool {
        if !self.in_flight.covers(&range) {
            return false;
        }
        self.in_flight.remove(range.clone());
        self.finished.insert(range);
        if let Some(first) = self.finished.first().filter(|first| first.start == self.acked) {
            self.acked = first.end;
            self.finished.remove(first);
        }
        true
    }

    /// Takes claimed offsets back unfinished. `false`, and nothing changes, when they are not in
    /// flight.
    #[must_use]
    pub fn give_back(&mut self, range: Range<u64>) -> bool {
        if !self.in_flight.covers(&range) {
            return false;
        }
        self.in_flight.remove(range.clone());
        if range.end == self.next && !range.is_empty() {
            // The end of the claimed part: the cursor goes back, so that the next claim is whole
            // again and not cut at the seam. What lies before it and was returned goes along.
            self.next = range.start;
            if let Some(last) = self.returned.last().filter(|last| last.end == self.next) {
                self.next = last.start;
                self.returned.remove(last);
            }
        } else {
            self.returned.insert(range);
        }
        true
    }

    /// The offset below which everything is done.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The lowest offset that was never claimed.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Whether the cursor stands still until gaps are done.
    pub fn is_full(&self) -> bool {
        self.finished.len() >= MAX_FRAGMENTS
    }

    /// Ranges done above [`Window::acked`].
    pub fn finished(&self) -> &RangeSet {
        &self.finished
    }

    /// What is claimed now.
    pub fn in_flight(&self) -> &RangeSet {
        &self.in_flight
    }

    /// Events below `durable_end` that are not done, those in flight included; void offsets are no
    /// events.
    pub fn pending(&self, durable_end: u64, voids: &RangeSet) -> u64 {
        let open = durable_end.saturating_sub(self.acked) - self.finished.total();
        let open_voids = voids.overlap(self.acked..durable_end)
            - self.finished.iter().map(|range| voids.overlap(range)).sum::<u64>();
        open - open_voids
    }

    /// Events in flight; void offsets are no events.
    pub fn in_flight_events(&self, voids: &RangeSet) -> u64 {
        self.in_flight.iter().map(|range| range.end - range.start - voids.overlap(range)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum State {
        Open,
        InFlight,
        Done,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Grow(u64),
        Claim(u64),
        /// Of the nth claim: finish or give back the part that starts and ends at these shares.
        Settle {
            claim: usize,
            finish: bool,
            from: u8,
            to: u8,
        },
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..12).prop_map(Step::Grow),
            (1u64..9).prop_map(Step::Claim),
            (any::<usize>(), any::<bool>(), any::<u8>(), any::<u8>())
                .prop_map(|(claim, finish, from, to)| Step::Settle { claim, finish, from, to }),
            Just(Step::Reopen),
        ]
    }

    fn check(window: &Window, model: &BTreeMap<u64, State>, voids: &RangeSet, end: u64) {
        let count = |state| model.values().filter(|s| **s == state).count() as u64;
        let acked = model.iter().find(|(_, s)| **s != State::Done).map_or(end, |(o, _)| *o);
        assert_eq!(window.acked(), acked);
        assert_eq!(window.in_flight.total(), count(State::InFlight));
        assert_eq!(window.acked + window.finished.total(), count(State::Done));
        let pending = model.iter().filter(|(o, s)| **s != State::Done && !voids.contains(**o)).count() as u64;
        assert_eq!(window.pending(end, voids), pending);
        let flying =
            model.iter().filter(|(o, s)| **s == State::InFlight && !voids.contains(**o)).count() as u64;
        assert_eq!(window.in_flight_events(voids), flying);
        // The invariant of the module: one of the three, and nothing else below the cursor.
        let parts = window.finished.total() + window.in_flight.total() + window.returned.total();
        assert_eq!(parts, window.next - window.acked);
    }

    proptest! {
        #[test]
        fn agrees_with_a_map_of_single_offsets(
            steps in prop::collection::vec(step(), 0..120),
            voids in prop::collection::vec((0u64..200, 1u64..5), 0..6),
        ) {
            let voids: RangeSet = voids.into_iter().map(|(start, len)| start..start + len).collect();
            let mut window = Window::resume(0, []);
            let mut model = BTreeMap::new();
            let mut claims: Vec<Range<u64>> = Vec::new();
            let mut end = 0;
            for step in steps {
                match step {
                    Step::Grow(by) => {
                        model.extend((end..end + by).map(|o| (o, State::Open)));
                        end += by;
                    }
                    Step::Claim(max) => {
                        let first_open = model.iter().find(|(_, s)| **s == State::Open).map(|(o, _)| *o);
                        let claimed = window.claim(end, max);
                        // Always the lowest open offset, never one that is in flight or done.
                        prop_assert_eq!(claimed.as_ref().map(|range| range.start), first_open);
                        if let Some(range) = claimed {
                            prop_assert!(range.end - range.start <= max);
                            for offset in range.clone() {
                                prop_assert_eq!(model.insert(offset, State::InFlight), Some(State::Open));
                            }
                            claims.push(range);
                        }
                    }
                    Step::Settle { claim, finish, from, to } => {
                        if claims.is_empty() { continue; }
                        let claim = claims.swap_remove(claim % claims.len());
                        let len = claim.end - claim.start;
                        let (from, to) = (u64::from(from) % (len + 1), u64::from(to) % (len + 1));
                        let part = claim.start + from.min(to)..claim.start + from.max(to);
                        for rest in [claim.start..part.start, part.end..claim.end] {
                            if !rest.is_empty() { claims.push(rest); }
                        }
                        let state = if finish { State::Done } else { State::Open };
                        model.extend(part.clone().map(|o| (o, state)));
                        let settled = if finish { window.finish(part) } else { window.give_back(part) };
                        prop_assert!(settled);
                    }
                    Step::Reopen => {
                        // What a checkpoint keeps: the low-water mark and the finished ranges.
                        window = Window::resume(window.acked(), window.finished().iter().collect::<Vec<_>>());
                        claims.clear();
                        model.values_mut().filter(|s| **s == State::InFlight).for_each(|s| *s = State::Open);
                    }
                }
                check(&window, &model, &voids, end);
            }
        }
    }

    #[test]
    fn what_is_not_in_flight_cannot_be_settled() {
        let mut window = Window::resume(5, []);
        assert_eq!(window.claim(10, 3), Some(5..8));
        assert!(!window.finish(4..6));
        assert!(!window.give_back(7..9));
        assert!(window.finish(5..8));
        assert!(!window.finish(5..8), "a claim is settled once");
        assert_eq!(window.acked(), 8);
    }

    #[test]
    fn memory_stays_bounded_when_every_other_event_comes_back() {
        let mut window = Window::resume(0, []);
        let mut claimed_new = 0;
        for _ in 0..10_000 {
            let Some(range) = window.claim(u64::MAX, 2) else { break };
            if range.end - range.start == 2 {
                claimed_new += 1;
                assert!(window.finish(range.start + 1..range.end));
            }
            assert!(window.give_back(range.start..range.start + 1));
            assert!(window.finished.len() + window.returned.len() <= 2 * MAX_FRAGMENTS + 2);
        }
        assert!(claimed_new > 0);
    }

    #[test]
    fn a_full_window_moves_again_once_its_gaps_are_done() {
        let mut window = Window::resume(0, []);
        let mut held = Vec::new();
        while let Some(range) = window.claim(10_000, 2) {
            assert!(window.finish(range.start + 1..range.end));
            held.push(range.start..range.start + 1);
        }
        assert_eq!(window.finished.len(), MAX_FRAGMENTS);
        for range in held {
            assert!(window.finish(range));
        }
        assert_eq!(window.acked(), 2 * MAX_FRAGMENTS as u64);
        assert!(window.claim(10_000, 2).is_some());
    }
}
