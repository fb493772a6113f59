//! Whose fault a failure is: the event's, or its target's (an endpoint, a program).
//!
//! What failed without a clear word (500, a reset, an exit, silence) may have met a broken target or
//! be a poison event. The first must cost no event an attempt, the second must not hold up the
//! events behind it. What gets through tells them apart:
//!
//! * Something got through less than [`EVIDENCE`] ago: the event is at fault. But a target that
//!   begins to fail has just worked, too; so only [`CREDIT`] new events in a row are blamed.
//! * An event that failed before fails again, and every new one since got through: the event is at fault,
//!   however long ago that was. So a quiet stream does not stop for the poison it left behind.
//! * Nothing did: the target is at fault. An event that stood in front [`PATIENCE`] times in vain is
//!   blamed all the same, so that a poison event with nothing good behind it is passed in the end;
//!   as long as that helps nothing, the next one has to stand twice as often, and so on.
//!
//! Pure code: the time comes in as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// For how long something that got through proves that the endpoint works.
const EVIDENCE: Duration = Duration::from_secs(5);
/// How many new events in a row may fail before the endpoint is doubted.
const CREDIT: u32 = 16;
/// How often an event stands in front in vain before it is let past.
const PATIENCE: u32 = 3;
/// How often that number doubles at most.
const MOST_DOUBLINGS: u32 = 5;

/// What speaks for and against one endpoint.
#[derive(Debug, Default)]
pub(super) struct Blame {
    worked_at: Option<Instant>,
    credit: u32,
    /// The highest offset that was judged: what is above it is new, what is below comes again.
    highest: Option<u64>,
    /// Who stood in front in vain last, and how often in a row.
    suspect: Option<(u64, u32)>,
    /// How many were let past since something got through.
    let_past: u32,
}

impl Blame {
    /// The endpoint took events up to `offset`, or refused them with a clear word: it works.
    pub(super) fn worked(&mut self, offset: u64, now: Instant) {
        self.highest = self.highest.max(Some(offset));
        *self = Self { worked_at: Some(now), credit: CREDIT, highest: self.highest, ..Self::default() };
    }

    /// Whether the event that failed alone is to blame, as far as one can tell by now.
    pub(super) fn is_the_events(&mut self, offset: u64, in_front: bool, now: Instant) -> bool {
        let is_new = self.highest.is_none_or(|highest| offset > highest);
        self.highest = self.highest.max(Some(offset));
        let credit = self.credit;
        if is_new {
            self.credit = credit.saturating_sub(1);
        } else if credit == CREDIT {
            return true;
        }
        if credit > 0 && self.worked_at.is_some_and(|at| now.duration_since(at) < EVIDENCE) {
            return true;
        }
        let patience = PATIENCE << self.let_past.min(MOST_DOUBLINGS);
        if in_front && self.strikes(offset) >= patience {
            self.let_past = self.let_past.saturating_add(1);
            self.suspect = None;
            return true;
        }
        false
    }

    /// A delivery with this event in front got nothing through.
    pub(super) fn stood_in_vain(&mut self, offset: u64) {
        self.suspect = Some((offset, self.strikes(offset).saturating_add(1)));
    }

    fn strikes(&self, offset: u64) -> u32 {
        self.suspect.filter(|(suspect, _)| *suspect == offset).map_or(0, |(_, strikes)| strikes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many deliveries in vain it takes until this event is let past.
    fn vain(blame: &mut Blame, offset: u64, now: Instant) -> u32 {
        (0..)
            .find(|_| {
                let blamed = blame.is_the_events(offset, true, now);
                if !blamed {
                    blame.stood_in_vain(offset);
                }
                blamed
            })
            .expect("every event is let past at some time")
    }

    #[test]
    fn where_others_get_through_the_event_is_at_fault_for_ever() {
        let (mut blame, now) = (Blame::default(), Instant::now());
        for offset in (0..10_000).step_by(2) {
            blame.worked(offset, now);
            assert!(blame.is_the_events(offset + 1, false, now));
            // Poison that comes again, many times, says nothing about the endpoint.
            assert!((0..offset.min(50)).all(|again| blame.is_the_events(again, false, now)));
        }
    }

    #[test]
    fn where_nothing_gets_through_the_endpoint_is() {
        let (mut blame, now) = (Blame::default(), Instant::now());
        assert!(!blame.is_the_events(0, true, now), "an endpoint that never worked");
        blame.worked(0, now);
        let blamed = (1..1000).filter(|offset| blame.is_the_events(*offset, true, now)).count();
        assert_eq!(blamed, CREDIT as usize);
        blame.worked(1000, now);
        assert!(blame.is_the_events(5, true, now + EVIDENCE * 100), "it failed before, and no new one did");
        assert!(!blame.is_the_events(1001, true, now + EVIDENCE), "old proof is none for a new one");
        assert!(blame.is_the_events(1001, true, now), "fresh proof is");
        assert!(!blame.is_the_events(5, true, now + EVIDENCE), "nor for any, once a new one failed");
    }

    #[test]
    fn a_poison_event_alone_is_let_past_and_an_endpoint_that_is_down_uses_few_attempts() {
        let (mut blame, now) = (Blame::default(), Instant::now());
        let waits: Vec<u32> = (0..8).map(|offset| vain(&mut blame, offset, now)).collect();
        assert_eq!(waits, [3, 6, 12, 24, 48, 96, 96, 96]);
        blame.worked(8, now);
        assert_eq!(vain(&mut blame, 9, now + EVIDENCE), 3, "something got through: patience starts over");
    }
}
