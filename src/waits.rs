//! What threads and tasks wait on: locks, condition variables, atomics, notifications, timers.
//!
//! They are std's and tokio's. They are named here, and not where they are used, so that one build can put
//! others in their place: with the feature `schedules` the library's own tests get those of a model checker,
//! which decides at each of them who goes on, and knows when nobody can (`src/queue/embedded/tests/schedules.rs` and others).
//! In every other build this is a list of names. No thread of its own, and nothing here that could fail.

#[cfg(all(test, feature = "schedules"))]
mod checked;

#[cfg(all(test, feature = "schedules"))]
pub use checked::*;

#[cfg(not(all(test, feature = "schedules")))]
pub use std::{
    sync::atomic::{AtomicBool, AtomicU64},
    sync::{Condvar, Mutex, MutexGuard},
    time::Instant,
};
#[cfg(not(all(test, feature = "schedules")))]
pub use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{sleep, timeout},
};
