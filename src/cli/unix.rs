//! HTTP over a Unix socket: what `--url unix:/run/eventflow/eventflow.sock` means to the client.
//!
//! Blocking, on the thread of the command, with a deadline on connecting, on each write and on each read.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout as Direction, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

/// What an address of this kind begins with, as in `http.listen`.
pub(super) const SCHEME: &str = "unix:";

/// The socket an address names.
pub(super) fn socket_of(url: &str) -> Option<&Path> {
    url.strip_prefix(SCHEME).map(|path| Path::new(path.strip_prefix("//").unwrap_or(path)))
}

/// Connects to one socket, whatever host a request names.
#[derive(Debug)]
pub(super) struct Socket(pub(super) PathBuf);

impl Socket {
    /// A daemon that is stopped in a debugger takes no connection once its backlog is full, hence the deadline.
    fn open(&self, within: Option<Duration>) -> io::Result<UnixStream> {
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&fd, Direction::Send, within)?;
        connect(&fd, &SocketAddrUnix::new(self.0.as_path())?)?;
        Ok(UnixStream::from(fd))
    }
}

impl Connector for Socket {
    type Out = Stream;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Stream>, Error> {
        let stream = self.open(deadline(details.timeout)).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Error::Timeout(Timeout::Connect),
            kind => Error::Io(io::Error::new(kind, format!("{}: {error}", self.0.display()))),
        })?;
        let (input, output) = (details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Stream { stream, buffers: LazyBuffers::new(input, output) }))
    }
}

/// A Unix socket has no address to look up; the client wants one all the same and never uses it.
impl Resolver for Socket {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        addresses.push(([0, 0, 0, 0], 0).into());
        Ok(addresses)
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Stream {
    stream: UnixStream,
    buffers: LazyBuffers,
}

fn deadline(timeout: NextTimeout) -> Option<Duration> {
    timeout.not_zero().map(|left| *left)
}

fn failed(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

impl Transport for Stream {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.set_write_timeout(deadline(timeout))?;
        self.stream.write_all(&self.buffers.output()[..amount]).map_err(|error| failed(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_read_timeout(deadline(timeout))?;
        let read = loop {
            match self.stream.read(self.buffers.input_append_buf()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(|error| failed(error, timeout))?,
            }
        };
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    /// Asked before a connection is used again: one that has anything to read was closed, or is out of step.
    fn is_open(&mut self) -> bool {
        let nothing_came = self.stream.set_nonblocking(true).is_ok()
            && matches!(self.stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        nothing_came && self.stream.set_nonblocking(false).is_ok()
    }
}
