//! The daemon: lock → listen → recover → open sinks → serve → drain. `run` reads top to bottom.
//!
//! ```text
//! main           this file: starts everything, then waits for a signal or for bad news
//! ingest         HTTP connections and the group commit, on one current-thread runtime
//! ledger, stock  checkpoints and freed segments; spare segments
//! sink-<name>-<n> the workers of the sinks
//! operations     a small runtime: every other route, timers, signals
//! ```
//!
//! Everything the daemon cannot do without is watched (`vigil`): what ends before it was told to,
//! panics included, starts the drain, and the process ends with an error. Failed storage ends it
//! with code 4 and without the mark of a clean stop, so that the next start recovers from the disk.

mod activation;
mod alive;
mod builder;
mod descriptors;
mod drain;
mod lock;
mod metrics;
mod notify;
mod process;
mod reload;
mod replay;
mod signals;
mod snapshot;
mod stopped;
#[cfg(test)]
mod tests;
mod vigil;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::config::{Config, ConfigError, Http, Listen, SinkConfig};
use crate::disk::{Disk, RealDisk};
use crate::event::Micros;
use crate::http::{self, App, Limits, Listener, Services, Side};
use crate::log::{Entropy, LogError, Report};
use crate::queue::embedded::{self, Committer, EmbeddedQueue, OpenError, Opened};
use crate::queue::{QueueError, SinkId, SinkInfo};
use crate::sink::{self, Resume};
use crate::worker::{self, Availability, Worker};

pub use builder::{Builder, OpenSink, Running};
pub use lock::Lock;
pub use stopped::{StoppedQueue, repair_log};

use activation::Passed;
use builder::Serving;
use drain::Drain;
use metrics::{Metrics, Started};
pub use reload::Reread;
use reload::{InForce, Reload};
use replay::Replays;
use snapshot::Snapshots;
use vigil::{Ended, Vigil, Watch};

/// Connections that operators have at a time at an address of their own: they take descriptors from those that
/// are kept from clients.
const MAX_OPERATORS: u32 = 64;

/// Why the daemon ended other than by an orderly stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the data directory.
    #[error(
        "the data directory {} is in use by another eventflow process{}; stop that one or choose another `data_dir`",
        dir.display(),
        .pid.map_or(String::new(), |pid| format!(" (pid {pid})"))
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The other process, if it said.
        pid: Option<u32>,
    },
    /// The data directory cannot be used.
    #[error("the data directory {} cannot be used: {reason}", dir.display())]
    DataDir {
        /// The directory.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {reason}; {instead} chooses another address")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        reason: String,
        /// What chooses another one.
        instead: &'static str,
    },
    /// The service manager passed something that is no socket to listen on.
    #[error("socket activation: {0}; see the socket unit that starts this service")]
    Activation(String),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A write or sync failed, or there was no room to start.
    #[error("storage failed: {0}")]
    StorageFailed(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// What opens the sinks of a program around the daemon; for their workers, and for replays.
type OwnSinks = Arc<Mutex<BTreeMap<String, OpenSink>>>;

/// Runs the daemon until a signal stops it; `reread` reads the configuration again when one asks for that.
pub fn serve(config: &Config, reread: Reread) -> Result<(), Error> {
    // Before any file is opened: what is not open of what should have been passed must not be ours.
    let passed = Passed::take()?;
    descriptors::raise();
    let operations = operations()?;
    let reload = Reload { asked: Arc::default(), read: Some(reread) };
    let stop = signals::listen(reload.asked.clone(), &operations)?;
    let ended = run(Builder::new(config.clone()), passed, operations.handle(), (stop, reload), |_| {});
    // What does not end by itself (a delivery past its time) ends with the process.
    operations.shutdown_background();
    ended
}

/// The runtime for everything that must not wait for a sync.
fn operations() -> Result<Runtime, Error> {
    let built =
        runtime::Builder::new_multi_thread().worker_threads(2).thread_name("operations").enable_all().build();
    built.map_err(|error| Error::Failed(format!("cannot start the operations runtime: {error}")))
}

/// Runs the daemon until `stop` turns true or its sender is gone, and says when it serves. Blocks; must
/// not be called from a task of `operations`.
fn run(
    Builder { config, own, .. }: Builder,
    passed: Passed,
    operations: &Handle,
    (stop, reload): (watch::Receiver<bool>, Reload),
    tell: impl FnOnce(Serving),
) -> Result<(), Error> {
    let (config, own) = (&config, Arc::new(Mutex::new(own)));
    let (began, manager) = (Instant::now(), passed.manager);
    let real_disk = Arc::new(RealDisk::default());
    let disk: Arc<dyn Disk> = real_disk.clone();
    let mut vigil = Vigil::new();

    // Lock: before anything is read or written.
    let _lock = lock_data_dir(config, &*disk)?;

    // Listen: who comes during recovery gets an answer, not a refused connection.
    let app = App::new(operations.clone());
    let metrics = Metrics::behind(&app, config, disk.clone());
    let_in(config, &app)?;
    let (ingest, url) = Ingest::start(config, passed, app.clone(), &mut vigil)?;
    listen_for_operators(config, &app, operations, ingest.stop.subscribe(), &mut vigil)?;

    // Recover.
    let telling = alive::recovering(manager, operations, real_disk);
    let Opened { queue, committer, ledger, stock, resumes, wal_report, .. } =
        open_queue(config, disk.clone())?;

    // Open the sinks, before any thread writes: a sink that cannot be opened leaves nothing running.
    let (stop_workers, workers_stop) = watch::channel(false);
    let (workers, shared) = open_workers(config, &own, &disk, &queue, resumes, &workers_stop)?;

    // Set everything going; the committer last, so that nothing is accepted before all else stands.
    vigil.start("ledger", move || Ok(ledger.run()?))?;
    vigil.start("stock", move || {
        stock.run();
        Ok(())
    })?;
    let mut parts: Vec<_> = queue.pulses().map(|(name, pulse)| (name.to_owned(), pulse)).into();
    for (number, worker) in workers.into_iter().enumerate() {
        parts.push((worker_name(&worker, number), worker.pulse.clone()));
        start_worker(worker, number, operations.clone(), &mut vigil)?;
    }
    let stop_http = ingest.commit_for(committer, &mut vigil)?;

    // Serve, until a signal or bad news.
    let snapshots = Snapshots::new(config, &disk, &queue);
    let replays = Replays::new(config, &disk, &own, operations, &workers_stop);
    app.offer(Services {
        snapshot: Box::new(move |dir| snapshots.take(&dir)),
        replay: Box::new(move |sink, events| replays.replay(sink, events)),
    });
    app.serving(queue.clone());
    drop(telling);
    let telling = alive::serving(manager, operations, parts);
    manager.ready();
    tell_serving(&wal_report, began.elapsed());
    metrics.started(Started { sinks: shared.clone(), report: wal_report, took: began.elapsed() });
    tell(Serving { url, queue: queue.clone() });
    let in_force = InForce { config: config.clone(), app: &app, sinks: shared, manager };
    let trouble = operations.block_on(wait_for_the_end(stop, &mut vigil, &queue, reload, in_force));

    // Drain.
    manager.stopping();
    drop(telling);
    let _telling = alive::draining(manager, operations);
    let drain = Drain { app: &app, queue: &queue, stop_workers, stop_http, vigil };
    operations.block_on(drain.after(trouble, config.shutdown.drain_timeout))
}

/// A proxy in front may well encrypt; only the operator knows.
fn warn_of_clear_text(http: &Http) {
    let open =
        [Some(&http.listen), http.admin_listen.as_ref()].into_iter().flatten().find_map(
            |listen| match listen {
                Listen::Tcp(address) if !address.ip().is_loopback() => Some(address),
                Listen::Tcp(_) | Listen::Unix(_) => None,
            },
        );
    if let (Some(address), Some(_), None) = (open, &http.tokens_file, &http.tls) {
        tracing::warn!(%address, "tokens travel unencrypted, unless something in front encrypts; see http.tls_cert");
    }
}

/// Reads who is let in and by what, and puts it into force. All of it or, after an error, nothing.
fn let_in(config: &Config, app: &App) -> Result<(), ConfigError> {
    let mistake = |sentence| ConfigError::Mistakes(vec![sentence]);
    let tokens = config.http.tokens().map_err(mistake)?;
    let tls = config.http.tls.as_ref().map(|tls| tls.server()).transpose().map_err(mistake)?;
    app.set_hooks(&config.hooks).map_err(mistake)?;
    app.set_tokens(tokens);
    app.set_tls(tls);
    warn_of_clear_text(&config.http);
    Ok(())
}

fn tell_serving(report: &Report, took: Duration) {
    tracing::info!(
        first_offset = report.first_offset,
        next_offset = report.next_offset,
        clean_stop = report.clean_stop,
        took_ms = took.as_millis() as u64,
        "serving"
    );
}

/// Makes the data directory, durably, and locks it.
fn lock_data_dir(config: &Config, disk: &dyn Disk) -> Result<Lock, Error> {
    let dir = &config.data_dir;
    disk.create_dir_all(dir).map_err(|error| storage_error(dir, error.kind(), &error.to_string()))?;
    Lock::take(dir)
}

/// The ingest thread while it waits for its committer.
struct Ingest {
    committer: oneshot::Sender<(Committer, Watch)>,
    stop: watch::Sender<bool>,
}

impl Ingest {
    /// Binds the listener and starts to answer on a thread of its own; also says where.
    fn start(
        config: &Config,
        passed: Passed,
        app: Arc<App>,
        vigil: &mut Vigil,
    ) -> Result<(Self, String), Error> {
        // The blocking pool decodes large bodies and commits to slow disks; more threads than that would
        // only crowd the processor.
        let runtime = runtime::Builder::new_current_thread().enable_all().max_blocking_threads(3).build();
        let runtime =
            runtime.map_err(|error| Error::Failed(format!("cannot start the ingest runtime: {error}")))?;
        let listener = {
            let _inside = runtime.enter();
            listen(config, passed)?
        };
        let url = listener.describe(config.http.tls.is_some());
        let mut limits = Limits::of(config);
        limits.http.max_connections = descriptors::connections(limits.http.max_connections);
        let (committer, arriving) = oneshot::channel::<(Committer, Watch)>();
        let (stop, mut stopped) = watch::channel(false);
        let http = vigil.watch("http");
        vigil.start("ingest", move || {
            runtime.block_on(async move {
                let commits = tokio::spawn(async move {
                    // Dropped when the queue did not open; then there is nothing to commit.
                    if let Ok((committer, watch)) = arriving.await {
                        watch.end(committer.run().await.map_err(Error::from));
                    }
                });
                let stopped = async move {
                    // A daemon that is gone without a word stops as well.
                    let _ = stopped.wait_for(|stop| *stop).await;
                };
                http::serve(listener, app, limits, stopped).await;
                http.end(Ok(()));
                commits.await.map_err(|error| Error::Failed(format!("the committer ended early: {error}")))
            })
        })?;
        Ok((Self { committer, stop }, url))
    }

    /// Hands the ingest thread its committer; what is left stops the HTTP edge.
    fn commit_for(self, committer: Committer, vigil: &mut Vigil) -> Result<watch::Sender<bool>, Error> {
        let watch = vigil.watch("committer");
        match self.committer.send((committer, watch)) {
            Ok(()) => Ok(self.stop),
            Err(_) => Err(Error::Failed("the ingest thread ended before it began".to_owned())),
        }
    }
}

/// Serves operators at an address of their own, if the configuration names one.
fn listen_for_operators(
    config: &Config,
    app: &Arc<App>,
    operations: &Handle,
    mut stopped: watch::Receiver<bool>,
    vigil: &mut Vigil,
) -> Result<(), Error> {
    let Some(address) = &config.http.admin_listen else { return Ok(()) };
    let _inside = operations.enter();
    let listener = bind(address, "`http.admin_listen`")?;
    let mut limits = Limits { side: Side::Everybody, ..Limits::of(config) };
    limits.http.max_connections = limits.http.max_connections.min(MAX_OPERATORS);
    let (app, watch) = (app.clone(), vigil.watch("http-admin"));
    operations.spawn(async move {
        let stopped = async move {
            // A daemon that is gone without a word stops as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        http::serve(listener, app, limits, stopped).await;
        watch.end(Ok(()));
    });
    Ok(())
}

/// Must be called inside a runtime.
fn bind(listen: &Listen, instead: &'static str) -> Result<Listener, Error> {
    Listener::bind(listen).map_err(|error| Error::Listen {
        address: match listen {
            Listen::Tcp(address) => address.to_string(),
            Listen::Unix(path) => path.display().to_string(),
        },
        reason: error.to_string(),
        instead,
    })
}

/// The sockets that were passed, or the one that the configuration names. Must be called inside a runtime.
fn listen(config: &Config, passed: Passed) -> Result<Listener, Error> {
    if passed.http.is_empty() {
        return bind(&config.http.listen, "`http.listen` or `--listen`");
    }
    let listener =
        Listener::adopt(passed.http).map_err(|error| Error::Activation(format!("a socket: {error}")))?;
    let open = listener.addresses().find(|address| !address.ip().is_loopback());
    match open.filter(|_| !config.http.allow_anonymous && config.http.tokens_file.is_none()) {
        Some(address) => Err(Error::Activation(format!(
            "{address} is reachable from other machines and anyone there could post and read events: give out \
             tokens (`http.tokens_file`), or set `http.allow_anonymous = true` if that is meant"
        ))),
        None => Ok(listener),
    }
}

fn open_queue(config: &Config, disk: Arc<dyn Disk>) -> Result<Opened, Error> {
    let sinks = config.sinks.iter().map(|sink| SinkInfo {
        name: sink.name.clone(),
        kind: sink.kind.name(),
        starts_paused: sink.paused,
        parks: !sink.kind.keeps_order(),
        order: worker::order(sink),
    });
    let clock = Arc::new(Micros::now);
    embedded::open(disk, config, sinks.collect(), entropy(), clock).map_err(|error| match &error {
        OpenError::Wal(cause) | OpenError::Ledger(cause) | OpenError::Failures(cause) => match cause {
            LogError::Io { kind, .. } => storage_error(&config.data_dir, *kind, &error.to_string()),
            LogError::Foreign { .. } => {
                Error::DataDir { dir: config.data_dir.clone(), reason: error.to_string() }
            }
            LogError::Failed(_) => Error::StorageFailed(error.to_string()),
        },
        _ => Error::StorageFailed(error.to_string()),
    })
}

/// Keyed by the system's randomness; unpredictable enough for salts, and nothing rests on more.
fn entropy() -> Entropy {
    Box::new(|| std::hash::RandomState::new().build_hasher().finish())
}

/// An error while starting: a directory that one may not write is for the operator to put right,
/// everything else is a failing disk.
fn storage_error(dir: &Path, kind: io::ErrorKind, reason: &str) -> Error {
    use io::ErrorKind::{
        AlreadyExists, IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
    };
    match kind {
        PermissionDenied | ReadOnlyFilesystem | NotADirectory | IsADirectory | AlreadyExists | NotFound => {
            Error::DataDir { dir: dir.to_owned(), reason: reason.to_owned() }
        }
        _ => Error::StorageFailed(reason.to_owned()),
    }
}

/// The workers of every sink, each with an instance of the sink of its own; and what those of one sink share.
fn open_workers(
    config: &Config,
    own: &OwnSinks,
    disk: &Arc<dyn Disk>,
    queue: &Arc<EmbeddedQueue>,
    resumes: Vec<Resume>,
    stop: &watch::Receiver<bool>,
) -> Result<(Vec<Worker>, Vec<Arc<Availability>>), Error> {
    let (mut workers, mut shared) = (Vec::new(), Vec::new());
    for (id, (sink, resume)) in (0..).map(SinkId).zip(config.sinks.iter().zip(resumes)) {
        let availability = Arc::new(Availability::new(sink));
        for _ in 0..sink.workers {
            workers.push(Worker {
                queue: queue.clone(),
                sink_id: id,
                config: sink.clone(),
                sink: open_sink(config, sink, own, disk, resume.clone())?,
                availability: availability.clone(),
                stop: stop.clone(),
                pulse: Arc::default(),
            });
        }
        shared.push(availability);
    }
    Ok((workers, shared))
}

fn open_sink(
    config: &Config,
    sink: &SinkConfig,
    own: &OwnSinks,
    disk: &Arc<dyn Disk>,
    resume: Resume,
) -> Result<Box<dyn sink::Sink>, Error> {
    let mut own = own.lock().unwrap_or_else(PoisonError::into_inner);
    match own.get_mut(&sink.name) {
        Some(open) => open(resume).map_err(|error| Error::Failed(error.to_string())),
        // A target that is away is no error of ours, so what is one is in the configuration.
        None => sink::open(sink, &config.data_dir, disk.clone(), resume)
            .map_err(|error| ConfigError::Mistakes(vec![error.to_string()]).into()),
    }
}

/// Workers read the log and the archive writes files, so each has a thread of its own.
fn start_worker(worker: Worker, number: usize, operations: Handle, vigil: &mut Vigil) -> Result<(), Error> {
    vigil.start(&worker_name(&worker, number), move || Ok(operations.block_on(worker.run())?))
}

fn worker_name(worker: &Worker, number: usize) -> String {
    format!("{}{}-{number}", drain::SINK, worker.config.name)
}

/// Waits for a signal to stop (`None`) or for something that ended before it was told to; and reads the
/// configuration again meanwhile, as often as that is asked for.
async fn wait_for_the_end(
    mut stop: watch::Receiver<bool>,
    vigil: &mut Vigil,
    queue: &EmbeddedQueue,
    mut reload: Reload,
    mut in_force: InForce<'_>,
) -> Option<Error> {
    let Ended { name, how } = loop {
        tokio::select! {
            // An error means that whoever could stop the daemon is gone; it stops then, too.
            _ = stop.wait_for(|stop| *stop) => return None,
            ended = vigil.next() => break ended,
            () = reload.asked.notified() => {
                if let Some(reread) = &mut reload.read {
                    in_force.renew(reread);
                }
            }
        }
    };
    // Failed storage ends several threads at once; it is the reason, whichever was heard first.
    Some(match (queue.failed(), how) {
        (Some(reason), _) => Error::StorageFailed(reason),
        (None, Err(error)) => error,
        (None, Ok(())) => {
            Error::Failed(format!("`{name}` ended although nobody told it to; please report this"))
        }
    })
}

impl Error {
    /// This error, unless what came later is failed storage.
    fn or_worse(self, later: Result<(), Error>) -> Error {
        match later {
            Err(worse @ Error::StorageFailed(_)) => worse,
            _ => self,
        }
    }
}

impl From<QueueError> for Error {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::StorageFailed(reason) => Error::StorageFailed(reason),
            other => Error::Failed(other.to_string()),
        }
    }
}

impl From<LogError> for Error {
    fn from(error: LogError) -> Self {
        Error::StorageFailed(error.to_string())
    }
}
