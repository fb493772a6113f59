//! Spares prepared ahead, and freed segments taken back.

use std::sync::Arc;

use super::catalog::{FoundFile, Shared};

/// Owner of everything that is not a live segment.
#[derive(Debug)]
pub struct Stock {
    _private: (),
}

/// What one step of the stock did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something; there may be more to do.
    Worked,
    /// Nothing: all is as it should be. A release or a used spare gives it work again.
    Idle,
    /// Nothing, for want of room; `Log::room_for` says of which. Worth another try later.
    Blocked,
}

impl Stock {
    pub(super) fn new(shared: Arc<Shared>, found: Vec<FoundFile>, next_number: u64) -> Self {
        let _ = (shared, found, next_number);
        Self { _private: () }
    }

    /// Does one unit of work: takes back one released segment or prepares one spare. Blocks.
    pub fn step(&mut self) -> Step {
        Step::Idle
    }

    /// Steps whenever there is something to do, until [`Log::stop_stock`](super::Log::stop_stock)
    /// or the log fails. Needs a thread of its own.
    pub fn run(self) {}
}
