//! How the commands that talk to a daemon get in: its bearer token, and whom to trust over TLS.
//!
//! Blocking, on the main thread, with a deadline on everything. A token comes from a file or from the
//! environment, never from the command line, where every other user of the machine could read it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio_rustls::rustls::crypto::ring;
use ureq::http::header::{AUTHORIZATION, HeaderValue};
use ureq::middleware::MiddlewareNext;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{SendBody, http::Request};

use super::{Exit, Failure, unix};

/// The environment variable that holds a token.
const TOKEN_VARIABLE: &str = "EVENTFLOW_TOKEN";

/// What is shown to the daemon, and what it has to show.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct AccessArgs {
    /// File with the bearer token to show; without it, the variable EVENTFLOW_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file of the certificate authority to trust with https, in place of the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// PEM file of the certificate to show, where the daemon wants one
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// PEM file of that certificate's key
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
}

impl AccessArgs {
    /// A client for the daemon at `url` that shows what there is to show, hands back every status as an
    /// answer and never waits for ever.
    pub(super) fn agent(&self, url: &str, answer_within: Duration) -> Result<ureq::Agent, Failure> {
        let authorization = self.authorization()?;
        let with_token = move |mut request: Request<SendBody<'_>>, next: MiddlewareNext<'_>| {
            if let Some(value) = &authorization {
                request.headers_mut().insert(AUTHORIZATION, value.clone());
            }
            next.handle(request)
        };
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // The daemon is addressed directly: a proxy meant for the web would answer in its place.
            .proxy(None)
            .user_agent(concat!("eventflow/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_recv_response(Some(answer_within))
            .timeout_recv_body(Some(answer_within))
            .tls_config(if url.starts_with("https:") { self.tls()? } else { TlsConfig::default() })
            .middleware(with_token);
        Ok(match unix::socket_of(url) {
            Some(path) => {
                let socket = || unix::Socket(path.to_owned());
                ureq::Agent::with_parts(config.build(), socket(), socket())
            }
            None => config.build().into(),
        })
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, Failure> {
        let (token, whence) = match &self.token_file {
            Some(file) => (text(file)?, file.display().to_string()),
            None => match std::env::var(TOKEN_VARIABLE) {
                Ok(token) if !token.trim().is_empty() => (token, TOKEN_VARIABLE.to_owned()),
                _ => return Ok(None),
            },
        };
        let token = token.trim();
        let value = HeaderValue::try_from(format!("Bearer {token}")).ok();
        let value = value.filter(|_| !token.is_empty() && !token.contains(char::is_whitespace));
        let mut value =
            value.ok_or_else(|| usage(format_args!("{whence} does not hold one bearer token")))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn tls(&self) -> Result<TlsConfig, Failure> {
        let roots = match &self.ca_file {
            Some(file) => certificates(file)?,
            // Without any, or with some that cannot be read, the handshake fails and says so.
            None => rustls_native_certs::load_native_certs()
                .certs
                .iter()
                .map(|certificate| Certificate::from_der(certificate).to_owned())
                .collect(),
        };
        let client = match (&self.client_cert, &self.client_key) {
            (Some(chain), Some(key)) => {
                let pem = text(key)?;
                let key = PrivateKey::from_pem(pem.as_bytes())
                    .map_err(|_| usage(format_args!("{} holds no private key in PEM", key.display())))?;
                Some(ClientCert::new_with_certs(&certificates(chain)?, key))
            }
            _ => None,
        };
        let builder = TlsConfig::builder().root_certs(RootCerts::from(roots)).client_cert(client);
        Ok(builder.unversioned_rustls_crypto_provider(Arc::new(ring::default_provider())).build())
    }
}

fn usage(sentence: impl fmt::Display) -> Failure {
    Failure::new(Exit::Usage, sentence)
}

fn text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| usage(format_args!("{} cannot be read: {error}", path.display())))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, Failure> {
    let pem = text(path)?;
    let found: Vec<_> = parse_pem(pem.as_bytes())
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(usage(format_args!("{} holds no certificate in PEM", path.display())));
    }
    Ok(found)
}
