//! Sockets passed by a service manager: they go before the configured address, and over a restart no
//! connection is refused. The tests play the manager: a shell puts the socket where systemd would.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use crate::harness::{DEADLINE, Daemon, TINY, archive, eventflow, eventually};

const EVENT: &str = r#"{"over":"a restart"}"#;

/// The daemon with `socket` as descriptor 3, and 8080 as the configured address.
fn command(data_dir: &Path, socket: impl Into<OwnedFd>, settings: &[(&str, &str)]) -> Command {
    let ours = eventflow(&["serve"]);
    let mut command = Command::new("sh");
    command.args(["-c", "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\" 3<&0 </dev/null", "sh"]);
    command.arg(ours.get_program()).args(ours.get_args()).arg("--data-dir").arg(data_dir);
    for (name, value) in ours.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.envs(TINY.iter().copied()).envs(settings.iter().copied()).stdin(socket.into());
    command
}

fn start(data_dir: &Path, socket: &TcpListener) -> Daemon {
    let socket = socket.try_clone().expect("a socket can be shared");
    let daemon = Daemon::spawn(command(data_dir, socket, &[]), data_dir).listening();
    eventually("the daemon to be ready", || {
        (daemon.client().get("/readyz").ok()?.status == 200).then_some(())
    });
    daemon
}

/// Sends a request and waits for nothing.
fn request(socket: &TcpListener) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(socket.local_addr().expect("bound")).expect("never refused");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    write!(
        stream,
        "POST /v1/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{EVENT}",
        EVENT.len()
    )
    .expect("sent");
    BufReader::new(stream)
}

fn status_line(mut answer: BufReader<impl std::io::Read>) -> String {
    let mut line = String::new();
    answer.read_line(&mut line).expect("an answer");
    line
}

#[test]
fn over_restarts_no_connection_is_refused_and_every_request_is_taken() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut waiting = vec![request(&socket)];
    for _ in 0..3 {
        let daemon = start(dir.path(), &socket);
        for answer in waiting.drain(..) {
            assert!(status_line(answer).starts_with("HTTP/1.1 202"));
        }
        // A request under way keeps the drain going.
        let mut slow = daemon.half_a_request(EVENT);
        daemon.signal("TERM");
        eventually("the drain", || daemon.said().contains("draining").then_some(()));
        waiting.push(request(&socket));
        slow.get_mut().write_all(EVENT.as_bytes()).expect("sent");
        assert_eq!(daemon.wait().code(), Some(0));
        waiting.push(request(&socket));
    }
    let daemon = start(dir.path(), &socket);
    for answer in waiting.drain(..) {
        assert!(status_line(answer).starts_with("HTTP/1.1 202"));
    }
    daemon.drained();
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(archive(dir.path()).len(), 1 + 3 * 3);
}

#[test]
fn a_unix_socket_can_be_passed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("socket");
    let socket = UnixListener::bind(&path).expect("a socket");
    let daemon = Daemon::spawn(command(&dir.path().join("data"), socket, &[]), dir.path());
    let mut stream = UnixStream::connect(&path).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    write!(stream, "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
    assert!(status_line(BufReader::new(stream)).starts_with("HTTP/1.1 200"));
    eventually("it serves", || daemon.said().contains("serving").then_some(()));
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn what_cannot_be_listened_on_is_a_wrong_configuration() {
    let dir = tempfile::tempdir().expect("a directory");
    let (stream, _other) = UnixStream::pair().expect("a pair");
    let everywhere = TcpListener::bind("0.0.0.0:0").expect("a port");
    let file = std::fs::File::create(dir.path().join("file")).expect("a file");
    let sockets: [(OwnedFd, &str, &str); 4] = [
        (stream.into(), "", "does not listen"),
        (file.into(), "", "is not a socket"),
        (everywhere.into(), "", "`http.allow_anonymous = true`"),
        (TcpListener::bind("127.0.0.1:0").expect("a port").into(), "admin", "(`admin`) is for operators"),
    ];
    for (socket, name, words) in sockets {
        let mut command = command(&dir.path().join("data"), socket, &[("LISTEN_FDNAMES", name)]);
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("descriptor 3") || name.is_empty(), "{said}");
        assert!(said.contains(words), "{said}\nlacks {words}");
    }
}
