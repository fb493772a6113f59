//! EventFlow turns uncontrolled incoming events into controlled, reliable processing.
//!
//! ```text
//! HTTP ──► ingest ──► queue.append ──(fdatasync)──► 202
//!                       │ event log (bounded segments)
//!                       ▼
//!             queue.claim ──► worker ──► sink ──► claim.resolve
//!                       │                           │
//!                       └── free segments ◄── ledger: checkpoints
//! ```
//!
//! Data goes one way and no module reaches back; `tests/` holds the table of who may
//! import whom and fails on an import that runs against it. Start with `config` (every limit),
//! `event` (what an event is), `log` (the format on disk) and `queue` (the seam), then
//! `daemon`, which reads top to bottom.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod disk;

pub mod event;
pub mod http;
pub mod log;
pub mod meter;
pub mod planted;
pub mod pulse;
pub mod queue;
pub mod sink;
pub mod telemetry;
mod waits;
pub mod worker;
