//! The sinks that replays are delivered with: one for each sink that is being replayed to, beside its
//! live workers.
//!
//! Opened at the first batch and closed when none has come for a while. A webhook's requests carry
//! `eventflow-replay: true`, a program's environment `EVENTFLOW_REPLAY=true`; every event has the attribute
//! `eventflowreplay` besides. A sink that keeps order takes no replay: its target is a sequence in which
//! these events have had their place.
//!
//! Deliveries run on the thread of the request, one batch a sink at a time. A failure is the answer to that
//! request and changes nothing else.

use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::config::{Config, Hidden, SinkConfig, SinkKind};
use crate::disk::Disk;
use crate::event::StoredBatch;
use crate::http::{FailedReplay, ReplayError, Replayed};
use crate::sink::Resume;
use crate::worker::Replayer;

use super::{OwnSinks, open_sink};

/// A replay that brings nothing for this long is over.
const IDLE: Duration = Duration::from_secs(30);

/// Replays to the sinks of one daemon.
pub(super) struct Replays {
    config: Config,
    disk: Arc<dyn Disk>,
    own: OwnSinks,
    operations: Handle,
    stop: watch::Receiver<bool>,
    slots: Vec<Arc<Slot>>,
}

/// What one sink's replay is.
struct Slot {
    config: SinkConfig,
    replay: Mutex<Option<Replay>>,
}

/// A replay under way.
struct Replay {
    replayer: Replayer,
    /// Batches so far.
    batches: u64,
    delivered: u64,
    failed: u64,
    skipped: u64,
}

impl Replays {
    pub(super) fn new(
        config: &Config,
        disk: &Arc<dyn Disk>,
        own: &OwnSinks,
        operations: &Handle,
        stop: &watch::Receiver<bool>,
    ) -> Self {
        let slot = |config: &SinkConfig| Slot { config: marked(config), replay: Mutex::new(None) };
        Self {
            config: config.clone(),
            disk: Arc::clone(disk),
            own: Arc::clone(own),
            operations: operations.clone(),
            stop: stop.clone(),
            slots: config.sinks.iter().map(slot).map(Arc::new).collect(),
        }
    }

    /// Delivers a batch to the sink of this name. Blocks.
    pub(super) fn replay(&self, name: &str, events: StoredBatch) -> Result<Replayed, ReplayError> {
        let Some(slot) = self.slots.iter().find(|slot| slot.config.name == name) else {
            return Err(ReplayError::NoSink(format!("no sink is named `{name}`")));
        };
        if slot.config.kind.keeps_order() {
            return Err(ReplayError::Refused(format!(
                "sink `{name}` ({}) keeps order: what it has been given has its place there, and it takes no replay",
                slot.config.kind.name()
            )));
        }
        let mut replay = match slot.replay.try_lock() {
            Ok(replay) => replay,
            // A panic left no half-made state: the sink is behind its fence.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(ReplayError::Busy),
        };
        let under_way = match &mut *replay {
            Some(under_way) => under_way,
            none => none.insert(self.begin(slot)?),
        };
        let answer = self.operations.block_on(under_way.replayer.deliver(events));
        under_way.batches += 1;
        under_way.delivered += answer.delivered;
        under_way.skipped += answer.skipped;
        under_way.failed += answer.failed.len() as u64;
        Ok(answered(answer))
    }

    fn begin(&self, slot: &Arc<Slot>) -> Result<Replay, ReplayError> {
        let sink = open_sink(&self.config, &slot.config, &self.own, &self.disk, Resume::default())
            .map_err(|error| ReplayError::Failed(error.to_string()))?;
        tracing::info!(sink = slot.config.name, "replay began");
        self.operations.spawn(close_when_idle(Arc::clone(slot)));
        let replayer = Replayer::new(sink, slot.config.clone(), self.stop.clone());
        Ok(Replay { replayer, batches: 0, delivered: 0, failed: 0, skipped: 0 })
    }
}

/// Ends a replay that brings nothing more.
async fn close_when_idle(slot: Arc<Slot>) {
    let mut seen = 0;
    loop {
        tokio::time::sleep(IDLE).await;
        // One that is being delivered to is not idle.
        let Ok(mut replay) = slot.replay.try_lock() else { continue };
        let batches = replay.as_ref().map_or(0, |replay| replay.batches);
        if batches == std::mem::replace(&mut seen, batches) {
            end(&slot.config.name, &mut replay);
            return;
        }
    }
}

fn end(sink: &str, replay: &mut MutexGuard<'_, Option<Replay>>) {
    let Some(Replay { replayer, batches: _, delivered, failed, skipped }) = replay.take() else { return };
    replayer.close();
    tracing::info!(sink, delivered, failed, skipped, "replay ended");
}

/// The sink's configuration, with what tells its target that this is a replay.
fn marked(config: &SinkConfig) -> SinkConfig {
    let mut config = config.clone();
    match &mut config.kind {
        SinkKind::Webhook(webhook) => {
            webhook.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("eventflow-replay"));
            webhook.headers.push(("eventflow-replay".to_owned(), Hidden("true".to_owned())));
        }
        SinkKind::Exec(exec) => exec.env.push(("EVENTFLOW_REPLAY".to_owned(), Hidden("true".to_owned()))),
        _ => {}
    }
    config
}

fn answered(replayed: crate::worker::Replayed) -> Replayed {
    let millis = |time: Option<Duration>| time.map(|time| time.as_millis().try_into().unwrap_or(u64::MAX));
    let failed = replayed.failed.into_iter().map(|failed| FailedReplay {
        offset: failed.offset,
        error: failed.reason,
        may_succeed: failed.may_succeed,
        retry_after_ms: millis(failed.retry_after),
    });
    Replayed {
        delivered: replayed.delivered,
        skipped: replayed.skipped,
        failed: failed.collect(),
        untried: replayed.untried,
        retry_after_ms: millis(replayed.unavailable.as_ref().and_then(|unavailable| unavailable.retry_after)),
        unavailable: replayed.unavailable.map(|unavailable| unavailable.reason),
    }
}
