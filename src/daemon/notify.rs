//! Words to the service manager (`Type=notify`); without `NOTIFY_SOCKET` each of them is nothing.
//!
//! Called from any thread. A manager that cannot be reached is no reason to stop: it is said at debug level.
//! Facts: sd_notify(3).

use std::time::Duration;

use sd_notify::NotifyState;

/// Whether there is a manager that this daemon may speak to: one inside another program may not, because
/// that program is the service.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Manager {
    is_ours: bool,
}

impl Manager {
    /// The one that started this process, if one did.
    pub(super) fn of_this_process() -> Manager {
        Manager { is_ours: true }
    }

    /// What the daemon is doing, shown by `systemctl status`.
    pub(super) fn status(self, text: &str) {
        self.send(&[NotifyState::Status(text)]);
    }

    /// The start or the stop takes long, and goes on: it has this much more time from now.
    pub(super) fn extend(self, time: Duration) {
        self.send(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
    }

    /// Start-up is over: events are accepted.
    pub(super) fn ready(self) {
        self.send(&[NotifyState::Ready, NotifyState::Status("serving")]);
    }

    /// The configuration is being read again. [`reloaded`] must follow, whatever comes of it.
    pub(super) fn reloading(self) {
        let mut states = vec![NotifyState::Reloading, NotifyState::Status("reading the configuration again")];
        // Wanted by managers since systemd 253; others pass it over.
        states.extend(NotifyState::monotonic_usec_now());
        self.send(&states);
    }

    /// The configuration was read again, or was kept as it is.
    pub(super) fn reloaded(self) {
        self.ready();
    }

    /// The drain has begun.
    pub(super) fn stopping(self) {
        self.send(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    }

    /// How long the manager waits for [`alive`] before it takes the process for dead; `None` when it does not.
    pub(super) fn watchdog(self) -> Option<Duration> {
        let mut micros = 0;
        (self.is_ours && sd_notify::watchdog_enabled(false, &mut micros))
            .then(|| Duration::from_micros(micros))
    }

    /// Everything moves.
    pub(super) fn alive(self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(self, states: &[NotifyState<'_>]) {
        let told = if self.is_ours { sd_notify::notify(false, states) } else { Ok(()) };
        if let Err(error) = told {
            tracing::debug!(%error, "cannot notify the service manager");
        }
    }
}
