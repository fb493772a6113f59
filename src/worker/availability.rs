//! Whether a sink's target can be reached, as all workers of that sink know it, and by which policy they retry.
//!
//! One of them finds out, all of them wait, and the first that gets through ends the wait of the
//! others. An outage is not an event's fault, so no attempt of any event is counted here. No I/O and
//! no clock of its own; nothing here fails.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::{Retry, SinkConfig};

use super::backoff::Backoff;
use super::deliveries::Deliveries;

/// Shared by the workers of one sink.
#[derive(Debug)]
pub struct Availability {
    /// How its deliveries went.
    pub deliveries: Deliveries,
    state: Mutex<State>,
    back: Notify,
}

#[derive(Debug)]
struct State {
    backoff: Backoff,
    retry: Retry,
    /// Nobody tries before this.
    until: Option<Instant>,
    /// What was last said about it.
    is_down: bool,
}

/// A new wait has begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Down {
    /// How long.
    pub wait: Duration,
    /// Whether the target was fine until now.
    pub is_new: bool,
}

impl Availability {
    /// A target about which nothing bad is known.
    pub fn new(config: &SinkConfig) -> Self {
        let backoff = Backoff::new(config.backoff_initial, config.backoff_max);
        let state = State { backoff, retry: config.retry, until: None, is_down: false };
        Self { deliveries: Deliveries::default(), state: Mutex::new(state), back: Notify::new() }
    }

    /// Retries and waits as `config` says from now on. A wait under way stays as long as it is.
    pub fn adjust(&self, config: &SinkConfig) {
        let mut state = self.state();
        state.retry = config.retry;
        state.backoff.adjust(config.backoff_initial, config.backoff_max);
    }

    /// What becomes of an event that fails.
    pub(super) fn retry(&self) -> Retry {
        self.state().retry
    }

    /// Until when nobody tries; `None` when one may.
    pub(super) fn down_until(&self, now: Instant) -> Option<Instant> {
        self.state().until.filter(|until| *until > now)
    }

    /// Notes a try in vain; `None` when another worker did so and that wait is not over yet.
    pub(super) fn failed(&self, now: Instant, random: u64, asked: Option<Duration>) -> Option<Down> {
        let mut state = self.state();
        if state.until.is_some_and(|until| until > now) {
            return None;
        }
        let wait = state.backoff.next(random, asked);
        state.until = Some(now + wait);
        Some(Down { wait, is_new: !std::mem::replace(&mut state.is_down, true) })
    }

    /// Notes that the target answered; `true` when that is news.
    pub(super) fn worked(&self) -> bool {
        let mut state = self.state();
        if !std::mem::take(&mut state.is_down) {
            return false;
        }
        state.backoff.reset();
        state.until = None;
        drop(state);
        self.back.notify_waiters();
        true
    }

    /// Waits until the next try. Cancel-safe.
    pub(super) async fn wait_until(&self, until: Instant) {
        let back = self.back.notified();
        tokio::pin!(back);
        // Enlisted before the look, so that no end is missed.
        back.as_mut().enable();
        if self.down_until(Instant::now()).is_some() {
            tokio::select! {
                () = back => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn availability() -> Availability {
        let config =
            SinkConfig { backoff_initial: SECOND, backoff_max: 60 * SECOND, ..SinkConfig::embedded("test") };
        Availability::new(&config)
    }

    #[test]
    fn an_outage_that_many_workers_meet_at_once_is_one_try() {
        let target = availability();
        let now = Instant::now();
        assert_eq!(target.failed(now, u64::MAX, None), Some(Down { wait: SECOND, is_new: true }));
        assert_eq!(target.failed(now, u64::MAX, None), None);
        assert_eq!(target.down_until(now), Some(now + SECOND));
        let later = now + SECOND;
        assert_eq!(target.down_until(later), None);
        assert_eq!(target.failed(later, u64::MAX, None), Some(Down { wait: 2 * SECOND, is_new: false }));
    }

    #[test]
    fn another_policy_holds_from_the_next_failure_on() {
        let target = availability();
        let now = Instant::now();
        target.failed(now, u64::MAX, None);
        let retry = Retry { max_attempts: 3, ..Retry::default() };
        target.adjust(&SinkConfig {
            backoff_initial: 5 * SECOND,
            backoff_max: 7 * SECOND,
            retry,
            ..SinkConfig::embedded("test")
        });
        assert_eq!(target.retry(), retry);
        assert_eq!(target.down_until(now), Some(now + SECOND), "the wait under way stays");
        let later = now + SECOND;
        assert_eq!(target.failed(later, u64::MAX, None), Some(Down { wait: 7 * SECOND, is_new: false }));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gets_through_first_ends_the_wait_of_all() {
        let target = availability();
        let start = Instant::now();
        target.failed(start, u64::MAX, Some(600 * SECOND));
        let until = target.down_until(start).unwrap();
        let other = async {
            tokio::time::sleep(SECOND).await;
            assert!(target.worked());
            assert!(!target.worked());
        };
        tokio::join!(target.wait_until(until), target.wait_until(until), other);
        assert_eq!(start.elapsed(), SECOND);
        assert_eq!(target.down_until(Instant::now()), None);
    }
}
