//! Which events of a claim a sink gets, and which of them wait for one another. Pure.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use crate::config::{Filter, OrderBy, SinkConfig};
use crate::event::Attributes;
use crate::queue::KeyOf;
use crate::sink::Batch;

/// The part of a batch that a filter lets through.
pub(super) struct Selected {
    /// What to deliver; what the filter kept back counts as void in it.
    pub batch: Batch,
    /// Where its events stand in the whole batch, ascending.
    pub positions: Vec<usize>,
}

/// The order in which a sink wants its events, if it wants one: their key is the attribute that it names. An
/// event without it, and one that the filter keeps back, waits for none.
pub fn order(sink: &SinkConfig) -> Option<KeyOf> {
    let by = sink.order_by.filter(|_| !sink.kind.keeps_order())?;
    let (filter, hashes) = (sink.filter.clone(), RandomState::new());
    Some(KeyOf::new(move |json| {
        let event = Attributes::of(json).filter(|event| matches(&filter, event))?;
        let key = match by {
            OrderBy::PartitionKey => event.partitionkey?,
            OrderBy::Subject => event.subject?,
            OrderBy::Source => event.source,
        };
        Some(hashes.hash_one(&*key))
    }))
}

/// What of `batch` passes `filter`; `None` when everything does.
pub(super) fn select(filter: &Filter, batch: &Batch) -> Option<Selected> {
    if filter.is_open() {
        return None;
    }
    let mut positions = Vec::new();
    let mut voids = batch.voids.clone();
    for (at, event) in batch.events.iter().enumerate() {
        // Everything in the log was read as an event once; should this one not be, it is not for a filter to
        // lose it.
        if Attributes::of(event.json).is_none_or(|event| matches(filter, &event)) {
            positions.push(at);
        } else {
            voids.push(event.offset..event.offset + 1);
        }
    }
    if positions.len() == batch.events.len() {
        return None;
    }
    let events = batch.events.part(positions.iter().copied());
    Some(Selected { batch: Batch { events, voids: merged(voids) }, positions })
}

fn matches(filter: &Filter, event: &Attributes<'_>) -> bool {
    let subject = event.subject.as_deref();
    filter.event_type.as_ref().is_none_or(|glob| glob.is_match(&event.event_type))
        && filter.source.as_ref().is_none_or(|glob| glob.is_match(&event.source))
        && filter.subject.as_ref().is_none_or(|glob| subject.is_some_and(|subject| glob.is_match(subject)))
}

/// The same offsets as ascending ranges that do not touch.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::Pattern;
    use crate::event::{Micros, StoredBatch};

    fn filter(event_type: Option<&str>, source: Option<&str>, subject: Option<&str>) -> Filter {
        let pattern = |text: Option<&str>| text.map(|text| Pattern::parse(text).unwrap());
        Filter { event_type: pattern(event_type), source: pattern(source), subject: pattern(subject) }
    }

    fn event(event_type: &str, source: &str, subject: Option<&str>) -> String {
        let subject = subject.map(|subject| format!(r#","subject":"{subject}""#)).unwrap_or_default();
        format!(r#"{{"specversion":"1.0","id":"1","source":"{source}","type":"{event_type}"{subject}}}"#)
    }

    #[test]
    fn every_pattern_that_is_there_must_match() {
        let passes = |filter: &Filter, json: &str| matches(filter, &Attributes::of(json.as_bytes()).unwrap());
        let order = event("shop.order.new", "/shop/a", Some("o1"));
        assert!(passes(&filter(Some("shop.order.*"), Some("/shop/*"), Some("o?")), &order));
        assert!(!passes(&filter(Some("shop.order.*"), Some("/bank/*"), None), &order));
        assert!(!passes(&filter(Some("order.*"), None, None), &order));
        let bare = event("shop.order.new", "/shop/a", None);
        assert!(!passes(&filter(None, None, Some("*")), &bare));
        assert!(passes(&filter(None, None, None), &bare));
        // Escapes in the text are the sender's spelling, not the name.
        assert!(passes(&filter(Some("a/b"), None, None), &event(r"a\/b", "/s", None)));
    }

    #[test]
    fn events_wait_for_those_with_the_same_attribute_that_pass_the_filter() {
        let mut sink = SinkConfig::embedded("a");
        assert!(order(&sink).is_none());
        sink.filter = filter(Some("x"), None, None);
        let key = |by: OrderBy, json: &str| {
            order(&SinkConfig { order_by: Some(by), ..sink.clone() }).unwrap().key(json.as_bytes()).is_some()
        };
        let whole = event("x", "/s", Some("o1"));
        assert!(key(OrderBy::Subject, &whole) && key(OrderBy::Source, &whole));
        assert!(!key(OrderBy::PartitionKey, &whole), "it has none");
        assert!(key(OrderBy::PartitionKey, &whole.replace(r#""subject""#, r#""partitionkey""#)));
        assert!(!key(OrderBy::Source, &event("y", "/s", None)), "it is kept back");
        assert!(!key(OrderBy::Subject, &event("x", "/s", None)));
        let of = order(&SinkConfig { order_by: Some(OrderBy::Subject), ..sink.clone() }).unwrap();
        let of = |json: &str| of.key(json.as_bytes());
        assert_eq!(of(&whole), of(&event("x", "/other", Some("o1"))));
        assert_eq!(of(&whole), of(&whole.replace("o1", r"o\u0031")), "the spelling is the sender's");
        assert_ne!(of(&whole), of(&event("x", "/s", Some("o2"))));
    }

    #[test]
    fn what_is_kept_back_is_void_to_the_sink_and_the_rest_stays_in_its_place() {
        let texts = ["x", "y", "y", "x", "y"].map(|event_type| event(event_type, "/s", None));
        let buffer = texts.concat();
        let mut events = StoredBatch::over(Bytes::from(buffer));
        let mut start = 0;
        for (offset, text) in [10u64, 11, 13, 14, 15].into_iter().zip(&texts) {
            events.push(offset, Micros(7), start..start + text.len());
            start += text.len();
        }
        let void = 12..13;
        let batch = Batch { events, voids: vec![void] };
        let selected = select(&filter(Some("x"), None, None), &batch).unwrap();
        assert_eq!(selected.positions, [0, 3]);
        let offsets: Vec<u64> = selected.batch.events.iter().map(|event| event.offset).collect();
        assert_eq!(offsets, [10, 14]);
        assert_eq!(selected.batch.voids, [11..14, 15..16]);
        assert!(select(&filter(Some("?"), None, None), &batch).is_none());
        assert!(select(&Filter::default(), &batch).is_none());
    }
}
