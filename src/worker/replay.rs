//! Replays: archived events once more to one sink, beside its live workers.
//!
//! A replay has an instance of the sink of its own, so live deliveries are not held up by it, and claims
//! nothing, so no checkpoint, failure row or number of the live flow moves. The sink's filter holds for
//! it as well, and so do its limits: parts of `batch` events, `timeout` for each.
//!
//! Runs on the caller's thread. What fails is an answer: whoever asked for the replay decides whether it is
//! tried again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::SinkConfig;
use crate::event::StoredBatch;
use crate::sink::{Batch, Outcome, Outcomes, Sink, Unavailable};

use super::attempt::Fenced;
use super::availability::Availability;
use super::filter::select;

/// A sink for replays.
pub struct Replayer {
    sink: Fenced,
    config: SinkConfig,
}

/// What became of events that were replayed.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Events that are at the target.
    pub delivered: u64,
    /// Events that the sink's filter does not match.
    pub skipped: u64,
    /// Events that failed, ascending.
    pub failed: Vec<Failed>,
    /// The first event that was not tried, because the target is away or the daemon stops.
    pub untried: Option<u64>,
    /// Why not, if the target is.
    pub unavailable: Option<Unavailable>,
}

/// An event that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Its offset.
    pub offset: u64,
    /// Why.
    pub reason: String,
    /// Whether it may succeed later.
    pub may_succeed: bool,
    /// How long the target asked to be left alone with it.
    pub retry_after: Option<Duration>,
}

impl Replayer {
    /// A replayer over a sink that nobody else has; `stop` turns true when the daemon drains.
    pub fn new(sink: Box<dyn Sink>, config: SinkConfig, stop: watch::Receiver<bool>) -> Self {
        // Neither its calls nor its outages are the live flow's.
        let availability = Arc::new(Availability::new(&config));
        Self { sink: Fenced::new(sink, config.clone(), stop, Arc::default(), availability), config }
    }

    /// Delivers events, a part at a time, as far as that works now.
    pub async fn deliver(&mut self, events: StoredBatch) -> Replayed {
        let mut replayed = Replayed::default();
        let mut from = 0;
        while from < events.len() && replayed.untried.is_none() {
            let most = if self.sink.is_broken() { 1 } else { self.config.batch.max(1) as usize };
            let to = events.len().min(from + most);
            let part = Batch { events: events.part(from..to), voids: Vec::new() };
            self.deliver_part(&part, &mut replayed).await;
            from = to;
        }
        replayed
    }

    async fn deliver_part(&mut self, part: &Batch, replayed: &mut Replayed) {
        let selected = select(&self.config.filter, part);
        let batch = selected.as_ref().map_or(part, |selected| &selected.batch);
        replayed.skipped += (part.events.len() - batch.events.len()) as u64;
        if batch.events.is_empty() {
            return;
        }
        let tried = self.sink.attempt(batch).await;
        let outcomes = match tried.outcomes {
            Outcomes::AllDelivered => vec![Outcome::Delivered; batch.events.len()],
            Outcomes::Each(outcomes) => outcomes,
        };
        replayed.untried = batch.events.iter().nth(outcomes.len()).map(|event| event.offset);
        replayed.unavailable = tried.unavailable;
        for (event, outcome) in batch.events.iter().zip(outcomes) {
            let (reason, may_succeed, retry_after) = match outcome {
                Outcome::Delivered => {
                    replayed.delivered += 1;
                    continue;
                }
                Outcome::Retry { reason, retry_after } => (reason, true, retry_after),
                Outcome::Reject { reason } => (reason, false, None),
            };
            replayed.failed.push(Failed { offset: event.offset, reason, may_succeed, retry_after });
        }
    }

    /// Ends it.
    pub fn close(mut self) {
        self.sink.close();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;

    use super::*;
    use crate::config::{Filter, Pattern};
    use crate::event::Micros;
    use crate::sink::{DeliverFuture, Delivery};

    /// Takes what is asked of it: offsets that end in 3 later, in 7 never; away from 20 on.
    struct Moody(Arc<Mutex<Vec<Vec<u64>>>>);

    impl Sink for Moody {
        fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliverFuture<'a> {
            let offsets: Vec<u64> = batch.events.iter().map(|event| event.offset).collect();
            self.0.lock().unwrap().push(offsets.clone());
            if offsets.iter().any(|offset| *offset >= 20) {
                let away = Unavailable { reason: "away".into(), retry_after: Some(Duration::from_secs(9)) };
                return Box::pin(std::future::ready(Err(away)));
            }
            assert!(!offsets.contains(&11), "planted");
            let outcome = |offset: u64| match offset % 10 {
                3 => Outcome::Retry { reason: "later".into(), retry_after: None },
                7 => Outcome::Reject { reason: "never".into() },
                _ => Outcome::Delivered,
            };
            let outcomes = Outcomes::Each(offsets.into_iter().map(outcome).collect());
            Box::pin(std::future::ready(Ok(Delivery { outcomes, token: None })))
        }
    }

    fn events(offsets: impl Iterator<Item = u64> + Clone) -> StoredBatch {
        let text = |offset: u64| {
            let kind = if offset.is_multiple_of(5) { "other" } else { "mine" };
            format!(r#"{{"specversion":"1.0","id":"{offset}","source":"/s","type":"{kind}"}}"#)
        };
        let buffer: String = offsets.clone().map(text).collect();
        let mut batch = StoredBatch::over(Bytes::from(buffer));
        let mut at = 0;
        for offset in offsets {
            let end = at + text(offset).len();
            batch.push(offset, Micros(0), at..end);
            at = end;
        }
        batch
    }

    #[tokio::test]
    async fn every_event_is_delivered_skipped_failed_or_untried_and_a_panic_costs_its_own_event_only() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let mut config = SinkConfig::embedded("moody");
        config.batch = 4;
        config.filter = Filter { event_type: Some(Pattern::parse("mine").unwrap()), ..Filter::default() };
        let (_stop, stopped) = watch::channel(false);
        let mut replayer = Replayer::new(Box::new(Moody(calls.clone())), config, stopped);
        let replayed = replayer.deliver(events(0..30)).await;
        let failed: Vec<(u64, bool)> = replayed.failed.iter().map(|f| (f.offset, f.may_succeed)).collect();
        assert_eq!(failed, [(3, true), (7, false), (11, true), (13, true), (17, false)]);
        assert!(replayed.failed[2].reason.contains("planted"), "{replayed:?}");
        // 0, 5, 10, 15 and 20 are not its own.
        assert_eq!((replayed.delivered, replayed.skipped), (11, 5));
        assert_eq!(replayed.untried, Some(21));
        assert_eq!(replayed.unavailable.unwrap().retry_after, Some(Duration::from_secs(9)));
        assert!(calls.lock().unwrap().iter().all(|call| call.len() <= 4));
        replayer.close();
    }
}
