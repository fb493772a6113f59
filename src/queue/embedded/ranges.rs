//! A set of offsets kept as ranges: pure, no I/O.
//!
//! A million offsets in a row cost one entry, so everything the queue remembers about progress
//! grows with the number of gaps and not with the number of events.

use std::collections::BTreeMap;
use std::ops::Range;

/// Offsets as disjoint ranges that never touch each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end. Invariant: no range is empty, none touches the next.
    ranges: BTreeMap<u64, u64>,
    /// Sum of all lengths.
    total: u64,
}

impl RangeSet {
    /// Adds every offset of `range`.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Take out whatever overlaps or touches, then put the union back. Going backwards from
        // `end` sees each candidate once, because ranges are disjoint and sorted.
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.ranges.remove(&s);
            self.total -= e - s;
            (start, end) = (start.min(s), end.max(e));
        }
        self.ranges.insert(start, end);
        self.total += end - start;
    }

    /// Takes every offset of `range` out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..range.end).next_back() {
            if e <= range.start {
                break;
            }
            self.ranges.remove(&s);
            self.total -= e - s;
            for (s, e) in [(s, range.start), (range.end, e)] {
                if s < e {
                    self.ranges.insert(s, e);
                    self.total += e - s;
                }
            }
        }
    }

    /// Takes the lowest offsets out, at most `max` of them in one range.
    pub fn take_first(&mut self, max: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.ranges.first_key_value()?;
        let taken = start..end.min(start.saturating_add(max));
        self.remove(taken.clone());
        Some(taken)
    }

    /// Whether every offset of `range` is in the set.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        range.is_empty()
            || self.ranges.range(..=range.start).next_back().is_some_and(|(_, &end)| end >= range.end)
    }

    /// Whether `offset` is in the set.
    pub fn contains(&self, offset: u64) -> bool {
        self.ranges.range(..=offset).next_back().is_some_and(|(_, &end)| end > offset)
    }

    /// The parts of the set inside `range`, ascending.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let before = self.ranges.range(..range.start).next_back();
        let inside = self.ranges.range(range.start..range.end.max(range.start));
        before
            .into_iter()
            .chain(inside)
            .map(move |(&s, &e)| s.max(range.start)..e.min(range.end))
            .filter(|part| !part.is_empty())
    }

    /// How many offsets of `range` are in the set.
    pub fn overlap(&self, range: Range<u64>) -> u64 {
        self.within(range).map(|part| part.end - part.start).sum()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&s, &e)| s..e)
    }

    /// The lowest range.
    pub fn first(&self) -> Option<Range<u64>> {
        self.ranges.first_key_value().map(|(&s, &e)| s..e)
    }

    /// The highest range.
    pub fn last(&self) -> Option<Range<u64>> {
        self.ranges.last_key_value().map(|(&s, &e)| s..e)
    }

    /// How many offsets the set holds.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many ranges it takes.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }
}

impl FromIterator<Range<u64>> for RangeSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_single_offsets(
            steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..60),
            probe in (0u64..80, 0u64..30),
        ) {
            let mut set = RangeSet::default();
            let mut model = BTreeSet::new();
            for (insert, start, len) in steps {
                if insert {
                    set.insert(start..start + len);
                    model.extend(start..start + len);
                } else {
                    set.remove(start..start + len);
                    model.retain(|o| !(start..start + len).contains(o));
                }
                prop_assert_eq!(set.total(), model.len() as u64);
                prop_assert_eq!(set.iter().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                // No two ranges touch: the entry count is the number of gaps.
                let ranges: Vec<_> = set.iter().collect();
                prop_assert!(ranges.windows(2).all(|w| w[0].end < w[1].start));
            }
            let range = probe.0..probe.0 + probe.1;
            let inside: Vec<_> = model.range(range.clone()).copied().collect();
            prop_assert_eq!(set.within(range.clone()).flatten().collect::<Vec<_>>(), inside.clone());
            prop_assert_eq!(set.overlap(range.clone()), inside.len() as u64);
            prop_assert_eq!(set.covers(&range), inside.len() as u64 == probe.1);
            prop_assert_eq!(set.contains(probe.0), model.contains(&probe.0));
        }
    }
}
