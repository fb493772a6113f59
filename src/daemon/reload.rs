//! SIGHUP: reads the configuration again, and puts into force what can change while the daemon runs.
//!
//! ```text
//! read, all of it ──► mistakes? ── ERROR, and what was in force stays
//!        │
//!        └─► tokens, TLS files, hooks ──► log level, retry policies ──► what differs besides waits for a restart: WARN
//! ```
//!
//! On the daemon's main thread, between its waits. Reading files is all that takes time, and nothing is served
//! by this thread. Whatever lets more people in than before (no tokens any more, no TLS any more) waits for a
//! restart, where it is checked against the address that is really listened on.

use std::sync::Arc;

use tokio::sync::Notify;

use super::notify::Manager;
use crate::config::{Config, ConfigError};
use crate::http::App;
use crate::telemetry;
use crate::worker::Availability;

/// Reads the configuration from where it came from.
pub type Reread = Box<dyn FnMut() -> Result<Config, ConfigError>>;

/// What asks for the configuration to be read again, and how that is done.
pub(super) struct Reload {
    pub(super) asked: Arc<Notify>,
    pub(super) read: Option<Reread>,
}

impl Reload {
    /// Nobody asks.
    pub(super) fn never() -> Self {
        Self { asked: Arc::default(), read: None }
    }
}

/// The configuration in force, and what it is in force in.
pub(super) struct InForce<'a> {
    pub(super) config: Config,
    pub(super) app: &'a App,
    /// What the workers of each sink share, in the order of the sinks.
    pub(super) sinks: Vec<Arc<Availability>>,
    pub(super) manager: Manager,
}

impl InForce<'_> {
    /// Reads the configuration again; tells what came of it.
    pub(super) fn renew(&mut self, reread: &mut Reread) {
        self.manager.reloading();
        match reread().and_then(|new| self.apply(new)) {
            Ok((applied, waiting)) => {
                tracing::info!(applied = applied.join(", "), "configuration read again");
                if !waiting.is_empty() {
                    let keys = waiting.join(", ");
                    tracing::warn!(keys, "changed keys that wait for a restart");
                }
            }
            Err(error) => {
                tracing::error!(%error, "configuration not valid; what was in force stays in force");
            }
        }
        self.manager.reloaded();
    }

    /// Puts into force what can be; the changed keys that are by now, and those that wait for a restart.
    fn apply(&mut self, new: Config) -> Result<(Vec<String>, Vec<String>), ConfigError> {
        let mut next = self.config.clone();
        next.http.tokens_file = new.http.tokens_file.clone().or(next.http.tokens_file);
        next.http.tls = new.http.tls.clone().or(next.http.tls);
        next.hooks.clone_from(&new.hooks);
        next.telemetry.level.clone_from(&new.telemetry.level);
        for sink in &mut next.sinks {
            let Some(new) = new.sinks.iter().find(|new| new.name == sink.name) else { continue };
            sink.retry = new.retry;
            (sink.backoff_initial, sink.backoff_max) = (new.backoff_initial, new.backoff_max);
        }
        super::let_in(&next, self.app)?;
        telemetry::set_level(&next.telemetry.level);
        for (sink, shared) in next.sinks.iter().zip(&self.sinks) {
            shared.adjust(sink);
        }
        let (applied, waiting) = (self.config.changed(&next), next.changed(&new));
        self.config = next;
        Ok((applied, waiting))
    }
}
