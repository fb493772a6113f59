//! Whether a loop still goes round: a question to it, and its answer.
//!
//! ```text
//! watchdog ── ask ──► loop: wakes from its wait, beats, waits again     idle, and yet it moves
//!          ◄─ answer ─┘
//!                     loop: delivering, excused until its deadline      slow, and known to be
//!                     loop: stuck in a lock, a hung disk, a bug         no answer, ever
//! ```
//!
//! A loop beats when it comes round, and answers questions while it waits for work. A call that may rightly
//! take long is an excuse with an end. No threads, no I/O; nothing here fails.

use std::pin::pin;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::waits::{AtomicU64, Mutex, MutexGuard, Notify};

/// One loop's. Shared by the loop and by whoever watches it.
#[derive(Debug, Default)]
pub struct Pulse {
    /// How many questions were asked, and which of them the last beat answered.
    asked: AtomicU64,
    answered: AtomicU64,
    question: Notify,
    answer: Notify,
    excused_until: Mutex<Option<Instant>>,
}

impl Pulse {
    /// The loop comes round.
    pub fn beat(&self) {
        let asked = self.asked.load(Ordering::SeqCst);
        if self.answered.load(Ordering::SeqCst) != asked {
            self.answered.store(asked, Ordering::SeqCst);
            self.answer.notify_waiters();
        }
    }

    /// Waits for `what`, and answers questions meanwhile.
    pub async fn while_waiting<T>(&self, what: impl Future<Output = T>) -> T {
        let mut what = pin!(what);
        loop {
            let mut asked = pin!(self.question.notified());
            // Enlisted before the beat, so that no question is missed.
            asked.as_mut().enable();
            self.beat();
            tokio::select! {
                done = &mut what => return done,
                () = asked => {}
            }
        }
    }

    /// The loop does something that may take up to `time`: until the excuse is dropped, or the time is over,
    /// it owes no answer.
    pub fn excuse(&self, time: Duration) -> Excuse<'_> {
        *self.until() = Instant::now().checked_add(time);
        self.answer.notify_waiters();
        Excuse(self)
    }

    /// Asks, and waits until the loop has answered or is excused. Does not end while it is stuck. Cancel-safe.
    pub async fn ask(&self) {
        let question = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.question.notify_waiters();
        loop {
            let mut answer = pin!(self.answer.notified());
            answer.as_mut().enable();
            let excused = self.until().is_some_and(|until| Instant::now() < until);
            if excused || self.answered.load(Ordering::SeqCst) >= question {
                return;
            }
            answer.await;
        }
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        // A single assignment cannot be left half done.
        self.excused_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that may take long; see [`Pulse::excuse`].
#[must_use]
#[derive(Debug)]
pub struct Excuse<'a>(&'a Pulse);

impl Drop for Excuse<'_> {
    fn drop(&mut self) {
        *self.0.until() = None;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Whether an answer comes at all: the clock is paused, so an hour passes at once.
    async fn moves(pulse: &Pulse) -> bool {
        timeout(3600 * SECOND, pulse.ask()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_without_work_moves_when_asked() {
        let pulse = Pulse::default();
        let idle = pulse.while_waiting(std::future::pending::<()>());
        let asked = async {
            for _ in 0..3 {
                assert!(moves(&pulse).await);
                sleep(SECOND).await;
            }
        };
        tokio::select! {
            () = idle => unreachable!("there is no work"),
            () = asked => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_come_round_does_not_answer() {
        let pulse = Pulse::default();
        pulse.beat();
        assert!(!moves(&pulse).await, "a beat before the question is no answer to it");
        let question = async { moves(&pulse).await };
        let round = async {
            sleep(SECOND).await;
            pulse.beat();
        };
        assert!(tokio::join!(question, round).0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_excuse_holds_until_its_time_is_over_or_it_is_dropped() {
        let pulse = Pulse::default();
        let excuse = pulse.excuse(10 * SECOND);
        assert!(moves(&pulse).await);
        sleep(9 * SECOND).await;
        assert!(moves(&pulse).await);
        sleep(2 * SECOND).await;
        assert!(!moves(&pulse).await, "beyond its deadline it is stuck");
        drop(excuse);
        drop(pulse.excuse(Duration::MAX));
        assert!(!moves(&pulse).await);
    }

    #[cfg(feature = "schedules")]
    mod schedules {
        use std::sync::Arc;

        use shuttle::future::block_on;
        use shuttle::thread::spawn;

        use super::*;
        use crate::waits::explore;

        fn questions_to_a_loop_that_moves() {
            let (pulse, given) = (Arc::new(Pulse::default()), Arc::new([Notify::new(), Notify::new()]));
            let (asked, work) = (Arc::clone(&pulse), Arc::clone(&given));
            let moving = spawn(move || {
                block_on(asked.while_waiting(work[0].notified()));
                drop(asked.excuse(Duration::MAX));
                block_on(asked.while_waiting(work[1].notified()));
            });
            let ask = |pulse: Arc<Pulse>| spawn(move || (0..2).for_each(|_| block_on(pulse.ask())));
            let asking = [ask(Arc::clone(&pulse)), ask(pulse)];
            given[0].notify_one();
            asking.into_iter().for_each(|asking| asking.join().unwrap());
            given[1].notify_one();
            moving.join().unwrap();
        }

        #[test]
        fn every_question_to_a_loop_that_moves_is_answered() {
            explore(2000, questions_to_a_loop_that_moves);
        }
    }
}
