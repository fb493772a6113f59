//! What the service manager hears of a daemon that is slow, stuck or long in coming up. The tests play the
//! manager: they read its socket, and syncs are held up by the library of `eio`.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::eio;
use crate::harness::{DEADLINE, Daemon, TINY, eventflow, eventually};

/// The manager's end.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn in_dir(dir: &Path) -> Manager {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        Manager { socket, path }
    }

    /// A daemon that is to show signs of life this often.
    fn start(&self, data_dir: &Path, watchdog_ms: u32, settings: &[(&str, &str)]) -> Daemon {
        self.start_with(&[], data_dir, watchdog_ms, settings)
    }

    fn start_with(
        &self,
        more: &[&str],
        data_dir: &Path,
        watchdog_ms: u32,
        settings: &[(&str, &str)],
    ) -> Daemon {
        let ours = eventflow(&["serve", "--listen", "127.0.0.1:0"]);
        let mut command = Command::new("sh");
        command.args(["-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh"]);
        command.arg(ours.get_program()).args(ours.get_args()).arg("--data-dir").arg(data_dir).args(more);
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", (watchdog_ms * 1000).to_string());
        command.envs(TINY.iter().copied()).envs(settings.iter().copied());
        Daemon::spawn(command, data_dir)
    }

    /// Waits for a word that begins like this.
    fn hear(&self, wanted: &str) -> String {
        let mut buffer = [0; 1024];
        loop {
            let length = self.socket.recv(&mut buffer).unwrap_or_else(|e| panic!("no {wanted}: {e}"));
            let words = std::str::from_utf8(&buffer[..length]).expect("UTF-8");
            if let Some(line) = words.lines().find(|line| line.starts_with(wanted)) {
                return line.to_owned();
            }
        }
    }

    /// Forgets what was said so far, and says how much it was.
    fn forget(&self) -> usize {
        self.socket.set_nonblocking(true).expect("a socket");
        let heard = std::iter::from_fn(|| self.socket.recv(&mut [0; 1024]).ok()).count();
        self.socket.set_nonblocking(false).expect("a socket");
        heard
    }

    /// Hears a few signs of life from now on.
    fn hears_life(&self) {
        self.forget();
        (0..3).for_each(|_| drop(self.hear("WATCHDOG=1")));
    }
}

/// Posts, and does not wait for the answer.
fn post(daemon: &Daemon) {
    let mut client = daemon.client();
    std::thread::spawn(move || client.post("application/json", b"1"));
}

fn in_flight(daemon: &Daemon, name: &str) {
    eventually("an event in flight", || {
        let status = daemon.status();
        let sink = status["sinks"].as_array()?.iter().find(|sink| sink["name"] == name)?.clone();
        (sink["in_flight"] == 1).then_some(())
    });
}

/// No sign of life for a second of the daemon's own time, in which there would be twenty.
fn starves(manager: &Manager, daemon: &Daemon, part: &str) {
    let words = format!("part=\"{part}\"");
    eventually("the daemon to say what is stuck", || daemon.said().contains(&words).then_some(()));
    manager.forget();
    let uptime = || daemon.status()["uptime_seconds"].as_f64();
    let end = uptime().expect("a number") + 1.0;
    eventually("a second", || (uptime()? > end).then_some(()));
    assert_eq!(manager.forget(), 0, "a stuck {part} is no sign of life");
}

#[test]
fn a_daemon_without_work_shows_signs_of_life_and_so_does_one_whose_sinks_are_away_or_slow() {
    let dir = tempfile::tempdir().expect("a directory");
    let manager = Manager::in_dir(dir.path());
    // One endpoint that takes connections and never answers, and one that is not there.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let away = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let silent_address = silent.local_addr().expect("bound");
    let config = dir.path().join("eventflow.toml");
    let hook = |name: &str, address, timeout: &str| {
        format!(
            "[[sink]]\nname = \"{name}\"\ntype = \"webhook\"\nurl = \"http://{address}/\"\nallow_private = true\n\
             timeout = \"{timeout}\"\n"
        )
    };
    let text = [
        hook("silent", silent_address, "1h"),
        hook("away", away, "1h"),
        hook("slow", silent_address, "20ms"),
    ];
    std::fs::write(&config, text.concat()).expect("a configuration");
    let data_dir = dir.path().join("data");
    let config = ["--config", config.to_str().expect("UTF-8")];
    let daemon = manager.start_with(&config, &data_dir, 400, &[]).listening();
    manager.hear("READY=1");
    manager.hears_life();
    post(&daemon);
    in_flight(&daemon, "silent");
    eventually("an outage", || daemon.said().contains("sink unavailable").then_some(()));
    eventually("a timeout", || daemon.said().contains("no answer within").then_some(()));
    manager.hears_life();
    assert!(!daemon.said().contains("stuck"), "{}", daemon.said());
    daemon.kill();
}

#[test]
fn a_stuck_committer_starves_the_watchdog_and_one_that_goes_on_feeds_it_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(library) = eio::library(dir.path()) else { return };
    let manager = Manager::in_dir(dir.path());
    let gate = dir.path().join("gate");
    let (library, gate_text) = (library.to_str().expect("UTF-8"), gate.to_str().expect("UTF-8"));
    let settings = [("LD_PRELOAD", library), ("EIO_GATE", gate_text)];
    let daemon = manager.start(&dir.path().join("data"), 200, &settings).listening();
    manager.hear("READY=1");
    // A sync on the ingest thread would hold up whoever asks for the status; on a slow disk it is elsewhere.
    std::fs::write(&gate, "").expect("a gate");
    post(&daemon);
    eventually("the committer to be stuck", || daemon.said().contains("committer").then_some(()));
    manager.forget();
    std::thread::scope(|scope| {
        // What the ingest thread answers, it answers once the gate is open.
        let status = scope.spawn(|| daemon.client().get("/v1/status"));
        let started = std::time::Instant::now();
        eventually("a second", || (started.elapsed().as_secs() >= 1).then_some(()));
        assert_eq!(manager.forget(), 0, "a stuck committer is no sign of life");
        std::fs::remove_file(&gate).expect("it is there");
        assert_eq!(status.join().expect("no panic").expect("an answer").status, 200);
    });
    eventually("the committer", || daemon.said().contains("answers again").then_some(()));
    manager.hears_life();
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn a_worker_stuck_beyond_its_timeout_starves_the_watchdog_and_one_within_it_does_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(library) = eio::library(dir.path()) else { return };
    let manager = Manager::in_dir(dir.path());
    let gate = dir.path().join("gate");
    let (library, gate_text) = (library.to_str().expect("UTF-8"), gate.to_str().expect("UTF-8"));
    for (timeout, is_stuck) in [("1h", false), ("1ms", true)] {
        let settings = [
            ("LD_PRELOAD", library),
            ("EIO_GATE", gate_text),
            ("EIO_WHAT", "/archive/"),
            ("EVENTFLOW_SINK__ARCHIVE__TIMEOUT", timeout),
        ];
        let daemon = manager.start(&dir.path().join(timeout), 200, &settings).listening();
        manager.hear("READY=1");
        std::fs::write(&gate, "").expect("a gate");
        post(&daemon);
        in_flight(&daemon, "archive");
        if is_stuck {
            starves(&manager, &daemon, "sink-archive-0");
        } else {
            manager.hears_life();
        }
        std::fs::remove_file(&gate).expect("it is there");
        daemon.drained();
        manager.hears_life();
        assert_eq!(daemon.terminate().code(), Some(0));
    }
}

#[test]
fn a_disk_whose_syncs_take_long_is_not_stuck_and_a_long_start_gets_more_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(library) = eio::library(dir.path()) else { return };
    let manager = Manager::in_dir(dir.path());
    let settings = [("LD_PRELOAD", library.to_str().expect("UTF-8")), ("EIO_DELAY_MS", "700")];
    let daemon = manager.start(&dir.path().join("data"), 8_000, &settings).listening();
    manager.hear("EXTEND_TIMEOUT_USEC=30000000");
    manager.hear("STATUS=recovering: ");
    manager.hear("READY=1");
    post(&daemon);
    manager.hear("WATCHDOG=1");
    post(&daemon);
    manager.hear("WATCHDOG=1");
    assert!(!daemon.said().contains("stuck"), "{}", daemon.said());
    daemon.kill();
}

#[test]
fn a_reload_is_told_from_its_beginning_to_its_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let manager = Manager::in_dir(dir.path());
    let daemon = manager.start(&dir.path().join("data"), 60_000, &[]).listening();
    manager.hear("READY=1");
    daemon.signal("HUP");
    manager.hear("RELOADING=1");
    manager.hear("READY=1");
    assert_eq!(daemon.terminate().code(), Some(0));
}
