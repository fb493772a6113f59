//! `POST /v1/sinks/{name}/replay`: archived events once more to one sink, a bounded batch a request.
//!
//! The body is lines of the archive; the client reads them wherever they are, and keeps the pace. Each is
//! checked to be a whole event and gets its mark (`eventflowreplay`). The daemon delivers the batch with a
//! sink of its own and answers what became of every event; nothing is kept, so a client that got no answer
//! posts the batch again.
//!
//! Runs on the ops runtime, the delivery on its blocking pool.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State as FromState;
use bytes::Bytes;
use serde::Serialize;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use crate::event::{StoredBatch, stamp, write_replayed};

use super::admin::{Answered, Part, Shared, json};
use super::failures::{BodyRead, malformed, read_up_to};
use super::problem::{ItemError, MAX_ITEM_ERRORS, Problem, Slug};

/// Events of one request.
pub(super) const MAX_EVENTS: usize = 1000;

/// What became of a replayed batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Replayed {
    /// Events that are at the target.
    pub delivered: u64,
    /// Events that the sink's filter does not match.
    pub skipped: u64,
    /// Events that failed, ascending.
    pub failed: Vec<FailedReplay>,
    /// The first event that was not tried; it and all behind it want to be posted again.
    pub untried: Option<u64>,
    /// Why they were not tried.
    pub unavailable: Option<String>,
    /// How long the target asked to be left alone.
    pub retry_after_ms: Option<u64>,
}

/// An event whose replay failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FailedReplay {
    /// Its offset.
    pub offset: u64,
    /// Why.
    pub error: String,
    /// Whether it may succeed later.
    pub may_succeed: bool,
    /// How long the target asked to be left alone with it.
    pub retry_after_ms: Option<u64>,
}

/// Why a batch was not replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// No sink has this name.
    #[error("{0}")]
    NoSink(String),
    /// The sink takes no replays.
    #[error("{0}")]
    Refused(String),
    /// Another batch is being replayed to this sink.
    #[error("another replay to this sink is under way; one at a time")]
    Busy,
    /// The sink cannot be opened.
    #[error("{0}")]
    Failed(String),
}

/// Replays a batch to the sink of this name. Blocks until it is answered.
pub type ReplayBatch = dyn Fn(&str, StoredBatch) -> Result<Replayed, ReplayError> + Send + Sync;

impl From<ReplayError> for Problem {
    fn from(error: ReplayError) -> Self {
        let slug = match &error {
            ReplayError::NoSink(_) => Slug::NotFound,
            ReplayError::Refused(_) => Slug::Conflict,
            ReplayError::Busy => Slug::Overloaded,
            ReplayError::Failed(_) => Slug::Internal,
        };
        Problem::new(slug, error.to_string())
    }
}

/// Delivers archived events once more to one sink.
///
/// The body holds lines of the archive, ascending, at most 1000. Nothing of the sink's progress, failures or
/// counts changes; who gets no answer posts the batch again.
#[utoipa::path(
    post,
    path = "/v1/sinks/{name}/replay",
    tag = "sinks",
    operation_id = "replay_events",
    params(("name" = String, Path, description = "The sink's name.")),
    request_body(content((String = "application/x-ndjson"))),
    responses((status = 200, description = "What became of each event.", body = Replayed))
)]
pub(super) async fn replay(
    FromState(shared): FromState<Shared>,
    Part(name): Part<String>,
    body: Body,
) -> Answered {
    let limit = shared.max_body_bytes;
    let too_large = || format!("the body is larger than {limit} bytes (http.max_body)");
    let bytes = read_up_to(body, limit, shared.body_timeout, too_large).await?;
    let work = async {
        let batch = read_lines(&bytes)?;
        shared.app.open_queue()?;
        let services = Arc::clone(shared.app.services()?);
        let replayed = spawn_blocking(move || (services.replay)(&name, batch)).await;
        let replayed = replayed
            .map_err(|failed| Problem::new(Slug::Internal, format!("the replay failed: {failed}")))??;
        json(&replayed)
    };
    let mut answer = work.await.unwrap_or_else(Problem::into_answer);
    answer.extensions_mut().insert(BodyRead);
    Ok(answer)
}

/// Lines of an archive as a batch, each with the mark of a replay.
fn read_lines(body: &[u8]) -> Result<StoredBatch, Problem> {
    let mut text = Vec::with_capacity(body.len());
    let mut spans: Vec<(u64, crate::event::Micros, std::ops::Range<usize>)> = Vec::new();
    let mut errors: Vec<ItemError> = Vec::new();
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for (index, line) in lines.enumerate() {
        if index == MAX_EVENTS {
            return Err(Problem::new(
                Slug::TooLarge,
                format!("at most {MAX_EVENTS} events are replayed at once"),
            ));
        }
        let start = text.len();
        let stamp = stamp(line).and_then(|stamp| Some((stamp, stamp.accepted_at()?)));
        let written =
            stamp.and_then(|(stamp, at)| write_replayed(&mut text, line, &stamp).map(|()| (stamp, at)));
        let detail = match written {
            None => {
                "this is no line of an archive: a CloudEvent that ends in `eventflowoffset` and `eventflowtime`"
            }
            Some((stamp, _)) if spans.last().is_some_and(|(before, ..)| *before >= stamp.offset) => {
                "offsets must ascend"
            }
            Some((stamp, accepted_at)) => {
                spans.push((stamp.offset, accepted_at, start..text.len()));
                continue;
            }
        };
        errors.push(ItemError { index, detail: detail.to_owned() });
        if errors.len() == MAX_ITEM_ERRORS {
            break;
        }
    }
    if !errors.is_empty() {
        return Err(Problem::malformed_items(errors));
    }
    if spans.is_empty() {
        return Err(malformed("the body holds no line of an archive"));
    }
    let mut batch = StoredBatch::over(Bytes::from(text));
    for (offset, accepted_at, span) in spans {
        batch.push(offset, accepted_at, span);
    }
    Ok(batch)
}
