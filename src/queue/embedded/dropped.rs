//! Which finished events of one sink were dropped and not delivered. Pure, no I/O, no clock.
//!
//! Kept for as long as the log holds them, as ranges, and at most [`MAX_RANGES`] of them: beyond that the
//! lowest are forgotten, and of what is below nobody says any more which it was. The ledger keeps the set in a
//! record of its own, beside the checkpoint, with the number of drops that it goes with; a set that does
//! not go with the checkpoint (a crash tore them apart, damage, an older program) is not believed either.
//! Runs under the lock of `state`.

use std::ops::Range;

use super::codec;
use super::ranges::RangeSet;

/// Ranges kept, so that a record stays small.
pub const MAX_RANGES: usize = 256;

/// The set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dropped {
    offsets: RangeSet,
    /// Of what is finished below, and not in the set, nobody knows.
    unsure_below: u64,
    /// The generation of its last change.
    pub changed: u64,
    has_news: bool,
}

/// How a finished event was finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It was not dropped.
    Delivered,
    /// It was.
    Dropped,
    /// One of the two.
    Unknown,
}

impl Dropped {
    /// The set as the ledger knew it, where that goes with a checkpoint that counts so many drops; else nothing is
    /// known of what is below `end`.
    pub fn resume(known: Option<&codec::Dropped>, counted: u64, end: u64) -> Self {
        let blank = codec::Dropped::default();
        let mut dropped = Self::default();
        match known.or((counted == 0).then_some(&blank)).filter(|known| known.counted == counted) {
            Some(known) => {
                let ranges = known.ranges.iter().filter(|(start, end)| start < end);
                dropped.offsets = ranges.map(|(start, end)| *start..*end).collect();
                dropped.unsure_below = known.unsure_below;
            }
            None => dropped.forget_below(end),
        }
        dropped
    }

    /// Nothing is known any more of what is below, but that what is in the set was dropped.
    pub fn forget_below(&mut self, end: u64) {
        self.unsure_below = self.unsure_below.max(end);
        self.has_news = true;
    }

    /// An event was dropped.
    pub fn insert(&mut self, offset: u64) {
        self.offsets.insert(offset..offset + 1);
        self.has_news = true;
        while self.offsets.len() > MAX_RANGES
            && let Some(lowest) = self.offsets.first()
        {
            self.unsure_below = self.unsure_below.max(lowest.end);
            self.offsets.remove(lowest);
        }
    }

    /// Events came to another end: a crash had forgotten that they were dropped.
    pub fn remove(&mut self, range: Range<u64>) {
        if self.offsets.overlap(range.clone()) > 0 {
            self.offsets.remove(range);
            self.has_news = true;
        }
    }

    /// The log let go of everything below, and nobody asks any more.
    pub fn release_below(&mut self, offset: u64) {
        if self.offsets.first().is_some_and(|first| first.start < offset) {
            self.offsets.remove(0..offset);
        }
    }

    /// How an event was finished that is.
    pub fn how(&self, offset: u64) -> How {
        match self.offsets.contains(offset) {
            true => How::Dropped,
            false if offset < self.unsure_below => How::Unknown,
            false => How::Delivered,
        }
    }

    /// Whether it changed since it was asked last.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// What the ledger keeps, when the sink's checkpoint counts so many drops; nothing where nothing was dropped.
    pub fn record(&self, sink: &str, counted: u64) -> Option<codec::Dropped> {
        (counted > 0 || self.unsure_below > 0).then(|| codec::Dropped {
            sink: sink.to_owned(),
            counted,
            unsure_below: self.unsure_below,
            ranges: self.offsets.iter().map(|range| (range.start, range.end)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_unknown_and_never_called_delivered() {
        let mut dropped = Dropped::default();
        let offsets = || (0..2 * (MAX_RANGES as u64 + 10)).step_by(2);
        offsets().for_each(|offset| dropped.insert(offset));
        assert_eq!((dropped.offsets.len(), dropped.unsure_below), (MAX_RANGES, 19));
        for offset in offsets() {
            let how = if offset < 19 { How::Unknown } else { How::Dropped };
            assert_eq!(dropped.how(offset), how, "{offset}");
        }
        assert_eq!((dropped.how(17), dropped.how(19)), (How::Unknown, How::Delivered));
        let record = dropped.record("a", 266).unwrap();
        assert_eq!(Dropped::resume(Some(&record), 266, 1000).how(20), How::Dropped);
        dropped.remove(20..21);
        dropped.release_below(30);
        assert_eq!((dropped.how(20), dropped.offsets.first()), (How::Delivered, Some(30..31)));
    }

    #[test]
    fn a_set_that_does_not_go_with_its_checkpoint_is_not_believed() {
        let mut dropped = Dropped::default();
        dropped.insert(3);
        let record = dropped.record("a", 1).unwrap();
        let how = |known, counted| Dropped::resume(known, counted, 9).how(5);
        assert_eq!(how(Some(&record), 1), How::Delivered);
        assert_eq!(how(Some(&record), 2), How::Unknown);
        assert_eq!(how(None, 2), How::Unknown, "an older program kept none");
        assert_eq!(how(None, 0), How::Delivered);
        assert_eq!(Dropped::default().record("a", 0), None);
    }
}
