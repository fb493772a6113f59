//! What the tests of several sinks share: making a batch, and reading an answer at a glance.

use bytes::Bytes;

use super::{Batch, Delivery, Outcome, Outcomes, Unavailable};
use crate::event::{Micros, StoredBatch};

/// A batch of these events, all accepted at the same time.
pub fn batch_of(texts: &[(u64, String)], accepted_at: Micros) -> Batch {
    let joined: String = texts.iter().map(|(_, text)| text.as_str()).collect();
    let mut events = StoredBatch::over(Bytes::from(joined));
    let mut at = 0;
    for (offset, text) in texts {
        events.push(*offset, accepted_at, at..at + text.len());
        at += text.len();
    }
    Batch { events, voids: Vec::new() }
}

/// A letter an event: `d`elivered, `r`etry, re`j`ect; or the reason why the sink is unavailable.
pub fn letters(answer: Result<Delivery, Unavailable>, events: usize) -> String {
    match answer.map(|delivery| delivery.outcomes) {
        Ok(Outcomes::AllDelivered) => "d".repeat(events),
        Ok(Outcomes::Each(outcomes)) => outcomes
            .iter()
            .map(|outcome| match outcome {
                Outcome::Delivered => 'd',
                Outcome::Retry { .. } => 'r',
                Outcome::Reject { .. } => 'j',
            })
            .collect(),
        Err(unavailable) => unavailable.reason,
    }
}
