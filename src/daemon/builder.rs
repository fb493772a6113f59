//! A daemon inside another program, with sinks of that program's own.
//!
//! [`Builder`] takes the configuration and what opens each sink; [`Builder::start`] runs the daemon on
//! threads of its own and returns once it serves. It is the same daemon as the `eventflow` command's,
//! only that no signal is listened for and no log is set up: both belong to the program around it.
//!
//! A mistake in the configuration, a data directory in use or an address that is taken is an error of
//! `start`; what goes wrong later is the error of [`Running::stop`].

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tokio::sync::watch;

use super::activation::Passed;
use super::reload::Reload;
use super::{Error, operations, run};
use crate::config::{Config, ConfigError, SinkConfig};
use crate::queue::Queue;
use crate::sink::{Resume, Sink, SinkError};

/// Opens one instance of a sink; called once for each of its workers.
pub type OpenSink = Box<dyn FnMut(Resume) -> Result<Box<dyn Sink>, SinkError> + Send>;

/// A daemon to be.
pub struct Builder {
    pub(super) config: Config,
    /// What opens the program's own sinks, by name.
    pub(super) own: BTreeMap<String, OpenSink>,
    mistakes: Vec<String>,
}

/// What is known once the daemon serves.
pub(super) struct Serving {
    pub url: String,
    pub queue: Arc<dyn Queue>,
}

impl Builder {
    /// A daemon with this configuration and no sinks but those it names.
    pub fn new(config: Config) -> Self {
        Self { config, own: BTreeMap::new(), mistakes: Vec::new() }
    }

    /// Adds a sink of the program's own: [`SinkConfig::embedded`] has the defaults.
    ///
    /// Its progress is kept under its name, in the data directory, like that of every other sink; so
    /// it goes on where it was after a restart, a crash included. `open` is called on the daemon's
    /// main thread, once for each worker.
    pub fn sink(
        mut self,
        sink: SinkConfig,
        open: impl FnMut(Resume) -> Result<Box<dyn Sink>, SinkError> + Send + 'static,
    ) -> Self {
        if let Err(error) = sink.check() {
            self.mistakes.push(error.to_string());
        }
        if self.config.sinks.iter().any(|other| other.name == sink.name) {
            self.mistakes.push(format!("two sinks are named `{}`; each needs a name of its own", sink.name));
        }
        self.own.insert(sink.name.clone(), Box::new(open));
        self.config.sinks.push(sink);
        self
    }

    /// Starts the daemon, and returns once it serves.
    ///
    /// Blocks while it recovers; from an asynchronous program, call it where blocking is allowed.
    pub fn start(self) -> Result<Running, Error> {
        if !self.mistakes.is_empty() {
            return Err(ConfigError::Mistakes(self.mistakes).into());
        }
        let (stop, stopped) = watch::channel(false);
        let (serving, served) = mpsc::sync_channel(1);
        let operations = operations()?;
        let body = move || {
            let tell = move |news| {
                // Fails only when the program does not wait for it any more; then it stops anyway.
                let _ = serving.send(news);
            };
            let ended = run(self, Passed::default(), operations.handle(), (stopped, Reload::never()), tell);
            operations.shutdown_background();
            ended
        };
        let thread = std::thread::Builder::new()
            .name("eventflow".to_owned())
            .spawn(body)
            .map_err(|error| Error::Failed(format!("cannot start the daemon's thread: {error}")))?;
        match served.recv() {
            Ok(Serving { url, queue }) => Ok(Running { url, queue, stop, thread }),
            Err(_) => Err(join(thread)
                .err()
                .unwrap_or_else(|| Error::Failed("the daemon ended before it served".to_owned()))),
        }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A daemon that serves. Dropping it stops it as well, without waiting for the end.
pub struct Running {
    url: String,
    queue: Arc<dyn Queue>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<(), Error>>,
}

impl Running {
    /// Where it listens: `http://127.0.0.1:8080`, or `unix:/path`. With port 0 configured, this says
    /// which port it got.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its queue: status, failures, and appending without HTTP.
    pub fn queue(&self) -> Arc<dyn Queue> {
        self.queue.clone()
    }

    /// Whether it has ended by itself; [`Running::stop`] says why.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops in order: requests and deliveries under way finish, progress is written down. Blocks
    /// until that is done; the error is what went wrong since the start.
    pub fn stop(self) -> Result<(), Error> {
        self.stop.send_replace(true);
        join(self.thread)
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("url", &self.url).finish_non_exhaustive()
    }
}

fn join(thread: JoinHandle<Result<(), Error>>) -> Result<(), Error> {
    thread.join().unwrap_or_else(|_| Err(Error::Failed("the daemon panicked; please report this".to_owned())))
}
