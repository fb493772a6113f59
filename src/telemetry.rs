//! Logs: where they go and how they look; [`metrics`] has the names of what is counted.
//!
//! One line per state change, on standard error: text for people, JSON for machines. Colour only on
//! a terminal. Where standard error leads to systemd's journal, text goes there with its fields (`journal`).
//! Set up once, before anything else runs; a second set-up (tests) is ignored.

mod journal;

pub mod metrics;

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{LogFormat, Telemetry};

/// Changes the filter of the logging that was set up.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Sets up logging for the process.
pub fn init(config: &Telemetry) {
    // The configuration has checked the filter; should a rule differ, a louder log beats none.
    let filter = EnvFilter::try_new(&config.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let journal = match config.format {
        LogFormat::Text if journal::is_where_stderr_leads() => journal::Journal::open().ok(),
        LogFormat::Text | LogFormat::Json => None,
    };
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = || tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colour);
    let (filter, level) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    // Fails only when logging is set up already, and then there is nothing to do.
    let done = match (config.format, journal) {
        (LogFormat::Text, Some(journal)) => registry.with(journal).try_init(),
        (LogFormat::Text, None) => registry.with(lines().with_target(false)).try_init(),
        (LogFormat::Json, _) => registry.with(lines().json().flatten_event(true)).try_init(),
    };
    if done.is_ok() {
        // Set once, like the logging that it changes.
        let _ = LEVEL.set(level);
    }
    log_panics();
}

/// Logs by another level or filter from now on.
pub fn set_level(level: &str) {
    // Without logging of our own there is nothing to change; the configuration has checked the filter.
    if let (Some(handle), Ok(filter)) = (LEVEL.get(), EnvFilter::try_new(level))
        && let Err(error) = handle.reload(filter)
    {
        tracing::error!(%error, "the log level stays as it is");
    }
}

/// A panic becomes a log line with its place; what it means is for whoever watches the thread.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        tracing::error!(thread, place, panic = text, "a thread panicked; please report this");
    }));
}
