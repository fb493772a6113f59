//! An HTTP receiver that misbehaves on demand, written by hand because no server would.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What the receiver does with a request.
pub enum Reply {
    /// Answers these bytes and keeps the connection.
    Answer(String),
    /// Answers these bytes and resets the connection.
    ThenReset(String),
    /// Answers these bytes and closes the connection.
    ThenClose(String),
    /// Never answers.
    Hang,
    /// Answers 200 with a body that never ends.
    Endless,
}

/// An answer with a status, more header lines and a body.
pub fn status(code: u16, headers: &str, body: &str) -> Reply {
    Reply::Answer(format!("HTTP/1.1 {code} Word\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()))
}

pub fn ok() -> Reply {
    status(200, "", "")
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Received {
    pub head: String,
    pub body: String,
    pub connection: usize,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

type Script = Arc<dyn Fn(&Received) -> Reply + Send + Sync>;

/// Listens on a port of its own.
#[derive(Clone)]
pub struct Receiver {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    pub async fn start(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, script).await
    }

    pub async fn start_with(
        tls: Option<TlsAcceptor>,
        script: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::behind(TcpListener::bind("127.0.0.1:0").await.unwrap(), tls, script)
    }

    /// Takes connections from `listener` until its runtime ends.
    pub fn behind(
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        script: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let receiver = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let (seen, script): (_, Script) = (receiver.seen.clone(), Arc::new(script));
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (seen, script, tls) = (seen.clone(), script.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => {
                            if let Some(stream) = serve(stream, connection, &seen, &script).await {
                                stream.set_zero_linger().unwrap();
                            }
                        }
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            serve(stream, connection, &seen, &script).await;
                        }
                    }
                });
            }
        });
        receiver
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Received> {
        self.seen.lock().unwrap().clone()
    }
}

/// Serves one connection; gives it back when it is to be reset.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    connection: usize,
    seen: &Mutex<Vec<Received>>,
    script: &Script,
) -> Option<S> {
    let mut buffer = Vec::new();
    loop {
        let request = read_request(&mut stream, &mut buffer, connection).await?;
        seen.lock().unwrap().push(request.clone());
        match script(&request) {
            Reply::Answer(text) => stream.write_all(text.as_bytes()).await.ok()?,
            Reply::ThenReset(text) => {
                stream.write_all(text.as_bytes()).await.ok()?;
                return Some(stream);
            }
            Reply::ThenClose(text) => {
                stream.write_all(text.as_bytes()).await.ok()?;
                return None;
            }
            Reply::Hang => std::future::pending().await,
            Reply::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.ok()?;
                loop {
                    stream.write_all(b"5\r\nagain\r\n").await.ok()?;
                }
            }
        }
    }
}

async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    connection: usize,
) -> Option<Received> {
    loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(buffer[..at].to_vec()).unwrap();
            let mut request = Received { head, body: String::new(), connection };
            let length: usize = request.header("content-length").map_or(0, |length| length.parse().unwrap());
            if buffer.len() >= at + 4 + length {
                let rest = buffer.split_off(at + 4 + length);
                request.body = String::from_utf8_lossy(&buffer[at + 4..]).into_owned();
                *buffer = rest;
                return Some(request);
            }
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// An address on which nobody listens.
pub async fn refused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
