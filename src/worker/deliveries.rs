//! How a sink's deliveries went, as a scrape counts them: once a call, by all workers of the sink.

use std::time::Duration;

use crate::meter::{Counter, Distribution, Histogram};

/// Calls of one sink.
#[derive(Debug)]
pub struct Deliveries {
    ended: [Counter; 3],
    attempts: Counter,
    retries: Counter,
    micros: Histogram,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The sink answered for its events.
    Answered = 0,
    /// It said that its target is away.
    Unavailable = 1,
    /// It panicked or took too long.
    Broke = 2,
}

/// One look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Calls by how they ended.
    pub calls: [(&'static str, u64); 3],
    /// Events handed to the sink, each as often as it was.
    pub attempts: u64,
    /// Events that failed and were put off.
    pub retries: u64,
    /// Microseconds a call took.
    pub micros: Distribution,
}

/// Microseconds, from a local file to the longest timeout that makes sense.
const MICROS: [u64; 14] = [
    1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 60_000_000,
];

impl Default for Deliveries {
    fn default() -> Self {
        Self {
            ended: Default::default(),
            attempts: Counter::default(),
            retries: Counter::default(),
            micros: Histogram::new(&MICROS),
        }
    }
}

impl Deliveries {
    pub(super) fn note(&self, events: usize, ended: Ended, took: Duration) {
        self.ended[ended as usize].add(1);
        self.attempts.add(events as u64);
        self.micros.observe(took.as_micros() as u64);
    }

    pub(super) fn note_retries(&self, events: u64) {
        self.retries.add(events);
    }

    /// One look.
    pub fn look(&self) -> Delivered {
        let calls = |name, ended: Ended| (name, self.ended[ended as usize].get());
        Delivered {
            calls: [
                calls("answered", Ended::Answered),
                calls("unavailable", Ended::Unavailable),
                calls("broke", Ended::Broke),
            ],
            attempts: self.attempts.get(),
            retries: self.retries.get(),
            micros: self.micros.look(),
        }
    }
}
