//! The HTTP edge: listener, connections, limits, routes.
//!
//! ```text
//! ingest runtime (one thread)                          ops runtime
//! accept ─► connection ─► plain and whole (express) ─► queue
//!                     └─► hyper ─► POST /v1/events ──► queue
//!                               ├► POST /v1/hooks/… ─► queue
//!                               └► everything else ──► router (status, health, operators)
//! ```
//!
//! [`serve`] is the accept loop; it owns every connection's task and sweeps their deadlines. The hot
//! route is answered on the connection's task; every other route runs on the ops runtime, so that it
//! never waits for a sync. The listener answers from the first moment on: until [`App::serving`]
//! hands it a queue, requests for one get 503.
//!
//! Nothing here fails for good: a broken request ends its connection, a lack of descriptors pauses
//! accepting, and [`serve`] returns only when it is told to.

mod addresses;
mod admin;
mod auth;
mod binary;
mod body;
mod coding;
mod connection;
pub mod decode;
mod express;
mod failures;
mod hooks;
mod ingest;
mod listener;
mod openapi;
mod problem;
mod replay;
mod snapshot;
mod tls;
mod traffic;

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_rustls::rustls::ServerConfig;
use tower::ServiceExt;

use crate::config::{self, Config, Scope, Tokens};
use crate::queue::{Queue, Refusal};

use addresses::{Addresses, Place};
use auth::{Gate, Need};
use body::Budget;
use connection::{Clock, Deadlines};
use decode::EventLimits;
use hooks::Hooks;
pub use listener::{Listener, Stream};
use problem::{Problem, Slug};
pub use replay::{FailedReplay, ReplayBatch, ReplayError, Replayed};
pub use snapshot::{Snapshot, SnapshotError, TakeSnapshot};
pub use traffic::{Accepted, Traffic};

/// Where the process stands. It only goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// The logs are being opened; there is no queue yet.
    Recovering = 0,
    /// Events are accepted.
    Serving = 1,
    /// New requests are refused, those under way finish.
    Draining = 2,
    /// Storage failed; the process is about to exit.
    Failed = 3,
}

impl State {
    /// The name used in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Recovering => "recovering",
            State::Serving => "serving",
            State::Draining => "draining",
            State::Failed => "failed",
        }
    }
}

/// What operators can ask for that only the daemon around the edge can do.
pub struct Services {
    /// Copies the data directory.
    pub snapshot: Box<TakeSnapshot>,
    /// Delivers archived events once more.
    pub replay: Box<ReplayBatch>,
}

/// What the edge knows of the process around it. Shared by the daemon and every request.
pub struct App {
    started: Instant,
    state: AtomicU8,
    queue: OnceLock<Arc<dyn Queue>>,
    services: OnceLock<Arc<Services>>,
    gate: Gate,
    hooks: Hooks,
    tls: RwLock<Option<Arc<ServerConfig>>>,
    ops: Handle,
    /// Requests to the hot route between their header and their answer.
    under_way: AtomicUsize,
    none_under_way: Notify,
    /// Told of every change of `state`.
    changed: Notify,
    traffic: Traffic,
    scrape: OnceLock<Box<Scrape>>,
}

/// Writes what `GET /metrics` answers: the text format of Prometheus. May read from the disk.
pub type Scrape = dyn Fn(&App) -> String + Send + Sync;

impl App {
    /// An app that is recovering. Every route but the hot one runs on `ops`.
    pub fn new(ops: Handle) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            state: AtomicU8::new(State::Recovering as u8),
            queue: OnceLock::new(),
            services: OnceLock::new(),
            gate: Gate::default(),
            hooks: Hooks::default(),
            tls: RwLock::new(None),
            ops,
            under_way: AtomicUsize::new(0),
            none_under_way: Notify::new(),
            changed: Notify::new(),
            traffic: Traffic::default(),
            scrape: OnceLock::new(),
        })
    }

    /// From now on requests need one of these tokens, as far as they need any; with `None` they do not.
    pub fn set_tokens(&self, tokens: Option<Tokens>) {
        self.gate.set(tokens);
    }

    /// From now on webhooks are taken by these hooks. The error is about a file with a key in it; then
    /// nothing changes.
    pub fn set_hooks(&self, hooks: &[config::Hook]) -> Result<(), String> {
        self.hooks.set(hooks)
    }

    /// From now on new TCP connections are encrypted with this; with `None` they are not.
    pub fn set_tls(&self, tls: Option<Arc<ServerConfig>>) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Recovery is done: requests reach this queue from now on. Only the first call counts.
    pub fn serving(&self, queue: Arc<dyn Queue>) {
        if self.queue.set(queue).is_ok() {
            self.advance(State::Serving);
        }
    }

    /// Requests for these services are answered from now on. Only the first call counts.
    pub fn offer(&self, services: Services) {
        // A second offer changes nothing.
        let _ = self.services.set(Arc::new(services));
    }

    /// `GET /metrics` is answered by this. Only the first call counts.
    pub fn scraped_by(&self, scrape: Box<Scrape>) {
        let _ = self.scrape.set(scrape);
    }

    /// What came in and what was refused since the start.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The queue, once it is open.
    pub fn queue(&self) -> Option<&Arc<dyn Queue>> {
        self.queue.get()
    }

    /// New requests are refused from now on; see [`App::requests_finished`].
    pub fn draining(&self) {
        self.advance(State::Draining);
    }

    /// Storage failed: nothing is accepted any more and health says so.
    pub fn failed(&self) {
        self.advance(State::Failed);
    }

    /// Where the process stands.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            0 => State::Recovering,
            1 => State::Serving,
            2 => State::Draining,
            _ => State::Failed,
        }
    }

    fn advance(&self, to: State) {
        let before = self.state.fetch_max(to as u8, Ordering::SeqCst);
        if before < to as u8 {
            tracing::info!(state = to.as_str(), "state changed");
        }
        self.changed.notify_waiters();
    }

    /// Waits until the process stands there, or further on. Cancel-safe.
    async fn reaches(&self, state: State) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.state() >= state {
                return;
            }
            changed.await;
        }
    }

    fn is_ending(&self) -> bool {
        self.state() >= State::Draining
    }

    /// Waits until no request for events is under way. Meaningful once [`App::draining`] was called:
    /// a request is counted before it looks at the state, so none is overlooked.
    pub async fn requests_finished(&self) {
        loop {
            let mut notified = pin!(self.none_under_way.notified());
            notified.as_mut().enable();
            if self.under_way.load(Ordering::SeqCst) == 0 {
                return;
            }
            notified.await;
        }
    }

    fn request_begins(&self) -> UnderWay<'_> {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        UnderWay(self)
    }

    /// The queue, if requests for it are answered now.
    fn open_queue(&self) -> Result<&Arc<dyn Queue>, Problem> {
        match self.state() {
            State::Recovering => Err(Problem::new(Slug::Recovering, "the log is being recovered")),
            State::Serving => self.known_queue(),
            State::Draining => Err(Refusal::ShuttingDown.into()),
            State::Failed => Err(Refusal::StorageFailed.into()),
        }
    }

    /// What the daemon does for operators.
    fn services(&self) -> Result<&Arc<Services>, Problem> {
        self.services.get().ok_or_else(|| Problem::new(Slug::Recovering, "the log is being recovered"))
    }

    /// The queue, in every state in which there is one.
    fn known_queue(&self) -> Result<&Arc<dyn Queue>, Problem> {
        self.queue.get().ok_or_else(|| Problem::new(Slug::Recovering, "the log is being recovered"))
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// Counts one request as long as it lives.
struct UnderWay<'a>(&'a App);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.none_under_way.notify_waiters();
        }
    }
}

/// For whom a listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Every route.
    Everybody,
    /// Events, webhooks and health; operators have a listener of their own.
    Senders,
}

/// The limits the edge keeps.
#[derive(Debug, Clone)]
pub struct Limits {
    /// `[http]`
    pub http: config::Http,
    /// Most bytes of event text a request may grow into: a segment, because a request is one frame.
    pub max_batch_bytes: u64,
    /// Which routes are served.
    pub side: Side,
}

impl Limits {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        let side = if config.http.admin_listen.is_some() { Side::Senders } else { Side::Everybody };
        Self { http: config.http.clone(), max_batch_bytes: config.wal.segment_bytes, side }
    }
}

/// What every connection shares.
struct Edge {
    app: Arc<App>,
    limits: Limits,
    event_limits: EventLimits,
    budget: Arc<Budget>,
    router: axum::Router,
    date: express::Date,
}

/// A body of either side: whole, or the router's.
type AnswerBody = Either<Full<Bytes>, axum::body::Body>;

impl Edge {
    /// Answers one request.
    async fn answer(
        &self,
        request: Request<Incoming>,
        clock: &Clock,
    ) -> Result<Response<AnswerBody>, hyper::Error> {
        let mut answer = self.answer_any(request, clock).await?;
        // So that no client sends another request into a connection that is about to close.
        if self.app.is_ending() {
            close(&mut answer);
        }
        Ok(answer)
    }

    async fn answer_any(
        &self,
        request: Request<Incoming>,
        clock: &Clock,
    ) -> Result<Response<AnswerBody>, hyper::Error> {
        let path = request.uri().path();
        if request.method() == Method::POST && (path == "/v1/events" || path.starts_with(hooks::PREFIX)) {
            return Ok(ingest::answer(request, clock, self).await?.map(Either::Left));
        }
        let body_unread = !hyper::body::Body::is_end_stream(request.body());
        let admitted = match Need::of(request.method(), request.uri().path()) {
            Need::Token(Scope::Read | Scope::Admin) if self.limits.side == Side::Senders => {
                Err(Problem::new(Slug::NotFound, "only events are taken at this address (http.admin_listen)"))
            }
            Need::Token(scope) => self.app.gate.admit(scope, request.headers()),
            Need::Nothing | Need::Signature => Ok(()),
        };
        let mut answer = match admitted {
            Ok(()) => self.answer_beside(request).await,
            Err(problem) => problem.into_answer().map(Either::Left),
        };
        if body_unread && answer.extensions_mut().remove::<failures::BodyRead>().is_none() {
            clock.will_linger();
            close(&mut answer);
        }
        Ok(answer)
    }

    /// Answers on the ops runtime.
    async fn answer_beside(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let answer = self.app.ops.spawn(self.router.clone().oneshot(request.map(axum::body::Body::new)));
        match answer.await {
            Ok(Ok(answer)) => answer.map(Either::Right),
            Err(failed) => {
                tracing::error!(error = %failed, "answering a request failed");
                Problem::new(Slug::Internal, "answering the request failed").into_answer().map(Either::Left)
            }
        }
    }
}

/// Makes an answer the last one of its connection.
fn close(answer: &mut Response<AnswerBody>) {
    answer.headers_mut().insert(hyper::header::CONNECTION, hyper::header::HeaderValue::from_static("close"));
}

/// Connections beyond the limit that are being told so at a time; more are dropped unanswered.
const MAX_TURNED_AWAY: usize = 64;
/// How long one of them may take.
const TURN_AWAY: Duration = Duration::from_secs(1);
/// A refused client gets this long to see its answer (less, if bodies get less).
const LINGER: Duration = Duration::from_secs(5);

/// How long connections wait in a socket that was passed for a recovery to end; then they are told of it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a connection that was made just before the end has to send its first request, and how often
/// that is looked at.
const FIRST_WORDS: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

/// A connection without a request for this long gives up its buffers.
const PARK: Duration = Duration::from_millis(500);

/// Accepts and serves connections until `shutdown` resolves; then refuses new requests, lets those
/// under way finish, closes every connection and returns. Dropping the future closes them at once.
///
/// In sockets that were passed connections may wait: for a recovery that is short, and from the beginning of
/// the drain on for whoever gets the sockets next. So a restart is a pause to clients, and no refusal.
pub async fn serve(listener: Listener, app: Arc<App>, limits: Limits, shutdown: impl Future<Output = ()>) {
    let mut server = Server::new(app.clone(), limits);
    tracing::info!(listen = listener.describe(app.tls().is_some()), "listening");
    let mut listener = Some(listener);
    let mut shutdown = pin!(shutdown);
    let mut sweep = tokio::time::interval(server.deadlines.step());
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Accepting waits for the next sweep; and that was told, which is done once.
    let (mut starved, mut told) = (false, false);
    let is_passed = listener.as_ref().is_some_and(Listener::is_passed);
    let recovered = async {
        if is_passed {
            _ = timeout(PATIENCE, app.reaches(State::Serving)).await
        }
    };
    let mut recovered = pin!(recovered);
    let (mut is_open, mut is_left) = (false, false);
    loop {
        tokio::select! {
            // In this order: once it drains, a connection in a socket that was passed is left to whoever comes next,
            // also when both are news at the same time.
            biased;
            () = &mut recovered, if !is_open => is_open = true,
            () = app.reaches(State::Draining), if is_passed && !is_left => is_left = true,
            () = &mut shutdown, if listener.is_some() => {
                app.draining();
                server.admit_waiting(listener.take().filter(|listener| !listener.is_passed())).await;
                server.finish();
            }
            Some(ended) = server.connections.join_next_with_id() => server.remove(ended),
            _ = sweep.tick() => {
                server.sweep();
                starved = false;
            }
            accepted = accept(listener.as_mut()), if listener.is_some() && is_open && !is_left && !starved => match accepted {
                Ok(stream) => {
                    if std::mem::take(&mut told) {
                        tracing::info!("accepting connections again");
                    }
                    server.admit(stream);
                }
                Err(error) => {
                    starved = !is_of_one_connection(&error);
                    if starved && !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "accepting connections paused");
                    }
                }
            },
        }
        if listener.is_none() && server.connections.is_empty() {
            return;
        }
    }
}

async fn accept(listener: Option<&mut Listener>) -> io::Result<Stream> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Whether a failed accept says something about that connection only. Anything else (no descriptors,
/// no memory) lasts, so accepting pauses until the next sweep instead of spinning.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// The accept loop's own: every connection, and the clock of each.
struct Server {
    edge: Arc<Edge>,
    deadlines: Deadlines,
    max_connections: usize,
    connections: JoinSet<()>,
    clocks: HashMap<Id, (Arc<Clock>, Place)>,
    addresses: Addresses,
    turned_away: JoinSet<()>,
}

impl Server {
    fn new(app: Arc<App>, limits: Limits) -> Self {
        let http = &limits.http;
        app.traffic.limit_connections(http.max_connections);
        let deadlines = Deadlines {
            header: http.header_timeout,
            idle: http.idle_timeout,
            body: http.body_timeout,
            park: PARK.min(http.idle_timeout / 4),
            linger: LINGER.min(http.body_timeout),
        };
        Server {
            deadlines,
            addresses: Addresses::new(http.max_connections_per_address as usize),
            max_connections: http.max_connections as usize,
            connections: JoinSet::new(),
            clocks: HashMap::new(),
            turned_away: JoinSet::new(),
            edge: Arc::new(Edge {
                event_limits: EventLimits {
                    max_event: http.max_event_bytes as usize,
                    max_batch: limits.max_batch_bytes as usize,
                },
                budget: Budget::new(http.max_buffered_bytes),
                router: admin::router(app.clone(), &limits.http),
                limits,
                app,
                date: express::Date::default(),
            }),
        }
    }

    fn admit(&mut self, stream: Stream) {
        if stream.is_reset() {
            return;
        }
        let counts = self.edge.app.traffic.connections();
        if self.connections.len() >= self.max_connections {
            counts.turned_away.add(1);
            return self.turn_away(stream, "too many connections (http.max_connections)");
        }
        let from = match &stream {
            Stream::Tcp(_, from) => Some(*from),
            Stream::Unix(_) => None,
        };
        let Some(place) = self.addresses.enter(from) else {
            let why = "too many connections of one address (http.max_connections_per_address)";
            counts.turned_away.add(1);
            return self.turn_away(stream, why);
        };
        counts.admitted.add(1);
        let clock = Clock::begin();
        let edge = self.edge.clone();
        let (connections, clock_there) = (&mut self.connections, clock.clone());
        let task = match (stream, self.edge.app.tls()) {
            (Stream::Tcp(stream, _), None) => connections.spawn(connection::serve(stream, clock_there, edge)),
            (Stream::Tcp(stream, _), Some(tls)) => {
                connections.spawn(tls::serve(stream, tls, clock_there, edge))
            }
            (Stream::Unix(stream), _) => connections.spawn(connection::serve(stream, clock_there, edge)),
        };
        self.clocks.insert(task.id(), (clock, place));
    }

    /// Admits the connections that the kernel has made already, so that they are answered and not
    /// reset when the listener closes behind this, and waits a little for the requests of those that were
    /// made just now.
    async fn admit_waiting(&mut self, listener: Option<Listener>) {
        if let Some(mut listener) = listener {
            for _ in 0..listener::BACKLOG {
                let mut accepting = pin!(listener.accept());
                let accepted = poll_fn(|cx| Poll::Ready(accepting.as_mut().poll(cx))).await;
                match accepted {
                    Poll::Ready(Ok(stream)) => self.admit(stream),
                    Poll::Ready(Err(error)) if is_of_one_connection(&error) => {}
                    Poll::Ready(Err(_)) | Poll::Pending => break,
                }
            }
        }
        // Whoever has just connected is about to say something.
        let end = Instant::now() + FIRST_WORDS;
        while self.clocks.values().any(|(clock, _)| clock.is_fresh()) && Instant::now() < end {
            tokio::time::sleep(LOOK).await;
        }
        // What has arrived on any connection is seen and read before connections are asked to end: a
        // task that yields goes on behind the sockets' news, and behind the tasks they wake.
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
    }

    fn turn_away(&mut self, stream: Stream, why: &'static str) {
        while self.turned_away.try_join_next().is_some() {}
        if self.turned_away.len() >= MAX_TURNED_AWAY {
            return;
        }
        let full: Arc<[u8]> = Problem::new(Slug::Overloaded, why).to_wire(true, None).into();
        let tls = self.edge.app.tls();
        self.turned_away.spawn(async move {
            let answered = async {
                match (stream, tls) {
                    (Stream::Tcp(stream, _), None) => connection::turn_away(stream, full).await,
                    (Stream::Tcp(stream, _), Some(tls)) => {
                        if let Ok(Some(stream)) = tls::handshake(stream, tls).await {
                            connection::turn_away(stream, full).await;
                        }
                    }
                    (Stream::Unix(stream), _) => connection::turn_away(stream, full).await,
                }
            };
            // Whoever does not take the answer in time goes without.
            let _ = timeout(TURN_AWAY, answered).await;
        });
    }

    fn remove(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(failed) => {
                tracing::error!(error = %failed, "a connection's task failed");
                failed.id()
            }
        };
        if let Some((_, place)) = self.clocks.remove(&id) {
            self.addresses.leave(place);
        }
        self.edge.app.traffic.connections().ended.add(1);
    }

    fn sweep(&mut self) {
        let step = self.deadlines.step();
        for (clock, _) in self.clocks.values() {
            clock.sweep(&self.deadlines, step);
        }
        while self.turned_away.try_join_next().is_some() {}
    }

    fn finish(&mut self) {
        for (clock, _) in self.clocks.values() {
            clock.finish();
        }
    }
}

#[cfg(test)]
mod tests;
