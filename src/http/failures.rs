//! The failure table over HTTP: pages of rows, one row with its event, redrive and drop.
//!
//! Handlers run on the ops runtime; what reads the disk goes to that runtime's blocking pool. A page is
//! bounded by rows, a change by offsets and by the bytes of its body, so no request costs more than
//! its share. A handler that fails answers a problem document; a change is answered once it is durable.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as FromState};
use globset::Glob;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use utoipa::openapi::schema::Schema;
use utoipa::{IntoParams, ToSchema};

use crate::event::Micros;
use crate::queue::{
    FailedEvent, FailureQuery, FailureRow, Queue, QueueError, Redrive, RowState, Selection, SinkId,
};

use super::admin::{Answered, Part, Shared, json, raw_event};
use super::openapi::{self, CloudEvent, Routes, one_of, problems};
use super::problem::{Problem, Slug};

/// Rows of a page: the most, and those of a request that does not say.
const MAX_PAGE: usize = 1000;
const PAGE: usize = 100;
/// Offsets one request may change.
const MAX_OFFSETS: usize = 10_000;
/// Bytes of a request to change rows: that many offsets of twenty digits, and white space.
const MAX_BODY: usize = 512 * 1024;

/// The routes below `/v1/failures`.
pub(super) fn add_to(routes: Routes) -> Routes {
    use Slug::{Malformed, NotFound, Recovering, RequestTimeout, StorageFailed, TooLarge};
    let change = [Malformed, NotFound, Recovering, RequestTimeout, StorageFailed, TooLarge];
    routes
        .add(__path_list, list, problems(&[Malformed, NotFound, Recovering, StorageFailed]))
        .add(__path_show, show, problems(&[Malformed, NotFound, Recovering, StorageFailed]))
        .add(__path_retry, retry, problems(&change))
        .add(__path_drop_rows, drop_rows, problems(&change))
}

/// An answer to a request whose body was read to its end: its connection may go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyRead;

pub(super) fn malformed(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(Slug::Malformed, detail)
}

/// The sink of this name.
fn sink_named(queue: &dyn Queue, name: &str) -> Result<SinkId, Problem> {
    let at = queue.sinks().iter().position(|sink| sink.name == name);
    let id = at.and_then(|at| u16::try_from(at).ok()).map(SinkId);
    id.ok_or_else(|| Problem::new(Slug::NotFound, format!("no sink is named `{name}`")))
}

fn name_of(queue: &dyn Queue, sink: SinkId) -> &str {
    queue.sinks().get(usize::from(sink.0)).map_or("", |info| &info.name)
}

/// An event that a sink did not take.
#[derive(Serialize, ToSchema)]
#[schema(as = Failure)]
struct Row<'a> {
    sink: &'a str,
    offset: u64,
    #[schema(schema_with = row_states)]
    state: &'static str,
    /// Attempts made, counted anew since the last redrive.
    attempts: u32,
    #[schema(format = DateTime)]
    first_failed_at: String,
    #[schema(format = DateTime)]
    last_failed_at: String,
    /// When it is tried again; null when it is not.
    #[schema(required, format = DateTime)]
    due_at: Option<String>,
    /// Why it failed last.
    error: &'a str,
    id: &'a str,
    source: &'a str,
    r#type: &'a str,
}

fn row_states() -> Schema {
    one_of([RowState::Retrying, RowState::Dead].map(RowState::as_str))
}

impl<'a> Row<'a> {
    fn new(queue: &'a dyn Queue, row: &'a FailureRow) -> Self {
        Self {
            sink: name_of(queue, row.sink),
            offset: row.offset,
            state: row.state.as_str(),
            attempts: row.attempts,
            first_failed_at: row.first_failed_at.to_rfc3339(),
            last_failed_at: row.last_failed_at.to_rfc3339(),
            due_at: row.due_at.map(Micros::to_rfc3339),
            error: &row.error,
            id: &row.id,
            source: &row.source,
            r#type: &row.kind,
        }
    }
}

/// The query of a list, as it comes.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Asked {
    /// Rows of this sink.
    sink: Option<String>,
    /// Rows in this state.
    #[param(schema_with = row_states)]
    state: Option<String>,
    /// Rows behind this one: the `next` of an earlier page, or an offset where `sink` is given.
    after: Option<String>,
    /// Most rows of a page; 100 without it.
    #[param(value_type = Option<u64>, minimum = 1, maximum = 1000)]
    limit: Option<String>,
    /// Rows whose event's `type` matches this pattern.
    r#type: Option<String>,
    /// Rows whose error contains this text.
    error: Option<String>,
    /// Rows that failed last at this time or later.
    #[param(format = DateTime)]
    from: Option<String>,
    /// Rows that failed last before this time.
    #[param(format = DateTime)]
    to: Option<String>,
}

impl Asked {
    fn into_query(self, queue: &dyn Queue) -> Result<FailureQuery, Problem> {
        let sink = self.sink.as_deref().map(|name| sink_named(queue, name)).transpose()?;
        let state = match self.state.as_deref() {
            None => None,
            Some("retrying") => Some(RowState::Retrying),
            Some("dead") => Some(RowState::Dead),
            Some(_) => return Err(malformed("`state` is `retrying` or `dead`")),
        };
        let limit = match self.limit.as_deref().map(str::parse) {
            None => PAGE,
            Some(Ok(limit)) if (1..=MAX_PAGE).contains(&limit) => limit,
            Some(_) => return Err(malformed(format!("`limit` is a number from 1 to {MAX_PAGE}"))),
        };
        let after = self.after.as_deref().map(|cursor| read_cursor(queue, sink, cursor)).transpose()?;
        let event_type = match self.r#type.as_deref().map(Glob::new) {
            None => None,
            Some(Ok(glob)) => Some(glob.compile_matcher()),
            Some(Err(error)) => return Err(malformed(format!("`type` is no pattern: {error}"))),
        };
        Ok(FailureQuery {
            sink,
            state,
            after,
            limit,
            event_type,
            error_contains: self.error.filter(|text| !text.is_empty()),
            failed_from: time("from", self.from.as_deref())?,
            failed_to: time("to", self.to.as_deref())?,
        })
    }
}

fn time(name: &str, text: Option<&str>) -> Result<Option<Micros>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let time = Micros::parse_rfc3339(text);
    time.map(Some)
        .ok_or_else(|| malformed(format!("`{name}` is an RFC 3339 time, such as 2026-01-31T12:00:00Z")))
}

/// `sink:offset`, as a page's `next` says it; of one sink the offset alone will do.
fn read_cursor(queue: &dyn Queue, sink: Option<SinkId>, cursor: &str) -> Result<(SinkId, u64), Problem> {
    let wrong = || malformed("`after` is the `next` of an earlier page, or an offset where `sink` is given");
    let (at, offset) = match cursor.rsplit_once(':') {
        Some((name, offset)) => (sink_named(queue, name).map_err(|_| wrong())?, offset),
        None => (sink.ok_or_else(wrong)?, cursor),
    };
    if sink.is_some_and(|sink| sink != at) {
        return Err(malformed("`after` belongs to another sink"));
    }
    Ok((at, offset.parse().map_err(|_| wrong())?))
}

/// A page of the failure table, ascending by sink and offset.
#[derive(Serialize, ToSchema)]
#[schema(as = FailurePage)]
struct Page<'a> {
    /// The rows; on a page that is not the last there may be few or none.
    failures: Vec<Row<'a>>,
    /// The `after` of the next page; null on the last one.
    #[schema(required)]
    next: Option<String>,
}

/// Rows of the failure table.
#[utoipa::path(
    get,
    path = "/v1/failures",
    tag = "failures",
    operation_id = "list_failures",
    params(Asked),
    responses((status = 200, description = "A page of them.", body = Page))
)]
async fn list(FromState(shared): FromState<Shared>, asked: Result<Query<Asked>, QueryRejection>) -> Answered {
    let queue = Arc::clone(shared.app.known_queue()?);
    let Query(asked) = asked.map_err(|rejected| malformed(rejected.body_text()))?;
    let query = asked.into_query(&*queue)?;
    let page = on_disk({
        let queue = Arc::clone(&queue);
        move || queue.failures(&query)
    })
    .await?;
    let next = page.next.map(|(sink, offset)| format!("{}:{offset}", name_of(&*queue, sink)));
    json(&Page { failures: page.rows.iter().map(|row| Row::new(&*queue, row)).collect(), next })
}

/// A row with its event.
#[derive(Serialize, ToSchema)]
#[schema(as = FailedEvent)]
struct Shown<'a> {
    #[serde(flatten)]
    row: Row<'a>,
    #[schema(format = DateTime)]
    accepted_at: String,
    /// As it was accepted.
    #[schema(value_type = CloudEvent)]
    event: Box<RawValue>,
}

/// One row with its event.
#[utoipa::path(
    get,
    path = "/v1/failures/{sink}/{offset}",
    tag = "failures",
    operation_id = "show_failure",
    params(
        ("sink" = String, Path, description = "The sink that did not take it."),
        ("offset" = u64, Path, description = "The event's offset."),
    ),
    responses((status = 200, description = "The row.", body = Shown))
)]
async fn show(
    FromState(shared): FromState<Shared>,
    Part((sink, offset)): Part<(String, String)>,
) -> Answered {
    let offset: u64 = offset.parse().map_err(|_| malformed("an offset is a number of 64 bits"))?;
    let queue = Arc::clone(shared.app.known_queue()?);
    let sink = sink_named(&*queue, &sink)?;
    let found = on_disk({
        let queue = Arc::clone(&queue);
        move || queue.failure(sink, offset)
    })
    .await?;
    let Some(FailedEvent { row, accepted_at, json: text }) = found else {
        let detail = "the failure table has no row for this event and sink: it was delivered, dropped, or never failed";
        return Err(Problem::new(Slug::NotFound, detail));
    };
    let event = raw_event(text)?;
    json(&Shown { row: Row::new(&*queue, &row), accepted_at: accepted_at.to_rfc3339(), event })
}

/// Runs what may read the disk beside the runtime.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, QueueError> + Send + 'static,
) -> Result<T, Problem> {
    let done = spawn_blocking(work).await;
    Ok(done.map_err(|failed| Problem::new(Slug::Internal, format!("the lookup failed: {failed}")))??)
}

/// Tries rows again now, with attempts counted anew.
///
/// Offsets without a row, and rows that are being tried at the moment, are passed over.
#[utoipa::path(
    post,
    path = "/v1/failures/retry",
    tag = "failures",
    operation_id = "retry_failures",
    request_body = openapi::Change,
    responses((status = 200, description = "Done, durably.", body = Changed))
)]
async fn retry(FromState(shared): FromState<Shared>, body: Body) -> Answered {
    change(&shared, body, Redrive::Retry).await
}

/// Gives rows up for good; their events count as dropped.
///
/// Offsets without a row, and rows that are being tried at the moment, are passed over.
#[utoipa::path(
    post,
    path = "/v1/failures/drop",
    tag = "failures",
    operation_id = "drop_failures",
    request_body = openapi::Change,
    responses((status = 200, description = "Done, durably.", body = Changed))
)]
async fn drop_rows(FromState(shared): FromState<Shared>, body: Body) -> Answered {
    change(&shared, body, Redrive::Drop).await
}

/// The body of a change: some rows of a sink, or all of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    sink: String,
    offsets: Option<Vec<u64>>,
    #[serde(default)]
    all: bool,
}

/// How many rows were changed.
#[derive(Serialize, ToSchema)]
struct Changed {
    changed: u64,
}

async fn change(shared: &Shared, body: Body, action: Redrive) -> Answered {
    let bytes = read(body, shared.body_timeout).await?;
    let work = async {
        let change: Change = serde_json::from_slice(&bytes).map_err(|error| {
            malformed(format!(
                r#"expected {{"sink":"…","offsets":[…]}} or {{"sink":"…","all":true}}: {error}"#
            ))
        })?;
        let selection = match (change.offsets, change.all) {
            (Some(offsets), false) if offsets.len() <= MAX_OFFSETS => Selection::Offsets(offsets),
            (Some(_), false) => {
                let detail = format!("at most {MAX_OFFSETS} offsets can be named at once");
                return Err(Problem::new(Slug::TooLarge, detail));
            }
            (None, true) => Selection::All,
            _ => return Err(malformed("either `offsets` or `all`: true is needed, not both")),
        };
        let queue = shared.app.known_queue()?;
        let sink = sink_named(&**queue, &change.sink)?;
        let changed = queue.redrive(sink, selection, action).await?;
        tracing::info!(sink = change.sink, action = ?action, changed, "rows of the failure table changed by request");
        json(&Changed { changed })
    };
    let mut answer = work.await.unwrap_or_else(Problem::into_answer);
    answer.extensions_mut().insert(BodyRead);
    Ok(answer)
}

/// The whole body, if it is small and comes in time.
pub(super) async fn read(body: Body, within: Duration) -> Result<bytes::Bytes, Problem> {
    let too_large = || format!("the body is larger than {MAX_BODY} bytes");
    read_up_to(body, MAX_BODY, within, too_large).await
}

/// The whole body, if it is no longer than `limit` and comes in time; `too_large` says when it is longer.
pub(super) async fn read_up_to(
    body: Body,
    limit: usize,
    within: Duration,
    too_large: impl FnOnce() -> String,
) -> Result<bytes::Bytes, Problem> {
    match timeout(within, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        // The only other reason is a client that broke off, which hears of nothing.
        Ok(Err(_)) => Err(Problem::new(Slug::TooLarge, too_large())),
        Err(_) => {
            Err(Problem::new(Slug::RequestTimeout, "the body did not arrive in time (http.body_timeout)"))
        }
    }
}
