//! How the daemon stops: what is under way finishes, what is new is refused, a second signal ends it
//! at once, and systemd hears of it.

use std::io::{BufRead, Write};
use std::os::unix::net::UnixDatagram;

use crate::harness::{DEADLINE, Daemon, TINY, archive, eventually};

const EVENT: &str = r#"{"under":"way"}"#;

#[test]
fn a_request_under_way_finishes_while_new_ones_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(dir.path(), TINY);
    let mut slow = daemon.half_a_request(EVENT);
    daemon.signal("TERM");
    let refusal = eventually("a refusal", || {
        let answer = daemon.client().post("application/json", b"1").ok()?;
        (answer.status == 503).then_some(answer)
    });
    assert_eq!(refusal.slug(), "shutting-down");
    assert!(refusal.headers["retry-after"].parse::<u64>().is_ok_and(|s| s >= 1));
    slow.get_mut().write_all(EVENT.as_bytes()).expect("sent");
    let mut status = String::new();
    slow.read_line(&mut status).expect("an answer");
    assert!(status.starts_with("HTTP/1.1 202"), "{status}");
    assert_eq!(daemon.wait().code(), Some(0));

    let daemon = Daemon::start(dir.path(), TINY);
    daemon.drained();
    let data: Vec<_> = archive(dir.path()).into_iter().filter_map(|line| line.data).collect();
    assert!(data.contains(&EVENT.to_owned()), "{data:?}");
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(dir.path(), TINY);
    assert_eq!(daemon.client().post("application/json", b"1").expect("answered").status, 202);
    let _slow = daemon.half_a_request(EVENT);
    daemon.signal("TERM");
    eventually("the drain", || daemon.said().contains("SIGTERM").then_some(()));
    daemon.signal("INT");
    assert_eq!(daemon.wait().code(), Some(1), "the stop was cut short, and says so");

    let daemon = Daemon::start(dir.path(), TINY);
    daemon.drained();
    assert_eq!(archive(dir.path()).len(), 1);
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn systemd_hears_of_readiness_and_of_the_stop() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let hear = |wanted: &str| {
        let mut buffer = [0; 1024];
        loop {
            let length = socket.recv(&mut buffer).expect("a word in time");
            let words = std::str::from_utf8(&buffer[..length]).expect("UTF-8");
            if words.lines().any(|line| line == wanted) {
                return;
            }
        }
    };
    let settings = [("NOTIFY_SOCKET", path.to_str().expect("UTF-8"))];
    let daemon = Daemon::launch(&dir.path().join("data"), &settings).listening();
    hear("STATUS=recovering");
    hear("READY=1");
    assert_eq!(daemon.client().get("/readyz").expect("answered").status, 200);
    daemon.signal("TERM");
    hear("STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0));
}
