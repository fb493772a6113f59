//! Tells the service manager that the daemon moves: during recovery, while serving, and while it drains.
//!
//! Tasks of the operations runtime, so a runtime that hangs tells nothing either.
//!
//! * **Recovery** counts as moving while bytes go to or from the disk; then the start gets more time.
//! * **Serving**: every part is asked in turn (`pulse`), and the watchdog is fed when all have answered. A part
//!   that is stuck starves it, and the manager starts the process anew: safely, the log has everything. How
//!   long a part may take is the manager's to say (`WatchdogSec=`), so a slow disk is not taken for a
//!   stuck one.
//! * **Draining** has deadlines of its own for every step.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::notify::Manager;
use crate::disk::RealDisk;
use crate::pulse::Pulse;

/// How often a recovery is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What a recovery or a drain gets from the moment on in which it was last seen moving.
const MORE_TIME: Duration = Duration::from_secs(30);

/// A task that ends with this.
#[derive(Debug)]
pub(super) struct Telling(AbortHandle);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells of a recovery on this disk.
pub(super) fn recovering(manager: Manager, operations: &Handle, disk: Arc<RealDisk>) -> Telling {
    manager.status("recovering");
    let telling = operations.spawn(async move {
        let mut moved = disk.moved_bytes();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.tick().await;
        loop {
            look.tick().await;
            let before = std::mem::replace(&mut moved, disk.moved_bytes());
            if moved != before {
                manager.extend(MORE_TIME);
                manager.status(&format!("recovering: {} MiB read and written", moved >> 20));
            }
        }
    });
    Telling(telling.abort_handle())
}

/// Feeds the watchdog, if there is one, as long as all of these answer.
pub(super) fn serving(manager: Manager, operations: &Handle, parts: Vec<(String, Arc<Pulse>)>) -> Telling {
    let telling = operations.spawn(async move {
        let Some(patience) = manager.watchdog() else { return };
        loop {
            all_answer(&parts, patience / 2).await;
            manager.alive();
            sleep(patience / 4).await;
        }
    });
    Telling(telling.abort_handle())
}

/// Tells of a drain: each of its steps has a deadline, so however long it takes in all, it moves.
pub(super) fn draining(manager: Manager, operations: &Handle) -> Telling {
    let telling = operations.spawn(async move {
        loop {
            manager.extend(MORE_TIME);
            manager.alive();
            sleep(LOOK).await;
        }
    });
    Telling(telling.abort_handle())
}

/// Asks every part and waits for all of them, for ever if need be; who is slow is named.
async fn all_answer(parts: &[(String, Arc<Pulse>)], patience: Duration) {
    for (part, pulse) in parts {
        if timeout(patience, pulse.ask()).await.is_err() {
            tracing::error!(part, "stuck: it does not answer, and until it does the watchdog is not fed");
            pulse.ask().await;
            tracing::warn!(part, "answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_part_that_is_stuck_is_enough() {
        let parts = ["a", "b"].map(|name| (name.to_owned(), Arc::new(Pulse::default())));
        let hour = Duration::from_secs(3600);
        let moving = |at: usize| {
            let pulse = parts[at].1.clone();
            tokio::spawn(async move { pulse.while_waiting(std::future::pending::<()>()).await })
        };
        let _first = moving(0);
        assert!(timeout(hour, all_answer(&parts, LOOK)).await.is_err());
        let _second = moving(1);
        assert!(timeout(hour, all_answer(&parts, LOOK)).await.is_ok());
    }
}
