//! One attempt at a batch: the sink is called behind a fence, so that a panic or a hang is an answer
//! like any other, and a batch that the sink breaks on is taken apart until the event is found that
//! does it.
//!
//! Runs on the worker's thread. Parts are tried in the order of their events, so whatever stays
//! untried (a drain, an outage half-way) is the end of the batch and goes back to the queue.
//!
//! ```text
//!   1 2 3 4 5 6 7 8   breaks           one bad event in n costs log₂ n + 1 breaks in a row at most;
//!   1 2 3 4           delivered        more than that, and it is the sink itself: single events,
//!           5 6 7 8   breaks           with waits between them, until it answers again
//!           5 6       breaks
//!           5         delivered
//!             6       breaks: alone, so it is the one; a retry for it
//!               7 8   delivered
//! ```

use std::future::Future;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::config::SinkConfig;
use crate::pulse::Pulse;
use crate::sink::{Batch, Delivery, Outcome, Outcomes, Sink, Unavailable};

use super::availability::Availability;
use super::deliveries::Ended;

/// A sink with what it takes to call it safely.
pub(super) struct Fenced {
    sink: Box<dyn Sink>,
    config: SinkConfig,
    stop: watch::Receiver<bool>,
    pulse: Arc<Pulse>,
    availability: Arc<Availability>,
    /// Calls that broke in a row, over all batches.
    breaks: u32,
}

/// What came of a batch.
#[derive(Debug, Default)]
pub(super) struct Tried {
    /// What became of its events; where there are fewer than events, the rest was not tried.
    pub outcomes: Outcomes,
    /// Where the sink stands now.
    pub token: Option<Vec<u8>>,
    /// Why nothing more can be tried for now.
    pub unavailable: Option<Unavailable>,
    /// Whether the sink answered at all.
    pub answered: bool,
}

/// Why there is no answer.
enum Failure {
    /// The sink says that its target is away.
    Unavailable(Unavailable),
    /// The sink panicked or took too long.
    Broke(String),
}

impl Fenced {
    pub(super) fn new(
        sink: Box<dyn Sink>,
        config: SinkConfig,
        stop: watch::Receiver<bool>,
        pulse: Arc<Pulse>,
        availability: Arc<Availability>,
    ) -> Self {
        Self { sink, config, stop, pulse, availability, breaks: 0 }
    }

    /// Whether the sink breaks on everything, so that it should get single events only.
    pub(super) fn is_broken(&self) -> bool {
        // What one bad event can cost in the largest batch, see the module's drawing.
        self.breaks > self.config.batch.max(1).ilog2() + 2
    }

    /// Delivers `batch`, or as much of it as can be delivered now.
    pub(super) async fn attempt(&mut self, batch: &Batch) -> Tried {
        let failure = match self.call(batch).await {
            Ok(Delivery { outcomes, token }) => {
                return Tried { outcomes, token, answered: true, ..Tried::default() };
            }
            Err(failure) => failure,
        };
        match failure {
            Failure::Unavailable(unavailable) => Tried::not(unavailable),
            // Its events have their order, so none of them may step aside.
            Failure::Broke(reason) if self.config.kind.keeps_order() => {
                Tried::not(Unavailable { reason, retry_after: None })
            }
            Failure::Broke(reason) => {
                let (sink, events) = (&self.config.name, batch.events.len());
                if self.breaks == 1 {
                    warn!(sink, reason, events, "sink broke; looking for the event that does it");
                } else {
                    debug!(sink, reason, events, "sink broke again");
                }
                self.take_apart(batch, reason).await
            }
        }
    }

    /// Goes on with a batch that the sink broke on.
    async fn take_apart(&mut self, batch: &Batch, reason: String) -> Tried {
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(batch.events.len());
        let mut tried = Tried::default();
        // What is still to be tried, the first at the end; the reason when it was and broke.
        let mut open: Vec<(Range<usize>, Option<String>)> = vec![(0..batch.events.len(), Some(reason))];
        while let Some((part, broke)) = open.pop() {
            match broke {
                Some(reason) if part.len() <= 1 => {
                    if self.is_broken() {
                        tried.unavailable = Some(Unavailable { reason: reason.clone(), retry_after: None });
                    }
                    outcomes
                        .extend(part.map(|_| Outcome::Retry { reason: reason.clone(), retry_after: None }));
                }
                Some(_) => {
                    let middle = part.start + part.len() / 2;
                    open.push((middle..part.end, None));
                    open.push((part.start..middle, None));
                }
                None => {
                    if *self.stop.borrow() {
                        break;
                    }
                    let events = batch.events.part(part.clone());
                    match self.call(&Batch { events, voids: Vec::new() }).await {
                        Ok(delivery) => {
                            tried.answered = true;
                            tried.token = delivery.token.or(tried.token);
                            match delivery.outcomes {
                                Outcomes::AllDelivered => outcomes.extend(part.map(|_| Outcome::Delivered)),
                                Outcomes::Each(each) => outcomes.extend(each),
                            }
                        }
                        Err(Failure::Unavailable(unavailable)) => tried.unavailable = Some(unavailable),
                        Err(Failure::Broke(reason)) => {
                            debug!(sink = self.config.name, reason, events = part.len(), "broke again");
                            open.push((part, Some(reason)));
                        }
                    }
                }
            }
            if tried.unavailable.is_some() {
                break;
            }
        }
        tried.outcomes = Outcomes::Each(outcomes);
        tried
    }

    /// One call.
    async fn call(&mut self, batch: &Batch) -> Result<Delivery, Failure> {
        let sink = &mut self.sink;
        let attempt = fenced(async move { sink.deliver(batch).await });
        let timeout = self.config.timeout;
        let _excuse = self.pulse.excuse(timeout);
        let began = Instant::now();
        let note = |ended| self.availability.deliveries.note(batch.events.len(), ended, began.elapsed());
        let reason = match tokio::time::timeout(timeout, attempt).await {
            Ok(Ok(answer)) => {
                self.breaks = 0;
                note(if answer.is_ok() { Ended::Answered } else { Ended::Unavailable });
                return answer
                    .and_then(|delivery| checked(delivery, batch, &self.config))
                    .map_err(Failure::Unavailable);
            }
            Ok(Err(panic)) => format!("the sink panicked: {panic}"),
            Err(_) => format!("no answer within {}", humantime::format_duration(timeout)),
        };
        note(Ended::Broke);
        self.breaks = self.breaks.saturating_add(1);
        Err(Failure::Broke(reason))
    }

    pub(super) fn close(&mut self) {
        let sink = &mut self.sink;
        match catch_unwind(AssertUnwindSafe(|| sink.close())) {
            Ok(Ok(())) => debug!(sink = self.config.name, "sink closed"),
            Ok(Err(error)) => warn!(%error, "closing a sink failed; what it delivered is safe"),
            Err(_) => error!(sink = self.config.name, "sink panicked on close; what it delivered is safe"),
        }
    }
}

impl Tried {
    fn not(unavailable: Unavailable) -> Self {
        Self { outcomes: Outcomes::Each(Vec::new()), unavailable: Some(unavailable), ..Self::default() }
    }
}

/// Refuses an answer that a sink must not give: its bug must not lose an event, nor its place.
fn checked(delivery: Delivery, batch: &Batch, config: &SinkConfig) -> Result<Delivery, Unavailable> {
    let Outcomes::Each(outcomes) = &delivery.outcomes else { return Ok(delivery) };
    let reason = if outcomes.len() != batch.events.len() {
        format!(
            "the sink answered {} outcomes for {} events; this is a bug in it",
            outcomes.len(),
            batch.events.len()
        )
    } else if config.kind.keeps_order() && outcomes.iter().any(|outcome| *outcome != Outcome::Delivered) {
        "the sink keeps order and yet wants to go on without an event; this is a bug in it".to_owned()
    } else {
        return Ok(delivery);
    };
    error!(sink = config.name, reason, "sink gave an answer that cannot be right; its events go back");
    Err(Unavailable { reason, retry_after: None })
}

/// Polls a future to its end; a panic in it becomes `Err` with the panic's message.
async fn fenced<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            // It is never polled again: `Ready` ends it here.
            Err(panic) => Poll::Ready(Err(message_of(panic.as_ref()))),
        }
    })
    .await
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
