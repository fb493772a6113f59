//! Workers: claim → deliver → resolve, an OS thread each, `workers` of them a sink.
//!
//! A worker asks the queue for events, hands those that pass the filter to its sink, and turns the
//! sink's answer into each event's fate. It holds no state that matters: whatever it has when it
//! panics, is cancelled or is killed goes back to the queue by itself ([`Claim`] returns on drop).
//!
//! ```text
//!        ┌──────────────────────── claim ◄─────────────────────────────┐
//!        ▼ nothing more: draining    │                                 │
//!     close, end                   filter ── skipped                   │
//!                                    │                                 │
//!        ┌── each event: delivered, retry, dead, dropped ── resolve ── linger
//!        │                           │                                 │
//!     attempt ───────────────── unavailable ── give back ────────── back off
//! ```
//!
//! * `filter`: which events a sink gets; `policy`: what follows from an outcome; both pure.
//! * `attempt`: the call itself, with panics and timeouts fenced, and the bad event of a batch found.
//! * `replay`: archived events once more, beside the live flow.
//! * `availability`: one outage for all workers of a sink; `backoff`: how long to wait; `deliveries`: counts of calls.
//!
//! Each runs on a thread of its own, because reading the log and writing the archive block; what
//! waits (timers, sockets) is driven by the runtime that polls it. It ends when the queue drains or
//! its storage has failed; whoever holds the handle must take any other end for a bug.

mod attempt;
mod availability;
pub mod backoff;
mod deliveries;
mod filter;
mod policy;
mod replay;

#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::config::SinkConfig;
use crate::event::Micros;
use crate::pulse::Pulse;
use crate::queue::{Claim, ClaimLimit, Fate, Fates, Origin, Queue, QueueError, Resolution, SinkId};
use crate::sink::{Batch, Outcome, Outcomes, Sink, Unavailable};

use attempt::{Fenced, Tried};
pub use availability::Availability;
pub use deliveries::{Delivered, Deliveries};
pub use filter::order;
pub use replay::{Failed, Replayed, Replayer};

/// What a worker is made of.
pub struct Worker {
    /// Where events come from.
    pub queue: Arc<dyn Queue>,
    /// Which sink's events it claims.
    pub sink_id: SinkId,
    /// That sink's limits.
    pub config: SinkConfig,
    /// Where events go; an instance of its own.
    pub sink: Box<dyn Sink>,
    /// What all workers of this sink know of its target.
    pub availability: Arc<Availability>,
    /// Turns true when the daemon drains: waits are cut short, nothing more is claimed, and a
    /// delivery under way may finish.
    pub stop: watch::Receiver<bool>,
    /// Whether it still goes round. A delivery is an excuse until its `timeout`; one that goes on beyond it
    /// blocks the thread, because it cannot be cut short.
    pub pulse: Arc<Pulse>,
}

/// A source of random numbers; injected, so that tests decide every wait.
type Entropy = Box<dyn FnMut() -> u64 + Send>;

/// The time of day; injected, because due times are kept beyond this process's life.
type Clock = Box<dyn Fn() -> Micros + Send>;

impl Worker {
    /// Claims and delivers until the queue drains (`Ok`) or its storage has failed.
    pub async fn run(self) -> Result<(), QueueError> {
        self.run_with(Box::new(random), Box::new(Micros::now)).await
    }

    async fn run_with(self, entropy: Entropy, clock: Clock) -> Result<(), QueueError> {
        let Worker { queue, sink_id, config, sink, availability, stop, pulse } = self;
        let sink = Fenced::new(sink, config.clone(), stop.clone(), pulse.clone(), availability.clone());
        let most = config.batch as usize;
        let mut run = Run { queue, sink_id, config, sink, availability, stop, pulse, entropy, clock, most };
        let ended = run.claim_and_deliver().await;
        run.sink.close();
        ended
    }
}

/// A worker at work.
struct Run {
    queue: Arc<dyn Queue>,
    sink_id: SinkId,
    config: SinkConfig,
    sink: Fenced,
    availability: Arc<Availability>,
    stop: watch::Receiver<bool>,
    pulse: Arc<Pulse>,
    entropy: Entropy,
    clock: Clock,
    /// Most events of a claim at the moment: fewer than configured after the sink broke on everything.
    most: usize,
}

impl Run {
    async fn claim_and_deliver(&mut self) -> Result<(), QueueError> {
        let queue = self.queue.clone();
        while !*self.stop.borrow() {
            if let Some(until) = self.availability.down_until(Instant::now()) {
                self.wait_until(until).await;
                continue;
            }
            let limit = self.limit();
            let claim = match self.pulse.while_waiting(queue.claim(self.sink_id, limit)).await {
                Ok(Some(claim)) => claim,
                Ok(None) => return Ok(()),
                Err(failed @ QueueError::StorageFailed(_)) => return Err(failed),
                Err(unread @ QueueError::Read { .. }) => {
                    self.back_off(Unavailable { reason: unread.to_string(), retry_after: None });
                    continue;
                }
            };
            // Another worker may have met an outage while this one waited for events.
            if self.availability.down_until(Instant::now()).is_none() {
                self.handle(claim, limit).await;
            }
        }
        Ok(())
    }

    fn limit(&self) -> ClaimLimit {
        ClaimLimit {
            events: self.most,
            bytes: usize::try_from(self.config.batch_bytes).unwrap_or(usize::MAX),
        }
    }

    async fn handle(&mut self, claim: Claim, limit: ClaimLimit) {
        // A row of the failure table matched when it was parked; an operator takes it out, not a filter.
        let selected = match claim.origin {
            Origin::Log(_) => filter::select(&self.config.filter, &claim.batch),
            Origin::FailureTable => None,
        };
        let batch = selected.as_ref().map_or(&claim.batch, |selected| &selected.batch);
        let tried = if batch.events.is_empty() && !self.config.kind.keeps_order() {
            Tried::default()
        } else {
            self.sink.attempt(batch).await
        };
        let Tried { outcomes, token, unavailable, answered } = tried;
        self.most = match (self.sink.is_broken(), answered) {
            (true, _) => 1,
            (false, true) => self.most.saturating_mul(2).min(self.config.batch as usize),
            (false, false) => self.most,
        };
        let emptied = matches!(claim.origin, Origin::Log(_)) && emptied_the_queue(&claim.batch, limit);
        if unavailable.is_some() && matches!(&outcomes, Outcomes::Each(each) if each.is_empty()) {
            drop(claim); // back to the queue before the wait, so that status counts it as pending
        } else {
            let positions = selected.map(|selected| selected.positions);
            let fates = self.fates(&claim, positions, outcomes);
            self.report(&claim, &fates);
            claim.resolve(Resolution { fates, token });
        }
        match unavailable {
            Some(unavailable) => self.back_off(unavailable),
            None if answered => self.is_back(),
            None => {}
        }
        // A wake-up and a sync for every few events would cost the ingest more than they give.
        if emptied && !self.config.linger.is_zero() {
            self.wait(tokio::time::sleep(self.config.linger)).await;
        }
    }

    /// Each claimed event's fate, from the outcomes of those at `positions` (all, if there are none).
    fn fates(&mut self, claim: &Claim, positions: Option<Vec<usize>>, outcomes: Outcomes) -> Fates {
        let mut outcomes: Box<dyn Iterator<Item = Outcome>> = match outcomes {
            Outcomes::AllDelivered if positions.is_none() => return Fates::AllDelivered,
            Outcomes::AllDelivered => Box::new(std::iter::repeat(Outcome::Delivered)),
            Outcomes::Each(each) => Box::new(each.into_iter()),
        };
        let (now, retry) = ((self.clock)(), self.availability.retry());
        let mut positions = positions.map(|positions| positions.into_iter().peekable());
        let mut fates = Vec::with_capacity(claim.batch.events.len());
        for at in 0..claim.batch.events.len() {
            if positions.as_mut().is_some_and(|positions| positions.next_if_eq(&at).is_none()) {
                fates.push(Fate::Skipped);
                continue;
            }
            // What was not tried is the end of the batch; without a fate it goes back.
            let Some(outcome) = outcomes.next() else { break };
            let random = (self.entropy)();
            fates.push(policy::fate(&retry, outcome, claim.attempts(at), now, random));
        }
        Fates::Each(fates)
    }

    /// One line for what a batch lost, if anything: the failure table has the rest.
    fn report(&self, claim: &Claim, fates: &Fates) {
        let Fates::Each(fates) = fates else { return };
        let (mut dead, mut dropped, mut retries) = (Given::default(), Given::default(), 0);
        for (event, fate) in claim.batch.events.iter().zip(fates) {
            match fate {
                Fate::Dead { reason, .. } => dead.add(event.offset, reason),
                Fate::Dropped { reason } => {
                    debug!(sink = self.config.name, offset = event.offset, reason, "event dropped");
                    dropped.add(event.offset, reason);
                }
                Fate::Retry { .. } => retries += 1,
                Fate::Delivered | Fate::Skipped => {}
            }
        }
        if retries > 0 {
            self.availability.deliveries.note_retries(retries);
        }
        let sink = &self.config.name;
        if let Given { events: events @ 1.., first_offset, reason } = dead {
            warn!(sink, events, first_offset, reason, "events given up; they stay in the failure table");
        }
        if let Given { events: events @ 1.., first_offset, reason } = dropped {
            warn!(sink, events, first_offset, reason, "events dropped, as this sink's policy says");
        }
    }

    fn is_back(&self) {
        if self.availability.worked() {
            info!(sink = self.config.name, "sink available again");
            self.queue.set_backing_off(self.sink_id, None);
        }
    }

    /// Notes an outage; the wait comes before the next claim.
    fn back_off(&mut self, Unavailable { reason, retry_after }: Unavailable) {
        let Some(down) = self.availability.failed(Instant::now(), (self.entropy)(), retry_after) else {
            return;
        };
        let wait = down.wait;
        if down.is_new {
            warn!(sink = self.config.name, reason, "sink unavailable; its events wait in the log");
        } else {
            debug!(sink = self.config.name, reason, ?wait, "sink still unavailable");
        }
        self.queue.set_backing_off(self.sink_id, Some(reason));
    }

    async fn wait_until(&mut self, until: Instant) {
        let availability = self.availability.clone();
        self.wait(availability.wait_until(until)).await;
    }

    /// Waits, but not beyond the beginning of the drain.
    async fn wait(&mut self, what: impl Future<Output = ()>) {
        let stopped = async {
            // A daemon that is gone without a word sends no stop; then only the wait itself counts.
            if self.stop.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let either = async {
            tokio::select! {
                () = what => {}
                () = stopped => {}
            }
        };
        self.pulse.while_waiting(either).await;
    }
}

/// Events that met the same end, for a line in the log.
#[derive(Default)]
struct Given<'a> {
    events: u64,
    first_offset: u64,
    reason: &'a str,
}

impl<'a> Given<'a> {
    fn add(&mut self, offset: u64, reason: &'a str) {
        if self.events == 0 {
            (self.first_offset, self.reason) = (offset, reason);
        }
        self.events += 1;
    }
}

/// A batch of this many bytes is worth a delivery of its own.
const WORTH_DELIVERING_BYTES: usize = 512 << 10;

/// Whether the queue had no more than this to give. Claims may end early (a segment's end, what is
/// read at once), so only a clearly short one counts; a wrong guess costs one linger.
fn emptied_the_queue(batch: &Batch, limit: ClaimLimit) -> bool {
    let bytes: usize = batch.events.iter().map(|event| event.json.len()).sum();
    batch.events.len() < limit.events && bytes < WORTH_DELIVERING_BYTES.min(limit.bytes / 2)
}

/// A random number from the standard library's hash keys, which is all that jitter needs.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}
