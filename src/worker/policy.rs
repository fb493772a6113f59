//! What becomes of an event after an attempt: the sink says how it went, the policy what follows.
//!
//! Pure: the time and randomness come in as arguments.

use crate::config::{Exhausted, Retry};
use crate::event::Micros;
use crate::queue::Fate;
use crate::sink::Outcome;

use super::backoff;

/// The fate of an event with `before` attempts behind it, after one more with this outcome.
pub(super) fn fate(retry: &Retry, outcome: Outcome, before: u32, now: Micros, random: u64) -> Fate {
    let attempts = before.saturating_add(1);
    match outcome {
        Outcome::Delivered => Fate::Delivered,
        Outcome::Retry { reason, retry_after } if attempts < retry.max_attempts => {
            let wait = backoff::wait(retry.initial, retry.max, before, random, retry_after);
            let micros = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
            Fate::Retry { reason, attempts, due_at: Micros(now.0.saturating_add(micros)) }
        }
        Outcome::Retry { reason, .. } | Outcome::Reject { reason } => match retry.exhausted {
            Exhausted::Record => Fate::Dead { reason, attempts },
            Exhausted::Drop => Fate::Dropped { reason },
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Micros = Micros(1_000_000);

    fn policy(exhausted: Exhausted) -> Retry {
        Retry { max_attempts: 3, initial: Duration::from_secs(1), max: Duration::from_secs(60), exhausted }
    }

    fn failed(retry_after: Option<Duration>) -> Outcome {
        Outcome::Retry { reason: "no".into(), retry_after }
    }

    fn retried(attempts: u32, due_at: i64) -> Fate {
        Fate::Retry { reason: "no".into(), attempts, due_at: Micros(due_at) }
    }

    #[test]
    fn an_event_is_tried_as_often_as_configured_with_growing_waits_and_then_recorded() {
        let retry = policy(Exhausted::Record);
        let after = |before| fate(&retry, failed(None), before, NOW, u64::MAX);
        assert_eq!(after(0), retried(1, 2_000_000));
        assert_eq!(after(1), retried(2, 3_000_000));
        assert_eq!(after(2), Fate::Dead { reason: "no".into(), attempts: 3 });
        assert_eq!(after(u32::MAX), Fate::Dead { reason: "no".into(), attempts: u32::MAX });
    }

    #[test]
    fn what_is_rejected_is_not_tried_again() {
        let reject = || Outcome::Reject { reason: "never".into() };
        let dead = Fate::Dead { reason: "never".into(), attempts: 1 };
        assert_eq!(fate(&policy(Exhausted::Record), reject(), 0, NOW, 0), dead);
        let dropped = Fate::Dropped { reason: "never".into() };
        assert_eq!(fate(&policy(Exhausted::Drop), reject(), 0, NOW, 0), dropped);
    }

    #[test]
    fn the_policy_drop_drops_what_is_exhausted_and_nothing_earlier() {
        let retry = policy(Exhausted::Drop);
        assert_eq!(fate(&retry, failed(None), 1, NOW, 0), retried(2, 1_000_000));
        assert_eq!(fate(&retry, failed(None), 2, NOW, 0), Fate::Dropped { reason: "no".into() });
        assert_eq!(fate(&retry, Outcome::Delivered, 9, NOW, 0), Fate::Delivered);
    }

    #[test]
    fn an_event_is_not_due_before_its_target_wants_it() {
        let retry = policy(Exhausted::Record);
        let asked = Some(Duration::from_secs(90));
        assert_eq!(fate(&retry, failed(asked), 0, NOW, u64::MAX), retried(1, 91_000_000));
        assert_eq!(fate(&retry, failed(asked), 0, Micros(i64::MAX), 0), retried(1, i64::MAX));
    }
}
