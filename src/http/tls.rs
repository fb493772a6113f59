//! TLS in front of a connection: the handshake, and a word for who does not speak it.
//!
//! Runs on the connection's task and counts as the connection from its first byte on: it has a place among
//! `http.max_connections`, and the clock that every connection has closes it when the handshake takes
//! longer than `http.header_timeout`. A handshake that fails ends this connection and nothing else.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use super::connection::{self, Clock};
use super::problem::{Problem, Slug};
use super::{Edge, TURN_AWAY};

/// What every TLS connection begins with: the type of a handshake record.
const HANDSHAKE: u8 = 0x16;

/// Serves one connection to its end.
pub async fn serve(stream: TcpStream, config: Arc<ServerConfig>, clock: Arc<Clock>, edge: Arc<Edge>) {
    let shaken = clock.unless_closed(Box::pin(handshake(stream, config))).await;
    match shaken {
        Some(Ok(Some(stream))) => {
            clock.header_begins();
            connection::serve(stream, clock, edge).await;
        }
        Some(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Some(Ok(None)) | None => {}
    }
}

/// The stream behind the handshake; `None` for a client that does not speak TLS and was told so.
pub async fn handshake(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> io::Result<Option<TlsStream<TcpStream>>> {
    let mut first = [0];
    let read = stream.peek(&mut first).await?;
    if read == 1 && first[0] != HANDSHAKE {
        let detail = "this address speaks TLS: begin it with https://";
        let answer = Problem::new(Slug::Malformed, detail).to_wire(true, None);
        // Whoever does not take the answer in time goes without.
        let _ = tokio::time::timeout(TURN_AWAY, connection::turn_away(stream, answer.into())).await;
        return Ok(None);
    }
    TlsAcceptor::from(config).accept(stream).await.map(Some)
}
