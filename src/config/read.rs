//! Settings into a [`Config`]: every key with its name, default and range stands here, once.
//!
//! Pure code. All mistakes are gathered into one error.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::settings::{Section, Settings};
use super::units::{GIB, KIB, MIB, TIB, show_size};
use super::{
    Compress, Config, ConfigError, Exhausted, Failures, Filter, Http, Layout, Ledger, Listen, LogFormat,
    Mode, OrderBy, Pattern, Retry, Shutdown, SinkConfig, SinkKind, Snapshot, Telemetry, Tokens, Wal, exec,
    hook, tls, webhook,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A segment's size is a multiple of this: the page and, on any disk in use, the sector.
const PAGE: u64 = 4096;
/// The smallest segment that holds its header and a few frames.
const SMALLEST_SEGMENT: u64 = 8 * KIB;

/// Checks all settings and fills in the defaults.
pub(super) fn read(mut settings: Settings) -> Result<Config, ConfigError> {
    let config = gather(&mut settings);
    let mistakes = settings.finish();
    if mistakes.is_empty() { Ok(config) } else { Err(ConfigError::Mistakes(mistakes)) }
}

/// Asks for every key there is.
///
/// A new key: ask for it here (its default and range are checked nowhere else), print it in `print`,
/// say in `keys` what it means, and let the documents be written anew:
/// `UPDATE_DOCUMENTS=1 cargo test --test it documents`.
pub(super) fn gather(settings: &mut Settings) -> Config {
    let mut root = settings.root();
    let data_dir = root.parsed("data_dir", "it must name a directory", |text| {
        (!text.is_empty()).then(|| PathBuf::from(text))
    });
    settings.done(root);
    let config = Config {
        data_dir: data_dir.unwrap_or_else(|| PathBuf::from("eventflow-data")),
        http: section(settings, "http", http),
        wal: section(settings, "wal", wal),
        ledger: section(settings, "ledger", ledger),
        failures: section(settings, "failures", failures),
        shutdown: section(settings, "shutdown", shutdown),
        snapshot: section(settings, "snapshot", snapshot),
        telemetry: section(settings, "telemetry", telemetry),
        sinks: sinks(settings),
        hooks: hook::read_all(settings),
    };
    let least = config.least_failures_budget();
    let may_park = config.sinks.iter().any(|sink| !sink.kind.keeps_order());
    if may_park && config.failures.budget_bytes < least {
        settings.mistake(format!(
            "`failures.budget` = {} is too small for events as large as `http.max_event`; it takes {} at least",
            show_size(config.failures.budget_bytes),
            show_size(least)
        ));
    }
    config
}

fn section<T>(settings: &mut Settings, name: &'static str, read: impl FnOnce(&mut Section) -> T) -> T {
    let mut section = settings.section(name);
    let value = read(&mut section);
    settings.done(section);
    value
}

/// What a listener's key wants.
const LISTEN: &str = "it must be an address such as \"127.0.0.1:8080\" or \"unix:/path\"";

fn http(s: &mut Section) -> Http {
    let listen = s
        .parsed("listen", LISTEN, parse_listen)
        .unwrap_or(Listen::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080)));
    let allow_anonymous = s.switch("allow_anonymous").unwrap_or(false);
    let tokens_file = tokens_file(s);
    let admin_listen = s.parsed("admin_listen", LISTEN, parse_listen);
    if admin_listen.as_ref() == Some(&listen) {
        s.mistake(
            "`http.admin_listen` is the same as `http.listen`: leave it out, or choose another".to_owned(),
        );
    }
    for (key, listen) in [("listen", Some(&listen)), ("admin_listen", admin_listen.as_ref())] {
        if let Some(Listen::Tcp(address)) = listen
            && !address.ip().is_loopback()
            && !allow_anonymous
            && tokens_file.is_none()
        {
            s.mistake(format!(
                "`http.{key}` = {address} is reachable from other machines and anyone there could post and read \
                 events: give out tokens (`http.tokens_file`, see `eventflow token new --help`), set \
                 `http.allow_anonymous = true` if that is meant, or listen on 127.0.0.1"
            ));
        }
    }
    let max_body_bytes = s.size("max_body", 1..=GIB).unwrap_or(16 * MIB);
    let max_event = s.size("max_event", 1..=256 * MIB);
    let max_buffered = s.size("max_buffered", 1..=64 * GIB);
    let max_waiting = s.size("max_waiting", 1..=64 * GIB);
    if max_event.is_some_and(|bytes| bytes > max_body_bytes) {
        s.mistake(format!(
            "`http.max_event` is more than `http.max_body` ({}): no such event could ever arrive",
            show_size(max_body_bytes)
        ));
    }
    for (key, value) in [("max_buffered", max_buffered), ("max_waiting", max_waiting)] {
        if value.is_some_and(|bytes| bytes < max_body_bytes) {
            s.mistake(format!(
                "`http.{key}` is less than `http.max_body` ({}): no such request could ever be taken",
                show_size(max_body_bytes)
            ));
        }
    }
    let tls = tls::read_keys(s);
    if tls.is_some()
        && [Some(&listen), admin_listen.as_ref()].iter().flatten().all(|l| matches!(l, Listen::Unix(_)))
    {
        s.mistake("`http.tls_cert` is of no use on a Unix socket: who may open it, its mode says".to_owned());
    }
    Http {
        listen,
        max_body_bytes,
        max_event_bytes: max_event.unwrap_or(MIB.min(max_body_bytes)),
        max_connections: s.number("max_connections", 1..=1_000_000).unwrap_or(10_000) as u32,
        header_timeout: s.duration("header_timeout", 10 * MS..=HOUR).unwrap_or(10 * SECOND),
        body_timeout: s.duration("body_timeout", 10 * MS..=HOUR).unwrap_or(30 * SECOND),
        idle_timeout: s.duration("idle_timeout", 10 * MS..=DAY).unwrap_or(75 * SECOND),
        max_waiting_bytes: max_waiting.unwrap_or((64 * MIB).max(max_body_bytes)),
        max_wait: s.duration("max_wait", 10 * MS..=HOUR).unwrap_or(5 * SECOND),
        max_buffered_bytes: max_buffered.unwrap_or((128 * MIB).max(max_body_bytes)),
        webhook_allowed_origin: s.text("webhook_allowed_origin"),
        allow_anonymous,
        tokens_file,
        admin_listen,
        max_connections_per_address: s.number("max_connections_per_address", 0..=1_000_000).unwrap_or(0)
            as u32,
        tls,
    }
}

/// Named, and read once so that a mistake in it is one of the configuration.
fn tokens_file(s: &mut Section) -> Option<PathBuf> {
    let file = s.file("tokens_file")?;
    if let Err(wrong) = Tokens::read(&file) {
        s.mistake(format!("`http.tokens_file`: {wrong}"));
    }
    Some(file)
}

fn parse_listen(text: &str) -> Option<Listen> {
    if let Some(path) = text.strip_prefix("unix:") {
        return (!path.is_empty()).then(|| Listen::Unix(PathBuf::from(path)));
    }
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    numeric.parse().ok().map(Listen::Tcp)
}

fn wal(s: &mut Section) -> Wal {
    let budget_bytes = s.size("budget", 2 * SMALLEST_SEGMENT..=64 * TIB).unwrap_or(GIB);
    // Four segments at least, so that freeing one gives back a fraction of the budget, not half.
    let default_segment = if budget_bytes < 256 * MIB {
        (budget_bytes / 4 / PAGE * PAGE).max(SMALLEST_SEGMENT)
    } else {
        64 * MIB
    };
    let segment_bytes = s.size("segment", SMALLEST_SEGMENT..=GIB).unwrap_or(default_segment);
    whole_pages(s, "wal.segment", segment_bytes);
    if segment_bytes > budget_bytes / 2 {
        s.mistake(format!(
            "`wal.segment` = {} is more than half of `wal.budget` ({}): a segment is only freed while another one is written",
            show_size(segment_bytes),
            show_size(budget_bytes)
        ));
    }
    let spares = s.number("spares", 1..=16);
    if spares.is_some_and(|spares| spares >= budget_bytes / segment_bytes) {
        s.mistake("`wal.spares` leaves no segment of `wal.budget` to write to".to_owned());
    }
    Wal {
        budget_bytes,
        segment_bytes,
        dedupe_window: s.number("dedupe_window", 0..=50_000_000).unwrap_or(1_000_000),
        spares: spares.unwrap_or(1) as u32,
        min_free_disk_bytes: s.size("min_free_disk", 0..=64 * TIB).unwrap_or(16 * MIB),
        idle_marker: s.duration("idle_marker", MS..=HOUR).unwrap_or(50 * MS),
    }
}

fn ledger(s: &mut Section) -> Ledger {
    let segment_bytes = s.size("segment", 16 * KIB..=256 * MIB).unwrap_or(MIB);
    whole_pages(s, "ledger.segment", segment_bytes);
    Ledger {
        segment_bytes,
        checkpoint_interval: s.duration("checkpoint_interval", MS..=60 * SECOND).unwrap_or(50 * MS),
    }
}

fn whole_pages(s: &mut Section, key: &str, bytes: u64) {
    if !bytes.is_multiple_of(PAGE) {
        s.mistake(format!(
            "`{key}` = {} is not a multiple of {}; \"64MB\" is 64 million bytes, \"64MiB\" fits",
            show_size(bytes),
            show_size(PAGE)
        ));
    }
}

fn failures(s: &mut Section) -> Failures {
    Failures {
        budget_bytes: s.size("budget", MIB..=TIB).unwrap_or(256 * MIB),
        index_cache_bytes: s.size("index_cache", MIB..=GIB).unwrap_or(8 * MIB),
        index_deadline: s.duration("index_deadline", 100 * MS..=60 * SECOND).unwrap_or(5 * SECOND),
    }
}

fn shutdown(s: &mut Section) -> Shutdown {
    Shutdown { drain_timeout: s.duration("drain_timeout", Duration::ZERO..=HOUR).unwrap_or(30 * SECOND) }
}

fn snapshot(s: &mut Section) -> Snapshot {
    Snapshot { max_hold: s.duration("max_hold", SECOND..=HOUR).unwrap_or(120 * SECOND) }
}

fn telemetry(s: &mut Section) -> Telemetry {
    let level = s.parsed(
        "level",
        "it must be error, warn, info, debug, trace or off, or a filter such as \"info,eventflow::http=debug\"",
        |text| is_filter(text).then(|| text.to_owned()),
    );
    Telemetry {
        level: level.unwrap_or_else(|| "info".to_owned()),
        format: s
            .choice("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)])
            .unwrap_or(LogFormat::Text),
    }
}

/// Whether `text` is a log filter. A bare word must be a level: taken for a target, a mistyped
/// level would silently log everything of nothing.
fn is_filter(text: &str) -> bool {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    !text.is_empty()
        && text.split(',').all(|part| {
            let level = part.rsplit('=').next().unwrap_or_default();
            LEVELS.contains(&level.trim().to_ascii_lowercase().as_str())
        })
        && tracing_subscriber::EnvFilter::try_new(text).is_ok()
}

fn sinks(settings: &mut Settings) -> Vec<SinkConfig> {
    let mut sinks: Vec<SinkConfig> = Vec::new();
    let mut sections = settings.sinks();
    if sections.len() > 256 {
        settings.mistake(format!("{} sinks are more than 256", sections.len()));
        sections.truncate(256);
    }
    for mut section in sections {
        if let Some(config) = sink(&mut section) {
            if sinks.iter().any(|other| other.name == config.name) {
                settings.mistake(format!(
                    "two sinks are named `{}`: checkpoints are kept by name, so each needs its own",
                    config.name
                ));
            }
            sinks.push(config);
        }
        // Known keys are listed as `sink.…` whatever the sink is called.
        section.relabel("sink".to_owned());
        settings.done(section);
    }
    same_directory(settings, &sinks);
    sinks
}

/// Two archives in one directory would cut each other's files back.
fn same_directory(settings: &mut Settings, sinks: &[SinkConfig]) {
    let path = |sink: &SinkConfig| match &sink.kind {
        SinkKind::JsonFile { path, .. } => {
            Some(path.components().filter(|part| *part != Component::CurDir).collect::<PathBuf>())
        }
        SinkKind::Stdout | SinkKind::Webhook(_) | SinkKind::Exec(_) | SinkKind::Embedded { .. } => None,
    };
    for (at, sink) in sinks.iter().enumerate() {
        if let Some(other) =
            sinks[..at].iter().find(|other| path(sink).is_some() && path(other) == path(sink))
        {
            let (a, b) = (&other.name, &sink.name);
            settings.mistake(format!(
                "sinks `{a}` and `{b}` have the same `path`; each needs a directory of its own"
            ));
        }
    }
}

fn sink(s: &mut Section) -> Option<SinkConfig> {
    let name = name(s, "sink");
    s.relabel(format!("sink.{name}"));
    let kinds = ["json_file", "webhook", "exec", "stdout"];
    let kind = s.choice("type", &kinds.map(|kind| (kind, kind)));
    // Every kind's keys are known to every sink, so that a key of another kind is not called unknown.
    let archive = ARCHIVE_KEYS;
    if kind.is_some_and(|kind| kind != "json_file") {
        s.only_for("json_file", &archive);
    }
    if kind.is_some_and(|kind| kind != "webhook") {
        s.only_for("webhook", &webhook::KEYS);
    }
    if kind.is_some_and(|kind| kind != "exec") {
        s.only_for("exec", &exec::KEYS);
    }
    let kind = match kind {
        Some("json_file") => Some(json_file(s)),
        Some("webhook") => {
            let batches = s.peek("batch").is_some_and(|batch| batch != "1");
            webhook::read_keys(s, &name, batches).map(|webhook| SinkKind::Webhook(Box::new(webhook)))
        }
        Some("exec") => exec::read_keys(s, &name).map(SinkKind::Exec),
        Some(_) => Some(SinkKind::Stdout),
        None => {
            s.mistake(format!(
                "sink `{name}` needs a `type`: \"json_file\", \"webhook\", \"exec\" or \"stdout\""
            ));
            None
        }
    };
    let Some(kind) = kind else {
        for key in archive.into_iter().chain(webhook::KEYS).chain(exec::KEYS) {
            s.skip(key);
        }
        common(s, String::new(), SinkKind::Embedded { keeps_order: false });
        return None;
    };
    Some(common(s, name, kind))
}

/// The name of a sink or a hook.
pub(super) fn name(s: &mut Section, list: &str) -> String {
    let name = s.parsed("name", "it must be 1 to 64 of the characters a-z, 0-9, _ and -", |text| {
        let fits = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        ((1..=64).contains(&text.len()) && text.bytes().all(fits)).then(|| text.to_owned())
    });
    if name.is_none() {
        let such_as = if list == "sink" { "archive" } else { "github" };
        s.mistake(format!("each `[[{list}]]` needs a `name`, such as \"{such_as}\""));
    }
    name.unwrap_or_default()
}

/// The keys of an archive.
const ARCHIVE_KEYS: [&str; 8] = [
    "path",
    "layout",
    "rotate_size",
    "rotate_every",
    "rotate_count",
    "compress",
    "retain_age",
    "retain_size",
];

fn json_file(s: &mut Section) -> SinkKind {
    let compress = [Compress::None, Compress::Zstd, Compress::Gzip].map(|how| (how.name(), how));
    SinkKind::JsonFile {
        path: s
            .parsed("path", "it must name a directory of its own", |text| {
                (!text.is_empty() && !is_ours(text)).then(|| PathBuf::from(text))
            })
            .unwrap_or_else(|| PathBuf::from("archive")),
        layout: s.parsed("layout", Layout::WANTED, Layout::parse).unwrap_or_default(),
        rotate_size_bytes: s.size("rotate_size", KIB..=TIB).unwrap_or(256 * MIB),
        rotate_every: s.duration("rotate_every", SECOND..=366 * DAY).unwrap_or(DAY),
        rotate_count: s.number("rotate_count", 0..=1_000_000_000_000).filter(|count| *count > 0),
        compress: s.choice("compress", &compress).unwrap_or(Compress::None),
        retain_age: s.duration("retain_age", Duration::ZERO..=100 * 366 * DAY).filter(|age| !age.is_zero()),
        retain_size_bytes: s.size("retain_size", 0..=1024 * TIB).filter(|bytes| *bytes > 0),
    }
}

/// Whether a sink's path is one that the data directory keeps for itself.
fn is_ours(path: &str) -> bool {
    let mut parts = Path::new(path).components().filter(|part| *part != Component::CurDir);
    parts.next().is_none_or(|first| {
        ["wal", "ledger", "lock", "quarantine", "state.sled"].iter().any(|ours| first.as_os_str() == *ours)
    })
}

/// The keys every kind has; the archive gathers larger batches, since each costs it a sync.
fn common(s: &mut Section, name: String, kind: SinkKind) -> SinkConfig {
    let (batch, batch_bytes, linger) = match &kind {
        SinkKind::JsonFile { .. } => (16_384, 4 * MIB, 20 * MS),
        SinkKind::Webhook(webhook) if webhook.mode == Mode::Batch => (100, MIB, Duration::ZERO),
        SinkKind::Webhook(_) => (1, MIB, Duration::ZERO),
        SinkKind::Exec(_) => (100, MIB, Duration::ZERO),
        SinkKind::Stdout | SinkKind::Embedded { .. } => (1_000, MIB, Duration::ZERO),
    };
    let timeout = if matches!(kind, SinkKind::Webhook(_)) { 10 * SECOND } else { 60 * SECOND };
    let workers = s.number("workers", 1..=64).unwrap_or(1) as u32;
    if workers > 1 && kind.keeps_order() {
        s.mistake(format!(
            "sink `{name}`: `workers` = {workers} is not possible, because a {} sink keeps events in order; leave \
             it at 1",
            kind.name()
        ));
    }
    let retry = retry(s, &name);
    if retry != Retry::default() && kind.keeps_order() {
        s.mistake(format!(
            "sink `{name}`: `retry` would change nothing, because a {} sink keeps events in order and waits for \
             the first that fails; `backoff_initial` and `backoff_max` say how long",
            kind.name()
        ));
    }
    let backoff_initial = s.duration("backoff_initial", MS..=HOUR).unwrap_or(200 * MS);
    let backoff_max = s.duration("backoff_max", MS..=DAY);
    if backoff_max.is_some_and(|max| max < backoff_initial) {
        s.mistake(format!("sink `{name}`: `backoff_max` is shorter than `backoff_initial`"));
    }
    SinkConfig {
        name,
        kind,
        paused: s.switch("paused").unwrap_or(false),
        batch: s.number("batch", 1..=100_000).unwrap_or(batch) as u32,
        batch_bytes: s.size("batch_bytes", KIB..=256 * MIB).unwrap_or(batch_bytes),
        linger: s.duration("linger", Duration::ZERO..=60 * SECOND).unwrap_or(linger),
        timeout: s.duration("timeout", MS..=HOUR).unwrap_or(timeout),
        workers,
        retry,
        filter: filter(s),
        order_by: s.choice("order_by", &OrderBy::ALL.map(|by| (by.name(), by))),
        backoff_initial,
        backoff_max: backoff_max.unwrap_or((30 * SECOND).max(backoff_initial)),
    }
}

fn retry(s: &mut Section, name: &str) -> Retry {
    s.table("retry");
    let default = Retry::default();
    let initial = s.duration("retry.initial", MS..=HOUR).unwrap_or(default.initial);
    let max = s.duration("retry.max", MS..=DAY);
    if max.is_some_and(|max| max < initial) {
        s.mistake(format!("sink `{name}`: `retry.max` is shorter than `retry.initial`"));
    }
    let exhausted = [("record", Exhausted::Record), ("drop", Exhausted::Drop)];
    Retry {
        max_attempts: s
            .number("retry.max_attempts", 1..=1_000_000)
            .map_or(default.max_attempts, |attempts| attempts as u32),
        initial,
        max: max.unwrap_or(default.max.max(initial)),
        exhausted: s.choice("retry.exhausted", &exhausted).unwrap_or(default.exhausted),
    }
}

fn filter(s: &mut Section) -> Filter {
    s.table("filter");
    let mut pattern =
        |key| s.parsed(key, "it must be a glob such as \"com.example.*\"", |text| Pattern::parse(text).ok());
    Filter {
        event_type: pattern("filter.type"),
        source: pattern("filter.source"),
        subject: pattern("filter.subject"),
    }
}

/// The defaults of a sink that is not configured by file.
pub(super) fn embedded(name: &str) -> SinkConfig {
    common(&mut Section::default(), name.to_owned(), SinkKind::Embedded { keeps_order: false })
}

/// Checks a sink that was not read from text: written as text, it must be one that could have been.
pub(super) fn check(sink: &SinkConfig) -> Result<(), ConfigError> {
    let mut settings = Settings::default();
    settings.add_file("its configuration", &super::print::print_sink(sink))?;
    for mut section in settings.sinks() {
        let name = name(&mut section, "sink");
        section.relabel(format!("sink.{name}"));
        for key in std::iter::once("type").chain(ARCHIVE_KEYS) {
            section.skip(key);
        }
        common(&mut section, name, sink.kind.clone());
        settings.done(section);
    }
    let mistakes = settings.finish();
    if mistakes.is_empty() { Ok(()) } else { Err(ConfigError::Mistakes(mistakes)) }
}
