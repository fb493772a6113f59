//! Workers: claim → deliver → resolve, one OS thread a sink.
//!
//! A worker asks the queue for a range of events, hands them to its sink and hands the sink's
//! answer back. It holds no state that matters: whatever it has when it panics, is cancelled or
//! is killed goes back to the queue by itself ([`Claim`] returns on drop).
//!
//! ```text
//!        ┌──────────────────────── claim ◄──────────────┐
//!        ▼ nothing more: draining                       │
//!     close, end      ┌── answered ──── resolve ── linger┤
//!                     │                                 │
//!        deliver ─────┼── unavailable ── give back ─ back off
//!                     │                                 │
//!                     └── panic, timeout ─ give back ───┘
//! ```
//!
//! Each runs on a thread of its own, because reading the log and writing the archive block; what
//! waits (timers, sockets) is driven by the runtime whose handle it gets. It ends when the queue
//! drains or its storage has failed; whoever holds the handle must take any other end for a bug.

pub mod backoff;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::config::SinkConfig;
use crate::event::Micros;
use crate::queue::{Claim, ClaimLimit, Fate, Fates, Queue, QueueError, Resolution, SinkId};
use crate::sink::{Batch, Delivery, Outcome, Outcomes, Sink, Unavailable};

use backoff::Backoff;

/// What a worker is made of.
pub struct Worker {
    /// Where events come from.
    pub queue: Arc<dyn Queue>,
    /// Which sink's events it claims.
    pub sink_id: SinkId,
    /// That sink's limits.
    pub config: SinkConfig,
    /// Where events go.
    pub sink: Box<dyn Sink>,
    /// Turns true when the daemon drains: waits are cut short, nothing more is claimed, and a
    /// delivery under way may finish.
    pub stop: watch::Receiver<bool>,
}

/// A source of random numbers; injected, so that tests decide every wait.
type Entropy = Box<dyn FnMut() -> u64 + Send>;

impl Worker {
    /// Starts the worker on a thread of its own; timers and sockets are driven by `runtime`.
    pub fn spawn(self, runtime: Handle) -> io::Result<JoinHandle<Result<(), QueueError>>> {
        let name = format!("sink-{}", self.config.name);
        std::thread::Builder::new().name(name).spawn(move || runtime.block_on(self.run()))
    }

    /// Claims and delivers until the queue drains (`Ok`) or its storage has failed.
    pub async fn run(self) -> Result<(), QueueError> {
        self.run_with(Box::new(random)).await
    }

    async fn run_with(self, entropy: Entropy) -> Result<(), QueueError> {
        let backoff = Backoff::new(self.config.backoff_initial, self.config.backoff_max);
        let mut run = Run { worker: self, backoff, entropy, backing_off: false };
        let ended = run.claim_and_deliver().await;
        run.close();
        ended
    }
}

/// A worker at work.
struct Run {
    worker: Worker,
    backoff: Backoff,
    entropy: Entropy,
    /// Whether the queue was last told that this sink waits.
    backing_off: bool,
}

impl Run {
    async fn claim_and_deliver(&mut self) -> Result<(), QueueError> {
        let queue = self.worker.queue.clone();
        let sink_id = self.worker.sink_id;
        let limit = ClaimLimit {
            events: self.worker.config.batch as usize,
            bytes: usize::try_from(self.worker.config.batch_bytes).unwrap_or(usize::MAX),
        };
        while !*self.worker.stop.borrow() {
            let claim = match queue.claim(sink_id, limit).await {
                Ok(Some(claim)) => claim,
                Ok(None) => return Ok(()),
                Err(failed @ QueueError::StorageFailed(_)) => return Err(failed),
                Err(unread @ QueueError::Read { .. }) => {
                    self.back_off(Unavailable { reason: unread.to_string(), retry_after: None }).await;
                    continue;
                }
            };
            match self.deliver(&claim.batch).await {
                Ok(delivery) => self.finish(claim, delivery, limit).await,
                Err(unavailable) => {
                    drop(claim); // back to the queue before the wait, so that status counts it as pending
                    self.back_off(unavailable).await;
                }
            }
        }
        Ok(())
    }

    /// One delivery, fenced: a panic or a timeout becomes an answer like any other.
    async fn deliver(&mut self, batch: &Batch) -> Result<Delivery, Unavailable> {
        let sink = &mut self.worker.sink;
        let attempt = fenced(async move { sink.deliver(batch).await });
        let timeout = self.worker.config.timeout;
        let reason = match tokio::time::timeout(timeout, attempt).await {
            Ok(Ok(answer)) => return answer.and_then(|delivery| checked(delivery, batch)),
            Ok(Err(panic)) => {
                error!(
                    sink = self.worker.config.name,
                    panic, "sink panicked; its events go back to the queue"
                );
                format!("the sink panicked: {panic}")
            }
            Err(_) => format!("no answer within {}", humantime::format_duration(timeout)),
        };
        Err(Unavailable { reason, retry_after: None })
    }

    async fn finish(&mut self, claim: Claim, delivery: Delivery, limit: ClaimLimit) {
        let emptied = emptied_the_queue(&claim.batch, limit);
        let fates = fates(&claim, delivery.outcomes);
        claim.resolve(Resolution { fates, token: delivery.token });
        self.backoff.reset();
        if std::mem::take(&mut self.backing_off) {
            info!(sink = self.worker.config.name, "sink available again");
            self.worker.queue.set_backing_off(self.worker.sink_id, None);
        }
        // A wake-up and a sync for every few events would cost the ingest more than they give.
        if emptied && !self.worker.config.linger.is_zero() {
            self.wait(self.worker.config.linger).await;
        }
    }

    async fn back_off(&mut self, unavailable: Unavailable) {
        let wait = self.backoff.next((self.entropy)(), unavailable.retry_after);
        if std::mem::replace(&mut self.backing_off, true) {
            debug!(
                sink = self.worker.config.name,
                reason = unavailable.reason,
                ?wait,
                "sink still unavailable"
            );
        } else {
            warn!(
                sink = self.worker.config.name,
                reason = unavailable.reason,
                "sink unavailable; its events wait in the log"
            );
        }
        self.worker.queue.set_backing_off(self.worker.sink_id, Some(unavailable.reason));
        self.wait(wait).await;
    }

    /// Waits, but not beyond the beginning of the drain.
    async fn wait(&mut self, time: Duration) {
        let stopped = self.worker.stop.wait_for(|stop| *stop);
        let _ = tokio::time::timeout(time, async {
            // A daemon that is gone without a word sends no stop; then only time counts.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        })
        .await;
    }

    fn close(&mut self) {
        let sink = &mut self.worker.sink;
        match catch_unwind(AssertUnwindSafe(|| sink.close())) {
            Ok(Ok(())) => debug!(sink = self.worker.config.name, "sink closed"),
            Ok(Err(error)) => warn!(%error, "closing a sink failed; what it delivered is safe"),
            Err(_) => {
                error!(sink = self.worker.config.name, "sink panicked on close; what it delivered is safe");
            }
        }
    }
}

/// Whether the queue had no more than this to give. Claims may end a little early (a segment's end,
/// the byte limit), so only a clearly short one counts; a wrong guess costs one linger.
fn emptied_the_queue(batch: &Batch, limit: ClaimLimit) -> bool {
    let bytes: usize = batch.events.iter().map(|event| event.json.len()).sum();
    batch.events.len() < limit.events && bytes < limit.bytes / 2
}

/// Refuses an answer that does not speak of every event: a sink's bug must not lose any.
fn checked(delivery: Delivery, batch: &Batch) -> Result<Delivery, Unavailable> {
    match &delivery.outcomes {
        Outcomes::Each(outcomes) if outcomes.len() != batch.events.len() => Err(Unavailable {
            reason: format!(
                "the sink answered {} outcomes for {} events; this is a bug in it",
                outcomes.len(),
                batch.events.len()
            ),
            retry_after: None,
        }),
        _ => Ok(delivery),
    }
}

/// What the sink's answer means for each event.
fn fates(claim: &Claim, outcomes: Outcomes) -> Fates {
    let Outcomes::Each(outcomes) = outcomes else { return Fates::AllDelivered };
    let fate = |(index, outcome)| {
        let attempts = claim.attempts(index).saturating_add(1);
        match outcome {
            Outcome::Delivered => Fate::Delivered,
            Outcome::Retry { reason } => Fate::Retry { reason, attempts, due_at: Micros::now() },
            Outcome::Reject { reason } => Fate::Dead { reason, attempts },
        }
    };
    Fates::Each(outcomes.into_iter().enumerate().map(fate).collect())
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

/// A random number from the standard library's hash keys, which is all that jitter needs.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}
