//! Every limit the daemon has, with unit, default and range. Out of range is an error, never a clamp.
//!
//! Pure data and validation; reading files and the environment is here too, because nobody else
//! may decide what a key means. Used before anything else runs; a mistake ends the process with
//! code 2 and a sentence that names the key.
//!
//! `read` turns settings into a [`Config`] and is the one place where a key's name, default and
//! range stand; `settings` gathers them from file, environment and flags; `units` spells sizes and
//! durations; `print` writes a [`Config`] back as TOML; `keys` says what each key means and how to add
//! one, and `explain` makes the documents from that.

mod change;
mod exec;
mod explain;
mod files;
mod hook;
mod keys;
mod layout;
mod pattern;
mod print;
mod read;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod units;
mod webhook;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use exec::Exec;
pub use hook::{Encoding, Hmac, Hook, HookKeys, HookKind, Piece};
pub use layout::Layout;
pub use pattern::Pattern;
pub use tls::Tls;
pub use tokens::{Rate, Scope, Scopes, Token, TokenHash, Tokens, digest_from_hex};
pub use webhook::{
    Endpoint, Hidden, Meaning, Mode, SigningKey, StatusPattern, Webhook, is_public, is_secret_header,
};

/// The effective configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where everything durable lives.
    pub data_dir: PathBuf,
    /// The HTTP edge.
    pub http: Http,
    /// The event log.
    pub wal: Wal,
    /// The ledger.
    pub ledger: Ledger,
    /// The failure table.
    pub failures: Failures,
    /// The orderly stop.
    pub shutdown: Shutdown,
    /// Copies of the data directory.
    pub snapshot: Snapshot,
    /// The sinks in order; never empty.
    pub sinks: Vec<SinkConfig>,
    /// Webhooks that are taken in.
    pub hooks: Vec<Hook>,
    /// Logs.
    pub telemetry: Telemetry,
}

/// `[http]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Where to listen.
    pub listen: Listen,
    /// Most bytes of a request body, decoded.
    pub max_body_bytes: u64,
    /// Most bytes of one event's JSON text.
    pub max_event_bytes: u64,
    /// Most open connections; one more is answered 429 and closed.
    pub max_connections: u32,
    /// A request's header must be complete within this time of its first byte (or of the connection).
    pub header_timeout: Duration,
    /// A request's body must be complete within this time of its header.
    pub body_timeout: Duration,
    /// A kept-alive connection without a request is closed after this time.
    pub idle_timeout: Duration,
    /// Most bytes of requests that wait for the disk; more are answered 429 `overloaded`.
    pub max_waiting_bytes: u64,
    /// While one group commit takes longer than this, whoever waits behind it is answered 429
    /// `overloaded`, and new requests at once.
    pub max_wait: Duration,
    /// Most bytes of body that all requests together may hold in memory while they arrive.
    pub max_buffered_bytes: u64,
    /// Answer the CloudEvents webhook handshake for this origin (`*` for any); `None` is off.
    pub webhook_allowed_origin: Option<String>,
    /// Listening beyond loopback without tokens must be asked for.
    pub allow_anonymous: bool,
    /// Who may do what; without it, everybody may do everything.
    pub tokens_file: Option<PathBuf>,
    /// Where operators have a listener of their own; then the other one takes events and nothing else.
    pub admin_listen: Option<Listen>,
    /// Most open connections of one address; 0 is no limit but `max_connections`.
    pub max_connections_per_address: u32,
    /// What TCP connections are encrypted with; without it they are not.
    pub tls: Option<Tls>,
}

impl Http {
    /// The tokens, read anew; `None` where none are configured. The error names the file.
    pub fn tokens(&self) -> Result<Option<Tokens>, String> {
        self.tokens_file.as_deref().map(Tokens::read).transpose()
    }
}

/// Where the daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(std::net::SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// `[wal]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wal {
    /// Most bytes the event log takes on disk, spares included.
    pub budget_bytes: u64,
    /// Bytes of one segment; a multiple of 4096.
    pub segment_bytes: u64,
    /// Events the dedupe window remembers; 0 turns it off.
    pub dedupe_window: u64,
    /// Spare segments kept ready.
    pub spares: u32,
    /// Room left to others on the disk: below it no new segment is prepared.
    pub min_free_disk_bytes: u64,
    /// After this long without an append, a marker records what is durable.
    pub idle_marker: Duration,
}

/// `[ledger]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// Bytes of one ledger segment; a multiple of 4096.
    pub segment_bytes: u64,
    /// A checkpoint is written at most this often.
    pub checkpoint_interval: Duration,
}

/// Segments the failure table has at least; some of them are kept for cleaning.
const LEAST_FAILURE_SEGMENTS: u64 = 8;
/// What a row of the failure table takes beyond its event, at most, with a share of a segment's header.
const FAILURE_ROW_BYTES: u64 = 8192;

/// `[failures]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// Most bytes the failure table takes on disk.
    pub budget_bytes: u64,
    /// Memory for the cache of its index.
    pub index_cache_bytes: u64,
    /// The index is set aside when opening it, or any one use of it, takes longer.
    pub index_deadline: Duration,
}

impl Config {
    /// The smallest budget of the failure table in which rows with events of any allowed size still
    /// leave room for cleaning.
    pub fn least_failures_budget(&self) -> u64 {
        LEAST_FAILURE_SEGMENTS * self.least_failure_segment()
    }

    /// The smallest segment of the failure table: two rows of the largest event.
    pub fn least_failure_segment(&self) -> u64 {
        (2 * (self.http.max_event_bytes + FAILURE_ROW_BYTES)).next_multiple_of(4096)
    }
}

/// `[shutdown]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// How long batches under way may take to finish.
    pub drain_timeout: Duration,
}

/// `[snapshot]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// How long nothing is freed for a snapshot that is being taken; one that takes longer fails.
    pub max_hold: Duration,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    /// A level or a filter in the syntax of `RUST_LOG`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[[sink]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkConfig {
    /// Its name; checkpoints are kept under it.
    pub name: String,
    /// What it is.
    pub kind: SinkKind,
    /// Starts paused at every start.
    pub paused: bool,
    /// Most events a batch.
    pub batch: u32,
    /// Most bytes of event text a batch.
    pub batch_bytes: u64,
    /// After a batch that emptied the queue, how long to gather before the next one.
    pub linger: Duration,
    /// A delivery that takes longer counts as failed.
    pub timeout: Duration,
    /// Threads that deliver at the same time, each with its own instance of the sink; 1 where order
    /// is kept.
    pub workers: u32,
    /// What becomes of an event that cannot be delivered.
    pub retry: Retry,
    /// Which events it gets.
    pub filter: Filter,
    /// Events that have this attribute in common are delivered one after another, in the order of their
    /// offsets. Changes nothing where the sink keeps all of them in order.
    pub order_by: Option<OrderBy>,
    /// First wait after the target was unavailable.
    pub backoff_initial: Duration,
    /// Longest wait after the target was unavailable.
    pub backoff_max: Duration,
}

/// `sink.order_by`: what events have in common that wait for one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderBy {
    /// Their `partitionkey`.
    PartitionKey,
    /// Their `subject`.
    Subject,
    /// Their `source`.
    Source,
}

impl OrderBy {
    /// All there are.
    pub const ALL: [OrderBy; 3] = [OrderBy::PartitionKey, OrderBy::Subject, OrderBy::Source];

    /// The attribute's name.
    pub fn name(self) -> &'static str {
        match self {
            OrderBy::PartitionKey => "partitionkey",
            OrderBy::Subject => "subject",
            OrderBy::Source => "source",
        }
    }
}

/// `sink.retry`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// An event that failed this often is given up.
    pub max_attempts: u32,
    /// Longest wait after an event's first attempt; it doubles with each further one.
    pub initial: Duration,
    /// Longest wait between two attempts.
    pub max: Duration,
    /// What becomes of an event that was given up.
    pub exhausted: Exhausted,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 10,
            initial: Duration::from_millis(200),
            max: Duration::from_secs(300),
            exhausted: Exhausted::Record,
        }
    }
}

/// What becomes of an event that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// It stays in the failure table, for inspection and another try.
    Record,
    /// It is counted, logged and gone.
    Drop,
}

/// `sink.filter`: a sink gets the events that match every pattern that is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// For `type`.
    pub event_type: Option<Pattern>,
    /// For `source`.
    pub source: Option<Pattern>,
    /// For `subject`; an event without one does not match.
    pub subject: Option<Pattern>,
}

impl Filter {
    /// Whether every event matches.
    pub fn is_open(&self) -> bool {
        self.event_type.is_none() && self.source.is_none() && self.subject.is_none()
    }
}

/// What a sink is, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkKind {
    /// The JSON archive.
    JsonFile {
        /// Its directory, relative to `data_dir` when it is not absolute.
        path: PathBuf,
        /// How its directories are named by dates.
        layout: Layout,
        /// A file that reaches this size is finished.
        rotate_size_bytes: u64,
        /// A file this old is finished; also at every change of the UTC date.
        rotate_every: Duration,
        /// A file with so many events is finished, if that is bounded.
        rotate_count: Option<u64>,
        /// How finished files are kept.
        compress: Compress,
        /// Finished files go when their last event is this much older.
        retain_age: Option<Duration>,
        /// The oldest finished files go while all of them take more.
        retain_size_bytes: Option<u64>,
    },
    /// One line an event on standard output.
    Stdout,
    /// Requests to an HTTP endpoint.
    Webhook(Box<Webhook>),
    /// Lines to a program of one's own, which answers with outcomes.
    Exec(Exec),
    /// A sink that the program around the daemon brings along; not configurable by file.
    Embedded {
        /// Whether its events must arrive in order, one batch after the other.
        keeps_order: bool,
    },
}

/// How an archive keeps its finished files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compress {
    /// As they were written.
    None,
    /// Compressed with zstd.
    Zstd,
    /// Compressed with gzip.
    Gzip,
}

impl Compress {
    /// The word for it in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Compress::None => "none",
            Compress::Zstd => "zstd",
            Compress::Gzip => "gzip",
        }
    }
}

impl SinkKind {
    /// The `type` it is configured by.
    pub fn name(&self) -> &'static str {
        match self {
            SinkKind::JsonFile { .. } => "json_file",
            SinkKind::Stdout => "stdout",
            SinkKind::Webhook(_) => "webhook",
            SinkKind::Exec(_) => "exec",
            SinkKind::Embedded { .. } => "embedded",
        }
    }

    /// Whether its events must arrive in order, one batch after the other. Such a sink has one worker
    /// and never parks an event to go on with the next one.
    pub fn keeps_order(&self) -> bool {
        match self {
            SinkKind::JsonFile { .. } | SinkKind::Stdout => true,
            SinkKind::Webhook(_) | SinkKind::Exec(_) => false,
            SinkKind::Embedded { keeps_order } => *keeps_order,
        }
    }
}

impl SinkConfig {
    /// The defaults for a sink that a program brings along under `name`.
    pub fn embedded(name: &str) -> SinkConfig {
        read::embedded(name)
    }

    /// Whether it could have been read from a file: every value in its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        read::check(self)
    }
}

impl Default for Config {
    /// What holds when nothing is configured at all.
    fn default() -> Self {
        read::read(settings::Settings::default()).expect("the defaults are a valid configuration")
    }
}

impl Config {
    /// Reads `file` (if there is one), lays `env` and then `flags` over it, and checks the result.
    ///
    /// `env` is the whole environment; only `EVENTFLOW_DATA_DIR`, `EVENTFLOW_<SECTION>__<KEY>` and
    /// `EVENTFLOW_SINK__<NAME>__<KEY>` count. `flags` are dotted keys with their values.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: &[(&str, String)],
    ) -> Result<Config, ConfigError> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?,
            None => String::new(),
        };
        let name = file.map(|path| path.display().to_string()).unwrap_or_default();
        Config::parse(&name, &text, env, flags)
    }

    /// Like [`Config::load`], with the file's text given; `name` is what mistakes call the file.
    pub fn parse(
        name: &str,
        text: &str,
        env: impl IntoIterator<Item = (String, String)>,
        flags: &[(&str, String)],
    ) -> Result<Config, ConfigError> {
        let mut settings = settings::Settings::default();
        settings.add_file(name, text)?;
        settings.add_env(env);
        settings.add_flags(flags);
        read::read(settings)
    }

    /// The keys in which `new` differs from this one; of secrets only that they do.
    pub fn changed(&self, new: &Config) -> Vec<String> {
        change::changed(self, new)
    }

    /// The configuration as TOML that [`Config::load`] reads back into the same configuration.
    pub fn to_toml(&self) -> String {
        print::print(self)
    }

    /// Like [`Config::to_toml`], with what each key means and may be above it, and examples of the kinds of
    /// sinks that are not there.
    pub fn explain(&self) -> String {
        explain::file(self)
    }

    /// The keys with default, range and meaning as a table in Markdown: those that only a kind of sink has
    /// (`webhook`, `exec`), or, for `None`, all others.
    pub fn table(kind: Option<&str>) -> String {
        explain::table(kind)
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One sentence a mistake, each naming the key and where it stands.
    #[error("{}", .0.join("\n"))]
    Mistakes(Vec<String>),
}
