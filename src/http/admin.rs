//! The routes beside the hot one: health, status, one event, pausing a sink; `failures` has more.
//!
//! Handlers run on the ops runtime. What may read the disk goes to that runtime's blocking pool. A
//! handler that fails answers a problem document and changes nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, Path, State as FromState};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, Schema};

use crate::config;
use crate::queue::{EventState, Lookup, Refusal, SinkId, SinkState, SinkStatus, Status};

use super::openapi::{self, CloudEvent, Routes, one_of, problems, unavailable};
use super::problem::{Answer, Problem, Slug};
use super::{App, State, failures, ingest, replay, snapshot};

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) app: Arc<App>,
    /// How long a request's body may take.
    pub(super) body_timeout: Duration,
    /// How large a request's body may be.
    pub(super) max_body_bytes: usize,
    webhook_allowed_origin: Option<Arc<str>>,
}

pub(super) type Answered = Result<Answer, Problem>;

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.into_answer().into_response()
    }
}

/// All routes but the hot one, which is described here all the same.
pub fn router(app: Arc<App>, limits: &config::Http) -> Router {
    let shared = Shared {
        app,
        body_timeout: limits.body_timeout,
        max_body_bytes: limits.max_body_bytes as usize,
        webhook_allowed_origin: limits.webhook_allowed_origin.as_deref().map(Arc::from),
    };
    routes()
        .into_router()
        .fallback(|| async { Problem::new(Slug::NotFound, "nothing has this address") })
        .method_not_allowed_fallback(|method: Method| async move {
            Problem::new(Slug::MethodNotAllowed, format!("this address does not know {method}"))
        })
        .with_state(shared)
}

/// Each route with its description.
pub(super) fn routes() -> Routes {
    use Slug::{Forbidden, Malformed, NotFound, Overloaded, Recovering, Released, RequestTimeout};
    use Slug::{ShuttingDown, StorageFailed, StorageFull, TooLarge, WalFull};
    let not_ready = [Recovering, ShuttingDown, StorageFailed, StorageFull, WalFull, Overloaded];
    let routes = Routes::default()
        .add(__path_livez, livez, problems(&[StorageFailed]))
        .add(__path_healthz, healthz, problems(&[StorageFailed]))
        .add(__path_readyz, readyz, unavailable(&not_ready))
        .add(__path_status, status, problems(&[]))
        .add(__path_metrics, metrics, problems(&[]))
        .add(openapi::__path_openapi, openapi::openapi, problems(&[]))
        .serve("/v1/events", any(events))
        .describe(ingest::__path_post_events, problems(&ingest::PROBLEMS))
        .describe(__path_events, problems(&[Forbidden, Slug::MethodNotAllowed]))
        .serve("/v1/hooks/{name}", any(|| async { Problem::method_not_allowed("POST") }))
        .describe(ingest::__path_post_hook, problems(&ingest::HOOK_PROBLEMS))
        .add(__path_event, event, problems(&[Malformed, NotFound, Released, Recovering, StorageFailed]))
        .add(__path_pause, pause, problems(&[Malformed, NotFound, Recovering, StorageFailed]))
        .add(__path_resume, resume, problems(&[Malformed, NotFound, Recovering, StorageFailed]));
    let snapshot = [
        Malformed,
        Slug::Conflict,
        RequestTimeout,
        TooLarge,
        Recovering,
        ShuttingDown,
        StorageFailed,
        StorageFull,
    ];
    let replay =
        [Malformed, NotFound, Slug::Conflict, Overloaded, RequestTimeout, TooLarge, Recovering, ShuttingDown];
    let routes = routes.add(snapshot::__path_take, snapshot::take, problems(&snapshot)).add(
        replay::__path_replay,
        replay::replay,
        problems(&replay),
    );
    failures::add_to(routes)
}

/// A part of an address, decoded.
pub(super) struct Part<T>(pub T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned + Send> FromRequestParts<S> for Part<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(part) = Path::<T>::from_request_parts(parts, state)
            .await
            .map_err(|rejected| Problem::new(Slug::Malformed, rejected.body_text()))?;
        Ok(Self(part))
    }
}

pub(super) fn json(value: &impl Serialize) -> Answered {
    let text = serde_json::to_vec(value)
        .map_err(|error| Problem::new(Slug::Internal, format!("the answer could not be written: {error}")))?;
    let mut answer = Answer::new(Full::new(Bytes::from(text)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(answer)
}

/// A word for probes that read bodies.
#[derive(Serialize, ToSchema)]
struct Health {
    #[schema(schema_with = health_words)]
    status: &'static str,
}

fn health_words() -> Schema {
    one_of(["ok", "ready"])
}

/// Whether the process works.
///
/// It does, unless storage has failed.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, description = "It works.", body = Health)))]
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

/// The same as `/livez`.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, description = "It works.", body = Health)))]
async fn healthz(shared: FromState<Shared>) -> Answered {
    livez(shared).await
}

/// `/readyz` asks for this much room: a log that has a few bytes left takes no event worth its name.
const ORDINARY_EVENT_BYTES: u64 = 4096;

/// Whether an event posted now would be accepted.
#[utoipa::path(get, path = "/readyz", tag = "health", responses((status = 200, description = "It would.", body = Health)))]
async fn readyz(FromState(shared): FromState<Shared>) -> Answered {
    let queue = shared.app.open_queue()?;
    queue.admit(ORDINARY_EVENT_BYTES).map_err(|refusal| Problem::from(refusal).unavailable())?;
    json(&Health { status: "ready" })
}

/// One look at everything that is counted.
#[derive(Serialize, ToSchema)]
#[schema(as = Status)]
struct StatusAnswer<'a> {
    version: &'static str,
    uptime_seconds: f64,
    #[schema(schema_with = states)]
    state: &'static str,
    wal: WalAnswer,
    failures: FailuresAnswer,
    sinks: Vec<SinkAnswer<'a>>,
}

fn states() -> Schema {
    one_of([State::Recovering, State::Serving, State::Draining, State::Failed].map(State::as_str))
}

/// The write-ahead log.
#[derive(Serialize, ToSchema)]
#[schema(as = Wal)]
struct WalAnswer {
    first_offset: u64,
    next_offset: u64,
    bytes: u64,
    budget_bytes: u64,
    segments: u64,
    voids: u64,
    damaged_ranges: u64,
}

/// The failure table.
#[derive(Serialize, ToSchema)]
#[schema(as = FailureTable)]
struct FailuresAnswer {
    /// How often its index had to be built anew since the start.
    index_rebuilds: u64,
}

/// One sink. At every instant, accepted and matching = delivered + dropped + dead + retrying + pending.
#[derive(Serialize, ToSchema)]
#[schema(as = Sink)]
struct SinkAnswer<'a> {
    name: &'a str,
    r#type: &'static str,
    #[schema(schema_with = sink_states)]
    state: &'static str,
    acked_offset: u64,
    pending: u64,
    in_flight: u64,
    retrying: u64,
    dead: u64,
    delivered: u64,
    dropped: u64,
    skipped: u64,
    #[schema(required)]
    last_error: Option<&'a str>,
}

fn sink_states() -> Schema {
    one_of([SinkState::Running, SinkState::Paused, SinkState::BackingOff].map(SinkState::as_str))
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
#[utoipa::path(
    get,
    path = "/v1/status",
    tag = "health",
    responses((status = 200, description = "What is counted now.", body = StatusAnswer))
)]
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

/// Everything that is counted, for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "health",
    responses((status = 200, description = "The text format 0.0.4.", content_type = "text/plain", body = String))
)]
async fn metrics(FromState(shared): FromState<Shared>) -> Answered {
    let scraped = spawn_blocking(move || shared.app.scrape.get().map(|scrape| scrape(&shared.app))).await;
    let text =
        scraped.map_err(|failed| Problem::new(Slug::Internal, format!("the scrape failed: {failed}")))?;
    let mut answer = Answer::new(Full::new(Bytes::from(text.unwrap_or_default())));
    let text_format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, text_format);
    Ok(answer)
}

/// The methods of the hot route's address that are not POST: the webhook handshake (CloudEvents
/// HTTP 1.1 Web Hooks, section 4) where it is switched on.
#[utoipa::path(
    options,
    path = "/v1/events",
    tag = "events",
    operation_id = "handshake",
    summary = "The webhook handshake",
    description = "CloudEvents HTTP 1.1 Web Hooks, section 4, where `http.webhook_allowed_origin` switches it on.",
    params(("WebHook-Request-Origin" = Option<String>, Header, description = "Who wants to deliver.")),
    responses(
        (
            status = 200,
            description = "This origin may deliver.",
            headers(("WebHook-Allowed-Origin" = String), ("WebHook-Allowed-Rate" = String))
        ),
        (status = 204, description = "Nobody asked for an origin.")
    )
)]
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

/// An event, and where each sink stands with it.
#[derive(Serialize, ToSchema)]
#[schema(as = EventAtSinks)]
struct EventAnswer {
    offset: u64,
    /// When it was accepted.
    #[schema(format = DateTime)]
    time: String,
    /// As it was accepted.
    #[schema(value_type = CloudEvent)]
    event: Box<RawValue>,
    #[serde(serialize_with = "as_map")]
    #[schema(schema_with = event_states)]
    sinks: Vec<(String, &'static str)>,
}

fn event_states() -> Schema {
    use EventState::{Dead, Delivered, Done, Dropped, InFlight, Pending, Retrying};
    let states =
        one_of([Pending, InFlight, Retrying, Dead, Delivered, Dropped, Done].map(EventState::as_str));
    let meaning = "By sink. `delivered` is also what its filter does not match. `done` is delivered or dropped, when it \
                   is not known any more which: the newest 256 ranges of dropped events are remembered, and none that \
                   damage or a crash took the record of.";
    let states = ObjectBuilder::new().description(Some(meaning)).additional_properties(Some(states));
    states.build().into()
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
#[utoipa::path(
    get,
    path = "/v1/events/{offset}",
    tag = "events",
    params(("offset" = u64, Path, description = "Which event.")),
    responses((status = 200, description = "It is still in the log or in the failure table.", body = EventAnswer))
)]
async fn event(FromState(shared): FromState<Shared>, Part(offset): Part<String>) -> Answered {
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

/// Stops claiming for a sink; lasts across restarts until resumed.
#[utoipa::path(
    post,
    path = "/v1/sinks/{name}/pause",
    tag = "sinks",
    params(("name" = String, Path, description = "Which sink.")),
    responses((status = 200, description = "Done, durably.", body = Paused))
)]
async fn pause(FromState(shared): FromState<Shared>, Part(name): Part<String>) -> Answered {
    set_paused(&shared, &name, true).await
}

/// Starts claiming for a sink.
#[utoipa::path(
    post,
    path = "/v1/sinks/{name}/resume",
    tag = "sinks",
    params(("name" = String, Path, description = "Which sink.")),
    responses((status = 200, description = "Done, durably.", body = Paused))
)]
async fn resume(FromState(shared): FromState<Shared>, Part(name): Part<String>) -> Answered {
    set_paused(&shared, &name, false).await
}

/// Whether a sink is paused now.
#[derive(Serialize, ToSchema)]
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
