//! TLS on real connections: what speaks it is served, what does not is told quickly, and silent clients
//! hold up nobody.

use std::path::PathBuf;

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, RootCertStore};

use super::*;
use crate::config::Tls;

const EVENT: &str = r#"{"specversion":"1.0","id":"a","source":"/s","type":"t"}"#;

/// Files with an authority of our own, and what it says about this server and one client.
struct Files {
    folder: tempfile::TempDir,
    authority: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Files {
    fn new() -> Self {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap();
        let files = Files { folder: tempfile::tempdir().unwrap(), authority };
        let (cert, key) = files.issue();
        std::fs::write(files.path("cert"), cert.pem()).unwrap();
        std::fs::write(files.path("key"), key.serialize_pem()).unwrap();
        std::fs::write(files.path("ca"), files.authority.pem()).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn issue(&self) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (parameters.signed_by(&key, &self.authority).unwrap(), key)
    }

    fn tls(&self, client_ca: bool) -> Tls {
        Tls { cert: self.path("cert"), key: self.path("key"), client_ca: client_ca.then(|| self.path("ca")) }
    }

    /// What a client trusts, and shows if it has something to show.
    fn client(&self, shows: bool) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        if !shows {
            return builder.with_no_client_auth();
        }
        let (cert, key) = self.issue();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        builder.with_client_auth_cert(vec![cert.der().clone()], key).unwrap()
    }
}

async fn encrypted(files: &Files, client_ca: bool, change: impl FnOnce(&mut config::Http)) -> Running {
    let running = start(change).await;
    running.app.set_tls(Some(files.tls(client_ca).server().unwrap()));
    running
}

async fn connect(running: &Running, config: ClientConfig) -> io::Result<Client<TlsStream<TcpStream>>> {
    let stream = TcpStream::connect(running.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = in_time(TlsConnector::from(Arc::new(config)).connect(name, stream)).await?;
    Ok(Client { stream, buffer: Vec::new() })
}

#[tokio::test]
async fn events_and_status_go_over_tls_by_either_lane() {
    let files = Files::new();
    let running = encrypted(&files, false, |_| {}).await;
    let mut config = files.client(false);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut client = connect(&running, config).await.unwrap();
    let session = client.stream.get_ref().1;
    assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    for _ in 0..3 {
        // Whole: the express lane. Then one that is not plain, and another route.
        client.send(post(JSON, EVENT)).await;
        assert_eq!(client.reply().await.status, 202);
        client.send(post(&format!("{JSON}idempotency-key: k\r\n"), "1")).await;
        assert_eq!(client.reply().await.status, 202);
        client.send(get("/v1/status")).await;
        assert_eq!(client.reply().await.status, 200);
    }
    // Larger than a record, and in two writes.
    let large = post(JSON, format!("\"{}\"", "x".repeat(9_000)));
    client.send(&large[..100]).await;
    client.send(&large[100..]).await;
    assert_eq!(client.reply().await.status, 202);
    assert_eq!(running.texts().len(), 7);
}

#[tokio::test]
async fn many_requests_at_once_are_answered_over_tls_in_their_order() {
    let files = Files::new();
    let running = encrypted(&files, false, |_| {}).await;
    let mut client = connect(&running, files.client(false)).await.unwrap();
    client.send(post(JSON, EVENT).repeat(50)).await;
    for number in 0..50 {
        let reply = client.reply().await;
        assert!(reply.body.contains(&format!("\"first_offset\":{number},")), "{reply:?}");
    }
}

#[tokio::test]
async fn what_does_not_speak_tls_is_told_so_and_what_does_on_a_plain_port_is_let_go() {
    let files = Files::new();
    let running = encrypted(&files, false, |_| {}).await;
    let mut plain = running.client().await;
    plain.send(get("/livez")).await;
    let reply = plain.reply().await;
    assert_eq!((reply.status, &*reply.slug()), (400, "malformed"));
    assert!(reply.body.contains("https://"), "{}", reply.body);
    assert!(plain.is_closed().await);

    running.app.set_tls(None);
    assert!(connect(&running, files.client(false)).await.is_err());
    assert_eq!(running.ask(get("/livez")).await.status, 200);
}

#[tokio::test]
async fn silent_handshakes_hold_up_nobody_and_are_let_go_in_time() {
    let files = Files::new();
    let running = encrypted(&files, false, |http| {
        http.header_timeout = Duration::from_secs(1);
        http.max_connections = 101;
    })
    .await;
    let mut silent = Vec::new();
    for number in 0..100 {
        let mut client = running.client().await;
        if number % 2 == 0 {
            // The beginning of a handshake that does not go on.
            client.send([0x16, 3, 1, 2, 0, 1, 0]).await;
        }
        silent.push(client);
    }
    let mut client = connect(&running, files.client(false)).await.unwrap();
    client.send(post(JSON, EVENT)).await;
    assert_eq!(client.reply().await.status, 202);
    for mut client in silent {
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_told_so_over_tls() {
    let files = Files::new();
    let running = encrypted(&files, false, |http| http.max_connections = 1).await;
    let first = connect(&running, files.client(false)).await.unwrap();
    let mut second = connect(&running, files.client(false)).await.unwrap();
    assert_eq!(second.reply().await.slug(), "overloaded");
    drop(first);
}

#[tokio::test]
async fn where_clients_must_show_a_certificate_the_others_get_nowhere() {
    let files = Files::new();
    let running = encrypted(&files, true, |_| {}).await;
    let mut known = connect(&running, files.client(true)).await.unwrap();
    known.send(post(JSON, EVENT)).await;
    assert_eq!(known.reply().await.status, 202);
    for stranger in [files.client(false), Files::new().client(true)] {
        // Another authority's server is not trusted either, so trust this one and show that one's.
        let mut config = files.client(false);
        config.client_auth_cert_resolver = stranger.client_auth_cert_resolver.clone();
        // With TLS 1.3 a client hears of it only behind the handshake.
        if let Ok(mut client) = connect(&running, config).await {
            let _ = client.stream.write_all(&post(JSON, EVENT)).await;
            assert!(client.is_closed().await);
        }
    }
    assert_eq!(running.texts().len(), 1);
}

#[tokio::test]
async fn certificates_are_exchanged_while_connections_stand() {
    let (old, new) = (Files::new(), Files::new());
    let running = encrypted(&old, false, |_| {}).await;
    let mut standing = connect(&running, old.client(false)).await.unwrap();
    running.app.set_tls(Some(new.tls(false).server().unwrap()));
    standing.send(post(JSON, EVENT)).await;
    assert_eq!(standing.reply().await.status, 202);
    assert!(connect(&running, old.client(false)).await.is_err());
    let mut client = connect(&running, new.client(false)).await.unwrap();
    client.send(post(JSON, EVENT)).await;
    assert_eq!(client.reply().await.status, 202);
}

#[test]
fn files_that_do_not_fit_are_named_and_not_shown() {
    let files = Files::new();
    let other = Files::new();
    let key = std::fs::read_to_string(files.path("key")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    for (tls, expected) in [
        (Tls { key: other.path("key"), ..files.tls(false) }, "do not fit together"),
        (Tls { key: files.path("cert"), ..files.tls(false) }, "no private key"),
        (Tls { cert: files.path("key"), ..files.tls(false) }, "no certificate"),
        (Tls { cert: files.path("none"), ..files.tls(false) }, "cannot be read"),
        (Tls { client_ca: Some(files.path("key")), ..files.tls(false) }, "no certificate"),
    ] {
        let said = tls.server().expect_err(expected);
        assert!(said.contains(expected) && !said.contains(secret), "{said}");
    }
}
