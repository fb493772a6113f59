//! The listening sockets: TCP or Unix, bound here or passed by systemd, accepted the same way.
//!
//! Used by the accept loop alone. Binding fails loudly at start; accepting fails softly, because a
//! lack of descriptors passes.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::task::{Context, Poll};

use rustix::net::{AddressFamily, getsockname};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::config::Listen;

/// Sockets that take connections; at least one.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<Socket>,
    /// Whose turn it is to be asked first, so that a busy socket does not starve the others.
    turn: usize,
    is_passed: bool,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// One accepted connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP, and where it comes from.
    Tcp(TcpStream, IpAddr),
    /// A Unix socket.
    Unix(UnixStream),
}

/// Connections the kernel keeps waiting while this thread syncs.
pub(super) const BACKLOG: u32 = 4096;

impl Stream {
    /// Whether the client has reset it already. Such a connection waits in the kernel like any other, and
    /// somebody who makes them by the thousand must not cost more than taking them out of the way of the rest.
    pub(super) fn is_reset(&self) -> bool {
        match self {
            Self::Tcp(stream, _) => stream.take_error().is_ok_and(|error| error.is_some()),
            Self::Unix(_) => false,
        }
    }
}

impl Listener {
    /// Binds what the configuration says. Must be called inside a runtime.
    pub fn bind(listen: &Listen) -> io::Result<Self> {
        let socket = match listen {
            Listen::Tcp(address) => {
                let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                // A restart must not wait for connections of the last run to time out.
                socket.set_reuseaddr(true)?;
                socket.bind(*address)?;
                hasten(&socket);
                Socket::Tcp(socket.listen(BACKLOG)?)
            }
            Listen::Unix(path) => {
                remove_stale(path)?;
                Socket::Unix(UnixListener::bind(path)?)
            }
        };
        Ok(Self { sockets: vec![socket], turn: 0, is_passed: false })
    }

    /// Takes over sockets that listen already, and that somebody else keeps open when we end. Must be called
    /// inside a runtime.
    pub fn adopt(passed: Vec<OwnedFd>) -> io::Result<Self> {
        let adopt = |socket: OwnedFd| -> io::Result<Socket> {
            if getsockname(&socket)?.address_family() == AddressFamily::UNIX {
                let socket = std::os::unix::net::UnixListener::from(socket);
                socket.set_nonblocking(true)?;
                return Ok(Socket::Unix(UnixListener::from_std(socket)?));
            }
            hasten(&socket);
            let socket = std::net::TcpListener::from(socket);
            socket.set_nonblocking(true)?;
            Ok(Socket::Tcp(TcpListener::from_std(socket)?))
        };
        let sockets = passed.into_iter().map(adopt).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { sockets, turn: 0, is_passed: true })
    }

    /// Whether somebody else keeps the sockets open when we end: then connections may wait in them for
    /// whoever comes after us.
    pub(super) fn is_passed(&self) -> bool {
        self.is_passed
    }

    /// Its TCP addresses.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.sockets.iter().filter_map(|socket| match socket {
            Socket::Tcp(socket) => socket.local_addr().ok(),
            Socket::Unix(_) => None,
        })
    }

    /// Where it listens, for people.
    pub fn describe(&self, tls: bool) -> String {
        let places: Vec<_> = self.sockets.iter().map(|socket| socket.describe(tls)).collect();
        places.join(", ")
    }

    /// The next connection. Cancel-safe.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        self.turn = self.turn.wrapping_add(1);
        for at in 0..self.sockets.len() {
            let at = self.turn.wrapping_add(at) % self.sockets.len();
            if let Poll::Ready(accepted) = self.sockets[at].poll_accept(cx) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }
}

impl Socket {
    fn describe(&self, tls: bool) -> String {
        let scheme = if tls { "https" } else { "http" };
        match self {
            Self::Tcp(socket) => {
                socket.local_addr().map_or_else(|e| e.to_string(), |a| format!("{scheme}://{a}"))
            }
            Self::Unix(socket) => socket
                .local_addr()
                .ok()
                .and_then(|a| a.as_pathname().map(|p| format!("unix:{}", p.display())))
                .unwrap_or_else(|| "unix:(unnamed)".to_owned()),
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        match self {
            Self::Tcp(socket) => {
                socket.poll_accept(cx).map_ok(|(stream, from)| Stream::Tcp(stream, from.ip()))
            }
            Self::Unix(socket) => socket.poll_accept(cx).map_ok(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

/// An answer is one small write and must not wait for the client's ACK. What is accepted inherits this
/// (tcp(7) of Linux), so it costs no call a connection.
fn hasten(listener: &impl AsFd) {
    if let Err(error) = rustix::net::sockopt::set_tcp_nodelay(listener, true) {
        tracing::debug!(%error, "TCP_NODELAY not set");
    }
}

/// Removes a socket that a dead process left behind; a live one stays, and binding says so.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(rustix::fs::unlink(path)?),
        _ => Ok(()),
    }
}
