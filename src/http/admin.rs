//! The routes beside the hot one: health, status, one event, pausing a sink; `failures` has more.
//!
//! Handlers run on the ops runtime. What may read the disk goes to that runtime's blocking pool. A
//! handler that fails answers a problem document and changes nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State as FromState};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::task::spawn_blocking;

use crate::config;
use crate::queue::{Lookup, Refusal, SinkId, SinkStatus, Status};

use super::failures;
use super::problem::{Answer, Problem, Slug};
use super::snapshot;
use super::{App, State};

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) app: Arc<App>,
    /// How long a request's body may take.
    pub(super) body_timeout: Duration,
    webhook_allowed_origin: Option<Arc<str>>,
}

pub(super) type Answered = Result<Answer, Problem>;

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.into_answer().into_response()
    }
}

/// All routes but the hot one.
pub fn router(app: Arc<App>, limits: &config::Http) -> Router {
    let shared = Shared {
        app,
        body_timeout: limits.body_timeout,
        webhook_allowed_origin: limits.webhook_allowed_origin.as_deref().map(Arc::from),
    };
    Router::new()
        .route("/livez", get(livez))
        .route("/healthz", get(livez))
        .route("/readyz", get(readyz))
        .route("/v1/status", get(status))
        .route("/v1/events", any(events))
        .route("/v1/hooks/{name}", any(|| async { Problem::method_not_allowed("POST") }))
        .route("/v1/events/{offset}", get(event))
        .route("/v1/sinks/{name}/pause", post(pause))
        .route("/v1/sinks/{name}/resume", post(resume))
        .route("/v1/snapshot", post(snapshot::take))
        .merge(failures::routes())
        .fallback(|| async { Problem::new(Slug::NotFound, "nothing has this address") })
        .method_not_allowed_fallback(|method: Method| async move {
            Problem::new(Slug::MethodNotAllowed, format!("this address does not know {method}"))
        })
        .with_state(shared)
}

pub(super) fn json(value: &impl Serialize) -> Answered {
    let text = serde_json::to_vec(value)
        .map_err(|error| Problem::new(Slug::Internal, format!("the answer could not be written: {error}")))?;
    let mut answer = Answer::new(Full::new(Bytes::from(text)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(answer)
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// The process works, unless storage has failed.
async fn livez(FromState(shared): FromState<Shared>) -> Answered {
    let failed = match shared.app.known_queue() {
        Ok(queue) => queue.admit(0) == Err(Refusal::StorageFailed),
        Err(_) => false,
    };
    if failed || shared.app.state() == State::Failed {
        return Err(Refusal::StorageFailed.into());
    }
    json(&Health { status: "ok" })
}

/// `/readyz` asks for this much room: a log that has a few bytes left takes no event worth its name.
const ORDINARY_EVENT_BYTES: u64 = 4096;

/// An event posted now would be accepted.
async fn readyz(FromState(shared): FromState<Shared>) -> Answered {
    let queue = shared.app.open_queue()?;
    queue.admit(ORDINARY_EVENT_BYTES).map_err(|refusal| Problem::from(refusal).unavailable())?;
    json(&Health { status: "ready" })
}

#[derive(Serialize)]
struct StatusAnswer<'a> {
    version: &'static str,
    uptime_seconds: f64,
    state: &'static str,
    wal: WalAnswer,
    failures: FailuresAnswer,
    sinks: Vec<SinkAnswer<'a>>,
}

#[derive(Serialize)]
struct WalAnswer {
    first_offset: u64,
    next_offset: u64,
    bytes: u64,
    budget_bytes: u64,
    segments: u64,
    voids: u64,
    damaged_ranges: u64,
}

#[derive(Serialize)]
struct FailuresAnswer {
    index_rebuilds: u64,
}

#[derive(Serialize)]
struct SinkAnswer<'a> {
    name: &'a str,
    r#type: &'static str,
    state: &'static str,
    acked_offset: u64,
    pending: u64,
    in_flight: u64,
    retrying: u64,
    dead: u64,
    delivered: u64,
    dropped: u64,
    skipped: u64,
    last_error: Option<&'a str>,
}

impl<'a> From<&'a SinkStatus> for SinkAnswer<'a> {
    fn from(sink: &'a SinkStatus) -> Self {
        Self {
            name: &sink.name,
            r#type: sink.kind,
            state: sink.state.as_str(),
            acked_offset: sink.acked_offset,
            pending: sink.pending,
            in_flight: sink.in_flight,
            retrying: sink.retrying,
            dead: sink.dead,
            delivered: sink.delivered,
            dropped: sink.dropped,
            skipped: sink.skipped,
            last_error: sink.last_error.as_deref(),
        }
    }
}

/// One look at everything; while recovering, at what is known so far.
async fn status(FromState(shared): FromState<Shared>) -> Answered {
    let app = &shared.app;
    let now = app.known_queue().map_or_else(|_| Status::default(), |queue| queue.status());
    let failed = now.refusing == Some(Refusal::StorageFailed);
    let state = if failed { State::Failed } else { app.state() };
    json(&StatusAnswer {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: app.started.elapsed().as_millis() as f64 / 1000.0,
        state: state.as_str(),
        wal: WalAnswer {
            first_offset: now.first_offset,
            next_offset: now.next_offset,
            bytes: now.wal_bytes,
            budget_bytes: now.wal_budget_bytes,
            segments: now.segments,
            voids: now.voids,
            damaged_ranges: now.damaged_ranges,
        },
        failures: FailuresAnswer { index_rebuilds: now.index_rebuilds },
        sinks: now.sinks.iter().map(SinkAnswer::from).collect(),
    })
}

/// The methods of the hot route's address that are not POST: the webhook handshake (CloudEvents
/// HTTP 1.1 Web Hooks, section 4) where it is switched on.
async fn events(FromState(shared): FromState<Shared>, method: Method, headers: HeaderMap) -> Answered {
    let Some(allowed) = shared.webhook_allowed_origin.as_deref() else {
        return Err(Problem::method_not_allowed("POST"));
    };
    if method != Method::OPTIONS {
        return Err(Problem::method_not_allowed("POST,OPTIONS"));
    }
    let mut answer = Answer::new(Full::default());
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST,OPTIONS"));
    let Some(origin) = headers.get("webhook-request-origin") else {
        *answer.status_mut() = StatusCode::NO_CONTENT;
        return Ok(answer);
    };
    if allowed != "*" && !origin.as_bytes().eq_ignore_ascii_case(allowed.as_bytes()) {
        return Err(Problem::new(Slug::Forbidden, "this origin may not deliver here"));
    }
    let allowed = HeaderValue::from_str(allowed)
        .map_err(|_| Problem::new(Slug::Internal, "http.webhook_allowed_origin is no header value"))?;
    answer.headers_mut().insert(HeaderName::from_static("webhook-allowed-origin"), allowed);
    answer
        .headers_mut()
        .insert(HeaderName::from_static("webhook-allowed-rate"), HeaderValue::from_static("*"));
    Ok(answer)
}

#[derive(Serialize)]
struct EventAnswer {
    offset: u64,
    time: String,
    event: Box<RawValue>,
    #[serde(serialize_with = "as_map")]
    sinks: Vec<(String, &'static str)>,
}

/// Keeps the configured order, which a map of serde's would not.
fn as_map<S: serde::Serializer>(pairs: &[(String, &'static str)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, state)| (name, state)))
}

/// A stored event as part of an answer.
pub(super) fn raw_event(text: Vec<u8>) -> Result<Box<RawValue>, Problem> {
    let text = String::from_utf8(text).ok();
    let event = text.and_then(|text| RawValue::from_string(text).ok());
    event.ok_or_else(|| Problem::new(Slug::Internal, "the stored event is not JSON"))
}

/// One event, and where each sink stands with it.
async fn event(FromState(shared): FromState<Shared>, Path(offset): Path<String>) -> Answered {
    let offset: u64 =
        offset.parse().map_err(|_| Problem::new(Slug::Malformed, "an offset is a number of 64 bits"))?;
    let queue = shared.app.known_queue()?.clone();
    let found = spawn_blocking(move || queue.event(offset))
        .await
        .map_err(|failed| Problem::new(Slug::Internal, format!("the lookup failed: {failed}")))??;
    let none = |slug, detail: &'static str| Err(Problem::new(slug, detail));
    match found {
        Lookup::Found { accepted_at, json: text, sinks } => {
            let event = raw_event(text)?;
            let sinks = sinks.into_iter().map(|(name, state)| (name, state.as_str())).collect();
            json(&EventAnswer { offset, time: accepted_at.to_rfc3339(), event, sinks })
        }
        Lookup::Released => none(Slug::Released, "every sink is done with this event and the log let it go"),
        Lookup::Void => none(Slug::NotFound, "no event has this offset: it is void"),
        Lookup::NotYet => none(Slug::NotFound, "no event has this offset yet"),
    }
}

async fn pause(FromState(shared): FromState<Shared>, Path(name): Path<String>) -> Answered {
    set_paused(&shared, &name, true).await
}

async fn resume(FromState(shared): FromState<Shared>, Path(name): Path<String>) -> Answered {
    set_paused(&shared, &name, false).await
}

#[derive(Serialize)]
struct Paused<'a> {
    name: &'a str,
    paused: bool,
}

/// Stops or starts a sink; answered once that is durable.
async fn set_paused(shared: &Shared, name: &str, paused: bool) -> Answered {
    let queue = shared.app.known_queue()?;
    let position = queue.sinks().iter().position(|sink| sink.name == name);
    let Some(sink) = position.and_then(|at| u16::try_from(at).ok()) else {
        return Err(Problem::new(Slug::NotFound, "no sink has this name"));
    };
    queue.set_paused(SinkId(sink), paused).await?;
    json(&Paused { name, paused })
}
