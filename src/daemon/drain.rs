//! The ordered stop: nothing new, what is under way, checkpoints, marks of a clean stop.
//!
//! Every step has a deadline, because the daemon is going to end in any case and the log has
//! everything; a step that is out of time costs redelivery or a longer next start, never an event.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Error, Vigil};
use crate::http::App;
use crate::queue::embedded::EmbeddedQueue;

/// What names of workers begin with.
pub(super) const SINK: &str = "sink-";

/// How long waiting requests have to hear that storage has failed.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// How long idle connections have to close once every request is answered.
const CLOSING: Duration = Duration::from_secs(2);
/// How long the last checkpoints and the marks of a clean stop may take.
const LAST_WRITES: Duration = Duration::from_secs(30);

/// Everything that is told to stop, in this order.
pub(super) struct Drain<'a> {
    pub(super) app: &'a App,
    pub(super) queue: &'a EmbeddedQueue,
    pub(super) stop_workers: watch::Sender<bool>,
    pub(super) stop_http: watch::Sender<bool>,
    pub(super) vigil: Vigil,
}

impl Drain<'_> {
    /// Stops after a signal (`None`) or after trouble: in order, unless storage has failed.
    pub(super) async fn after(self, trouble: Option<Error>, time: Duration) -> Result<(), Error> {
        match trouble {
            None => self.in_order(time).await,
            Some(error @ Error::StorageFailed(_)) => {
                tracing::error!(%error, "stopping; the next start recovers from the disk");
                self.last_answers().await;
                Err(error)
            }
            Some(error) => {
                tracing::error!(%error, "stopping");
                Err(error.or_worse(self.in_order(time).await))
            }
        }
    }

    /// Stops in order. What is under way has until `time` is over.
    async fn in_order(mut self, time: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + time;
        // 503 to new requests, and nothing more is claimed.
        self.app.draining();
        self.queue.begin_drain();
        self.stop_workers.send_replace(true);

        // Requests under way finish: they still append, and hear that it is durable.
        if timeout_at(deadline, self.app.requests_finished()).await.is_err() {
            tracing::warn!("requests were still arriving at the end of the drain; they were not accepted");
        }
        self.stop_http.send_replace(true);
        let http = self.ended("http", CLOSING).await;
        self.queue.close_appends();
        let committer = self.ended("committer", LAST_WRITES).await;

        // Batches under way finish.
        let left = deadline.saturating_duration_since(Instant::now());
        let workers = self.ended(SINK, left).await;

        // The last checkpoints, and the marks of a clean stop.
        self.queue.stop_background();
        let ledger = self.ended("ledger", LAST_WRITES).await;
        if self.vigil.runs(SINK) {
            tracing::warn!(
                "deliveries were still under way at the end of the drain; they begin anew at the next start"
            );
        }
        tracing::info!("stopped");
        committer.and(ledger).and(http).and(workers)
    }

    /// Storage has failed: whoever waits hears so, and nothing more is written.
    async fn last_answers(mut self) {
        self.app.failed();
        self.stop_workers.send_replace(true);
        let answered = timeout(LAST_ANSWERS, self.app.requests_finished()).await;
        self.stop_http.send_replace(true);
        if answered.is_ok() {
            // How the edge ended does not matter any more.
            let _ = self.ended("http", CLOSING).await;
        }
    }

    /// Waits until nothing whose name begins with `prefix` runs. Being out of time is no error: the
    /// warning about it says what it means.
    async fn ended(&mut self, prefix: &str, time: Duration) -> Result<(), Error> {
        let waited = timeout(time, self.vigil.ended(prefix)).await;
        waited.unwrap_or_else(|_| {
            tracing::debug!(waiting_for = prefix, "out of time while stopping");
            Ok(())
        })
    }
}
