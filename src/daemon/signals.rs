//! Signals: the first SIGTERM or SIGINT stops in order, the second ends the process at once.
//!
//! A task on the operations runtime. Ending at once is safe: everything that was acknowledged is in
//! the log.

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::Error;
use super::notify::Manager;

/// SIGXFSZ on Linux: a write beyond the file size limit. Handled, so that the write fails like
/// any other instead of killing the process.
const FILE_SIZE_EXCEEDED: i32 = 25;

/// Starts to listen; the receiver turns true when the daemon is to stop.
pub(super) fn listen(manager: Manager, runtime: &Runtime) -> Result<watch::Receiver<bool>, Error> {
    let _inside = runtime.enter();
    let on =
        |kind: SignalKind| signal(kind).map_err(|e| Error::Failed(format!("cannot listen for signals: {e}")));
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let mut hangup = on(SignalKind::hangup())?;
    // Its handler stays for the process's life, also when the stream of signals is dropped.
    drop(on(SignalKind::from_raw(FILE_SIZE_EXCEEDED))?);
    let (stop, stopped) = watch::channel(false);
    runtime.spawn(async move {
        let name = first(manager, &mut terminate, &mut interrupt, &mut hangup).await;
        tracing::info!(signal = name, "stopping; a second signal ends the process at once");
        // Nobody waits any more when the daemon is ending for a reason of its own.
        let _ = stop.send(true);
        let name = first(manager, &mut terminate, &mut interrupt, &mut hangup).await;
        tracing::warn!(signal = name, "ending at once; the log has everything that was acknowledged");
        std::process::exit(1);
    });
    Ok(stopped)
}

/// Waits for a signal to stop.
async fn first(
    manager: Manager,
    terminate: &mut Signal,
    interrupt: &mut Signal,
    hangup: &mut Signal,
) -> &'static str {
    loop {
        tokio::select! {
            _ = terminate.recv() => return "SIGTERM",
            _ = interrupt.recv() => return "SIGINT",
            _ = hangup.recv() => {
                manager.reloading();
                tracing::info!("SIGHUP: this version has nothing to read again");
                manager.reloaded();
            }
        }
    }
}
