//! What the failure table holds, how it is asked, and what may be done to it.
//!
//! A row is an event that one sink did not take: it waits for its next attempt, or was given up. The
//! table is keyed by sink and offset and walked in that order, a page at a time, so that nobody ever
//! holds all of it. Plain values: no thread, nothing that fails.

use globset::GlobMatcher;

use crate::event::Micros;

use super::SinkId;

/// Longest reason that a row keeps, in bytes; longer ones are cut.
pub const MAX_REASON_BYTES: usize = 1024;

/// An event in the failure table, without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureRow {
    /// The sink that did not take it.
    pub sink: SinkId,
    /// The event's offset.
    pub offset: u64,
    /// Whether it will be tried again by itself.
    pub state: RowState,
    /// Attempts made, counted anew since the last redrive.
    pub attempts: u32,
    /// When it failed for the first time.
    pub first_failed_at: Micros,
    /// When it failed last.
    pub last_failed_at: Micros,
    /// When it is tried again; `None` for a dead one.
    pub due_at: Option<Micros>,
    /// Why it failed last, cut to [`MAX_REASON_BYTES`].
    pub error: String,
    /// The event's `id`.
    pub id: String,
    /// The event's `source`.
    pub source: String,
    /// The event's `type`.
    pub kind: String,
    /// Length of the event's text.
    pub bytes: u64,
}

/// A row with its event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedEvent {
    /// The row.
    pub row: FailureRow,
    /// When the event was accepted.
    pub accepted_at: Micros,
    /// Its JSON text.
    pub json: Vec<u8>,
}

/// Whether a row will be tried again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowState {
    /// It will, when it is due.
    Retrying,
    /// It will not; only a redrive or a drop changes it.
    Dead,
}

impl RowState {
    /// The name used in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            RowState::Retrying => "retrying",
            RowState::Dead => "dead",
        }
    }
}

/// Which rows to list. What is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct FailureQuery {
    /// Rows of this sink.
    pub sink: Option<SinkId>,
    /// Rows in this state.
    pub state: Option<RowState>,
    /// Rows behind this one: a page's `next`.
    pub after: Option<(SinkId, u64)>,
    /// At most this many rows, at least 1.
    pub limit: usize,
    /// Rows whose event's `type` matches.
    pub event_type: Option<GlobMatcher>,
    /// Rows whose error contains this text.
    pub error_contains: Option<String>,
    /// Rows that failed last at this time or later.
    pub failed_from: Option<Micros>,
    /// Rows that failed last before this time.
    pub failed_to: Option<Micros>,
}

/// Rows, ascending by sink and offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailurePage {
    /// The rows; with a filter there may be few or none on a page that is not the last.
    pub rows: Vec<FailureRow>,
    /// Where the next page begins; `None` on the last one.
    pub next: Option<(SinkId, u64)>,
}

/// Which rows of a sink to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Those of these events; an offset without a row is passed over.
    Offsets(Vec<u64>),
    /// Every row there is when the change comes to it.
    All,
}

/// What to do with rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redrive {
    /// Try them again now, with attempts counted anew.
    Retry,
    /// Give the events up for good; they count as dropped.
    Drop,
}
