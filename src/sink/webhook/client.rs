//! One kept-alive HTTP/1.1 connection to one endpoint, with a limit on everything: time to connect,
//! time to answer, bytes of header and body.
//!
//! Runs on the worker's task; the connection itself is driven by a task of the runtime the worker
//! uses, and is cut off when the exchange it serves is given up. No redirect is followed and no proxy
//! is asked. Names are resolved for every new connection, and an address that is not public is not
//! connected to unless the sink may, so that a name cannot lead into the private network.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{HOST, HeaderMap, RETRY_AFTER};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::{Endpoint, Webhook, is_public};

use super::message::Message;

/// Most bytes of an answer's header.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Bytes of an answer that are kept for the reason of a failure.
const EXCERPT_BYTES: usize = 256;

/// Talks to one endpoint.
pub(super) struct Client {
    endpoint: Endpoint,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    allow_private: bool,
    connect_timeout: Duration,
    max_answer_bytes: u64,
    /// Waits for the next request.
    idle: Option<Connection>,
}

/// What an endpoint answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<String>,
    /// The beginning of the body.
    pub(super) excerpt: Vec<u8>,
}

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// No connection: the request went nowhere.
    NotReached(String),
    /// The connection broke; the request may have arrived.
    Broken(String),
    /// Nothing came in time; the request may have arrived.
    Silent,
}

/// A connection, cut off on drop.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    /// A client for the endpoint that `config` names. Reads the authorities to trust.
    pub(super) fn new(config: &Webhook) -> Result<Self, String> {
        let tls = if config.endpoint.tls { Some(tls(config)?) } else { None };
        Ok(Self {
            endpoint: config.endpoint.clone(),
            tls,
            allow_private: config.allow_private,
            connect_timeout: config.connect_timeout,
            max_answer_bytes: config.max_answer_bytes,
            idle: None,
        })
    }

    /// Sends one request and reads its answer.
    pub(super) async fn post(&mut self, message: &Message, deadline: Instant) -> Result<Answer, NoAnswer> {
        if let Some(connection) = self.idle.take() {
            match self.exchange(connection, message, deadline).await {
                // Closed while it waited: nothing is wrong with the endpoint.
                Err(NoAnswer::Broken(_)) => {}
                answered => return answered,
            }
        }
        let connect_deadline = deadline.min(Instant::now() + self.connect_timeout);
        let connection = match timeout_at(connect_deadline, self.connect()).await {
            Ok(connected) => connected.map_err(NoAnswer::NotReached)?,
            Err(_) => return Err(NoAnswer::NotReached("no connection in time".to_owned())),
        };
        self.exchange(connection, message, deadline).await
    }

    async fn exchange(
        &mut self,
        mut connection: Connection,
        message: &Message,
        deadline: Instant,
    ) -> Result<Answer, NoAnswer> {
        let request = self.request(message);
        let exchange = async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        };
        let response = match timeout_at(deadline, exchange).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(NoAnswer::Broken(chain(&error))),
            Err(_) => return Err(NoAnswer::Silent),
        };
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (excerpt, whole) = self.read(response, deadline).await;
        if whole && !connection.sender.is_closed() {
            self.idle = Some(connection);
        }
        Ok(Answer { status, retry_after, excerpt })
    }

    fn request(&self, message: &Message) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(message.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.target.parse().unwrap_or_default();
        let mut headers: HeaderMap = message.headers.clone();
        if let Ok(host) = self.endpoint.authority.parse() {
            headers.insert(HOST, host);
        }
        *request.headers_mut() = headers;
        request
    }

    /// The beginning of the body, and whether its end was reached within the limits. The status has
    /// said all that counts, so a body that never ends costs the connection and nothing else.
    async fn read(&self, response: Response<Incoming>, deadline: Instant) -> (Vec<u8>, bool) {
        let mut body = response.into_body();
        let (mut excerpt, mut seen) = (Vec::new(), 0u64);
        loop {
            let frame = match timeout_at(deadline, body.frame()).await {
                Ok(None) => return (excerpt, true),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(_))) | Err(_) => return (excerpt, false),
            };
            let Some(data) = frame.data_ref() else { continue };
            let room = EXCERPT_BYTES - excerpt.len();
            excerpt.extend_from_slice(&data[..data.len().min(room)]);
            seen += data.len() as u64;
            if seen > self.max_answer_bytes {
                return (excerpt, false);
            }
        }
    }

    async fn connect(&self) -> Result<Connection, String> {
        let stream = self.dial().await?;
        match &self.tls {
            None => handshake(stream).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await;
                handshake(stream.map_err(|error| format!("TLS failed: {}", chain(&error)))?).await
            }
        }
    }

    async fn dial(&self) -> Result<TcpStream, String> {
        let host = self.endpoint.host.as_str();
        let found = tokio::net::lookup_host((host, self.endpoint.port)).await;
        let found: Vec<SocketAddr> =
            found.map_err(|error| format!("the name `{host}` does not resolve: {error}"))?.collect();
        let (allowed, refused): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|address| self.allow_private || is_public(address.ip()));
        let mut trouble = match refused.first() {
            Some(address) => private(host, address.ip()),
            None => format!("the name `{host}` has no address"),
        };
        for address in allowed {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // A request is written whole; waiting for more of it would only add delay.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => trouble = format!("no connection to {address}: {error}"),
            }
        }
        Err(trouble)
    }
}

fn private(host: &str, address: IpAddr) -> String {
    format!(
        "`{host}` is at {address}, which is this machine or a private network; `allow_private = true` in this sink's \
         `[[sink]]` table permits that"
    )
}

async fn handshake<S>(stream: S) -> Result<Connection, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connected = Builder::new().max_buf_size(MAX_HEADER_BYTES).handshake(TokioIo::new(stream)).await;
    let (sender, connection) = connected.map_err(|error| chain(&error))?;
    // Its errors reach whoever waits for an answer.
    let task = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(Connection { sender, task })
}

/// A connector that trusts the configured authority, else the system's.
fn tls(config: &Webhook) -> Result<(TlsConnector, ServerName<'static>), String> {
    let mut roots = RootCertStore::empty();
    match config.authority()? {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|error| format!("`ca_file` is not PEM: {error}"))?;
                roots
                    .add(certificate)
                    .map_err(|error| format!("`ca_file` holds no usable certificate: {error}"))?;
            }
            if roots.is_empty() {
                return Err("`ca_file` holds no certificate".to_owned());
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("this system trusts no certificate authority: install its `ca-certificates` package, or name \
                            one in `ca_file`"
                    .to_owned());
            }
        }
    }
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let host = config.endpoint.host.clone();
    let name =
        ServerName::try_from(host.clone()).map_err(|_| format!("`{host}` cannot stand in a certificate"))?;
    Ok((TlsConnector::from(Arc::new(client)), name))
}

/// An error with its causes, which hyper's own text leaves out.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}
