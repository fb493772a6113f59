//! How long to wait before the next try: exponential with full jitter. Pure: randomness comes in as
//! a number, time goes out as a duration.

use std::time::Duration;

/// The longest that a target's own wish is heeded, beyond whatever is configured: long enough for any
/// quota, and one confused header cannot stop a sink for a year.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);

/// The wait after `tries` + 1 tries in vain. `random` decides within the range; `asked` is how long the
/// target wants to be left alone at least, and is kept, up to an hour.
pub fn wait(initial: Duration, max: Duration, tries: u32, random: u64, asked: Option<Duration>) -> Duration {
    let doubled = initial.saturating_mul(1u32.checked_shl(tries).unwrap_or(u32::MAX));
    let ceiling = doubled.min(max);
    // Full jitter: anything between nothing and the ceiling, so that clients that failed together
    // do not come back together.
    let fraction = random as f64 / u64::MAX as f64;
    ceiling.mul_f64(fraction).max(asked.unwrap_or_default().min(LONGEST_ASKED.max(max)))
}

/// Counts tries in vain and says how long to wait after each.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    /// A backoff whose first wait is below `initial` and whose waits are never above `max`, unless the
    /// target asks for more.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, tries: 0 }
    }

    /// Waits by other limits from now on, without forgetting how often it was in vain.
    pub fn adjust(&mut self, initial: Duration, max: Duration) {
        (self.initial, self.max) = (initial, max);
    }

    /// It worked: the next wait is a first one again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// The wait after one more try in vain; see [`wait`].
    pub fn next(&mut self, random: u64, asked: Option<Duration>) -> Duration {
        let tries = self.tries;
        self.tries = tries.saturating_add(1);
        wait(self.initial, self.max, tries, random, asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIAL: Duration = Duration::from_millis(200);
    const MAX: Duration = Duration::from_secs(300);

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum_and_never_overflows() {
        let mut backoff = Backoff::new(INITIAL, MAX);
        let waits: Vec<Duration> = (0..100).map(|_| backoff.next(u64::MAX, None)).collect();
        assert_eq!(waits[0], INITIAL);
        assert_eq!(waits[1], INITIAL * 2);
        assert_eq!(waits[10], INITIAL * 1024);
        assert!(waits[11..].iter().all(|wait| *wait == MAX), "{waits:?}");
    }

    #[test]
    fn jitter_covers_the_whole_range_from_zero() {
        let mut backoff = Backoff::new(INITIAL, MAX);
        assert_eq!(backoff.next(0, None), Duration::ZERO);
        let mut backoff = Backoff::new(INITIAL, MAX);
        assert_eq!(backoff.next(u64::MAX / 2, None).as_millis(), 100);
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::new(INITIAL, MAX);
        backoff.next(u64::MAX, None);
        backoff.next(u64::MAX, None);
        backoff.reset();
        assert_eq!(backoff.next(u64::MAX, None), INITIAL);
    }

    #[test]
    fn what_the_target_asked_for_is_kept_up_to_an_hour() {
        let mut backoff = Backoff::new(INITIAL, MAX);
        assert_eq!(backoff.next(0, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(backoff.next(u64::MAX, Some(Duration::from_millis(1))), INITIAL * 2);
        assert_eq!(backoff.next(0, Some(2 * MAX)), 2 * MAX);
        assert_eq!(backoff.next(0, Some(Duration::MAX)), LONGEST_ASKED);
    }
}
