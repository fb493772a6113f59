//! Words to systemd (`Type=notify`); without `NOTIFY_SOCKET` each of them is nothing.

use sd_notify::NotifyState;

/// What the daemon is doing, shown by `systemctl status`.
pub(super) fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Start-up is over: events are accepted.
pub(super) fn ready() {
    send(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// The drain has begun.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}
