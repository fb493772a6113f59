//! Sockets that systemd has opened for us (socket activation), so that a restart refuses no connection.
//!
//! Called while starting, on the caller's thread, before anything else opens a file: what is passed begins
//! at descriptor 3. Nothing is believed: each descriptor must be a listening stream socket, or the start
//! ends with code 2 and a sentence that says which one is not. Facts: sd_listen_fds(3), systemd.socket(5).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::net::{AddressFamily, SocketType, getsockname};

use super::Error;
use super::notify::Manager;

/// A socket of this name is for operators; every other one takes requests, because systemd calls a socket
/// by its unit when nothing else is said (`FileDescriptorName=`).
const ADMIN: &str = "admin";

/// Most sockets that are taken.
const MOST: u32 = 64;

/// What the service manager gave us: nothing at all, inside another program.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// Listening stream sockets for requests; none when the configuration says where to listen.
    pub(super) http: Vec<OwnedFd>,
    /// Whom to tell how it goes.
    pub(super) manager: Manager,
}

impl Passed {
    /// Takes what was passed to this very process.
    pub(super) fn take() -> Result<Passed, Error> {
        let number = std::env::var("LISTEN_FDS").ok().and_then(|number| number.parse::<u32>().ok());
        if let Some(number) = number.filter(|number| *number > MOST) {
            return Err(Error::Activation(format!("LISTEN_FDS={number} is more than {MOST}")));
        }
        let passed = sd_listen_fds::get().map_err(|error| Error::Activation(error.to_string()))?;
        let mut http = Vec::new();
        for (at, (name, socket)) in (3..).zip(passed) {
            let (name, socket) = (name.unwrap_or_default(), socket.into_std());
            let wrong =
                |reason: String| Err(Error::Activation(format!("descriptor {at} (`{name}`) {reason}")));
            if let Err(reason) = check(socket.as_fd()) {
                // Whatever it is, it is not ours to close: it may not even be open.
                std::mem::forget(socket);
                return wrong(reason);
            }
            if name == ADMIN {
                return wrong("is for operators, who are not passed a socket yet: `http.admin_listen` names their address".to_owned());
            }
            http.push(socket);
        }
        Ok(Passed { http, manager: Manager::of_this_process() })
    }
}

/// Why a descriptor cannot be listened on, if so; programs that we start do not inherit it.
fn check(socket: BorrowedFd<'_>) -> Result<(), String> {
    let failed = |error: rustix::io::Errno| match error {
        rustix::io::Errno::BADF => "is not open".to_owned(),
        rustix::io::Errno::NOTSOCK => "is not a socket; `ListenStream=` makes one".to_owned(),
        error => format!("cannot be used: {}", io::Error::from(error)),
    };
    let flags = fcntl_getfd(socket).map_err(failed)?;
    if socket_type(socket).map_err(failed)? != SocketType::STREAM {
        return Err("is not a stream socket; use `ListenStream=`".to_owned());
    }
    if !socket_acceptconn(socket).map_err(failed)? {
        return Err("does not listen; `Accept=no` is needed in the socket unit".to_owned());
    }
    let family = getsockname(socket).map_err(failed)?.address_family();
    if ![AddressFamily::INET, AddressFamily::INET6, AddressFamily::UNIX].contains(&family) {
        return Err("is neither TCP nor a Unix socket".to_owned());
    }
    fcntl_setfd(socket, flags | FdFlags::CLOEXEC).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_listening_stream_sockets_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        fcntl_setfd(&tcp, FdFlags::empty()).unwrap();
        assert_eq!(check(tcp.as_fd()), Ok(()));
        assert!(fcntl_getfd(&tcp).unwrap().contains(FdFlags::CLOEXEC), "no program inherits it");
        let unix = UnixListener::bind(dir.path().join("socket")).unwrap();
        assert_eq!(check(unix.as_fd()), Ok(()));

        let file = tempfile::tempfile().unwrap();
        assert!(check(file.as_fd()).unwrap_err().contains("not a socket"));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(check(udp.as_fd()).unwrap_err().contains("not a stream socket"));
        let connected = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        assert!(check(connected.as_fd()).unwrap_err().contains("does not listen"));
    }
}
