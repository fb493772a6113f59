//! Signals: the first SIGTERM or SIGINT stops in order, the second ends the process at once; SIGHUP asks for
//! the configuration to be read again.
//!
//! A task on the operations runtime. Ending at once is safe: everything that was acknowledged is in
//! the log.

use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

use super::Error;

/// SIGXFSZ on Linux: a write beyond the file size limit. Handled, so that the write fails like
/// any other instead of killing the process.
const FILE_SIZE_EXCEEDED: i32 = 25;

/// Starts to listen; the receiver turns true when the daemon is to stop, and `reload` is notified of each wish
/// to read the configuration again. One that comes before the daemon serves is kept until it does.
pub(super) fn listen(reload: Arc<Notify>, runtime: &Runtime) -> Result<watch::Receiver<bool>, Error> {
    let _inside = runtime.enter();
    let on =
        |kind: SignalKind| signal(kind).map_err(|e| Error::Failed(format!("cannot listen for signals: {e}")));
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let mut hangup = on(SignalKind::hangup())?;
    // Its handler stays for the process's life, also when the stream of signals is dropped.
    drop(on(SignalKind::from_raw(FILE_SIZE_EXCEEDED))?);
    let (stop, stopped) = watch::channel(false);
    runtime.spawn(async move {
        let name = first(&reload, &mut terminate, &mut interrupt, &mut hangup).await;
        tracing::info!(signal = name, "stopping; a second signal ends the process at once");
        // Nobody waits any more when the daemon is ending for a reason of its own.
        let _ = stop.send(true);
        let name = first(&reload, &mut terminate, &mut interrupt, &mut hangup).await;
        tracing::warn!(signal = name, "ending at once; the log has everything that was acknowledged");
        std::process::exit(1);
    });
    Ok(stopped)
}

/// Waits for a signal to stop.
async fn first(
    reload: &Notify,
    terminate: &mut Signal,
    interrupt: &mut Signal,
    hangup: &mut Signal,
) -> &'static str {
    loop {
        tokio::select! {
            _ = terminate.recv() => return "SIGTERM",
            _ = interrupt.recv() => return "SIGINT",
            _ = hangup.recv() => reload.notify_one(),
        }
    }
}
