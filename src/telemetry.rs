//! Logs: where they go and how they look.
//!
//! One line per state change, on standard error: text for people, JSON for machines. Colour only on
//! a terminal; under systemd neither colour nor time, because the journal has its own. Set up once,
//! before anything else runs; a second set-up (tests) is ignored.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Telemetry};

/// Sets up logging for the process.
pub fn init(config: &Telemetry) {
    // The configuration has checked the filter; should a rule differ, a louder log beats none.
    let filter = EnvFilter::try_new(&config.level).unwrap_or_else(|_| EnvFilter::new("info"));
    // systemd sets this when standard error is a socket of the journal, which keeps the time itself.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal();
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour);
    // Fails only when logging is set up already, and then there is nothing to do.
    let _ = match (config.format, journal) {
        (LogFormat::Json, _) => builder.json().flatten_event(true).try_init().is_ok(),
        (LogFormat::Text, true) => builder.without_time().with_target(false).try_init().is_ok(),
        (LogFormat::Text, false) => builder.with_target(false).try_init().is_ok(),
    };
    log_panics();
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
