//! The sink against a receiver that does everything wrong.

mod receiver;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::config::{Config, SinkKind};
use crate::sink::tests::{batch_of, letters};

use receiver::{Receiver, Reply, ok, refused, status};

fn configured(address: SocketAddr, more: &str) -> SinkConfig {
    // The last of two equal keys would be a mistake, so a test that sets one must set it alone.
    let url =
        if more.contains("url =") { String::new() } else { format!("url = \"http://{address}/hook?x=1\"\n") };
    let private = if more.contains("allow_private") { "" } else { "allow_private = true\n" };
    let text = format!("[[sink]]\nname = \"hook\"\ntype = \"webhook\"\n{url}{private}{more}");
    let config = Config::parse("test", &text, [], &[]).unwrap();
    config.sinks[0].clone()
}

fn open(config: &SinkConfig) -> Webhook {
    let SinkKind::Webhook(webhook) = &config.kind else { panic!("a webhook") };
    Webhook::open(config, webhook).unwrap()
}

fn sink(address: SocketAddr, more: &str) -> Webhook {
    open(&configured(address, more))
}

fn text(offset: u64) -> String {
    format!(r#"{{"specversion":"1.0","id":"e{offset}","source":"/s","type":"t","data":{{"n": {offset}}}}}"#)
}

fn batch(offsets: impl IntoIterator<Item = u64>) -> Batch {
    let texts: Vec<(u64, String)> = offsets.into_iter().map(|offset| (offset, text(offset))).collect();
    batch_of(&texts, Micros(7))
}

async fn delivered(sink: &mut Webhook, offsets: impl IntoIterator<Item = u64>) -> String {
    let batch = batch(offsets);
    letters(sink.deliver(&batch).await, batch.events.len())
}

/// Whether a request holds an event of which `is_bad` is true.
fn holds(body: &str, is_bad: impl Fn(u64) -> bool) -> bool {
    body.split("\"id\":\"e").skip(1).any(|rest| is_bad(rest.split('"').next().unwrap().parse().unwrap()))
}

#[tokio::test]
async fn requests_are_cloudevents_with_a_signature_over_one_connection() {
    let receiver = Receiver::start(|_| ok()).await;
    let more = "secrets = [\"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\", \"whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"]\n\
                headers = { authorization = \"Bearer x\", X-Team = \"blue\" }\n";
    let mut sink = sink(receiver.address, more);
    assert_eq!(delivered(&mut sink, [0]).await, "d");
    assert_eq!(delivered(&mut sink, [1]).await, "d");
    let seen = receiver.seen();
    assert!(seen.iter().all(|request| request.connection == 0), "one connection");
    let first = &seen[0];
    assert!(first.head.starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{}", first.head);
    assert_eq!(first.header("host"), Some(receiver.address.to_string().as_str()));
    assert_eq!(first.header("content-type"), Some("application/cloudevents+json"));
    assert_eq!((first.header("authorization"), first.header("x-team")), (Some("Bearer x"), Some("blue")));
    assert_eq!(first.body, text(0));
    let timestamp: i64 = first.header("webhook-timestamp").unwrap().parse().unwrap();
    let expected =
        sink.poster.signer.sign(first.header("webhook-id").unwrap(), timestamp, first.body.as_bytes());
    assert_eq!(first.header("webhook-signature"), expected.as_deref());
    assert_eq!(expected.unwrap().split(' ').count(), 2);
    assert_ne!(seen[0].header("webhook-id"), seen[1].header("webhook-id"));
}

#[tokio::test]
async fn every_mode_arrives_as_the_binding_says() {
    let receiver = Receiver::start(|_| ok()).await;
    assert_eq!(delivered(&mut sink(receiver.address, "mode = \"binary\""), [3]).await, "d");
    assert_eq!(delivered(&mut sink(receiver.address, "batch = 10"), [4, 6]).await, "dd");
    assert_eq!(
        delivered(&mut sink(receiver.address, "mode = \"structured\"\nbatch = 10"), [7, 8]).await,
        "dd"
    );
    let seen = receiver.seen();
    assert_eq!(
        (seen[0].header("ce-id"), seen[0].header("content-type")),
        (Some("e3"), Some("application/json"))
    );
    assert_eq!((seen[0].header("ce-specversion"), seen[0].body.as_str()), (Some("1.0"), r#"{"n": 3}"#));
    assert_eq!(seen[1].header("content-type"), Some("application/cloudevents-batch+json"));
    assert_eq!(seen[1].body, format!("[{},{}]", text(4), text(6)));
    assert_eq!((seen[2].body.as_str(), seen[3].body.as_str()), (text(7).as_str(), text(8).as_str()));
}

#[tokio::test]
async fn each_bad_event_in_a_batch_is_found_and_takes_no_other_with_it() {
    for code in [400, 413, 500] {
        let bad = |offset| offset == 3 || offset == 64 || offset == 99;
        let receiver = Receiver::start(
            move |request| {
                if holds(&request.body, bad) { status(code, "", "no") } else { ok() }
            },
        )
        .await;
        let mut sink = sink(receiver.address, "batch = 100");
        let found = delivered(&mut sink, 0..100).await;
        let letter = if code == 500 { 'r' } else { 'j' };
        let expected: String = (0..100).map(|offset| if bad(offset) { letter } else { 'd' }).collect();
        assert_eq!(found, expected, "{code}");
        let requests = receiver.seen().len();
        assert!(requests < 50, "{requests} requests");
        // The next batch goes out whole again.
        assert_eq!(delivered(&mut sink, 100..200).await, "d".repeat(100));
        assert_eq!(receiver.seen().len(), requests + 1);
    }
}

#[tokio::test]
async fn an_endpoint_that_wants_nothing_is_unavailable_for_as_long_as_it_asks() {
    for (code, header, seconds) in
        [(503, "retry-after: 7\r\n", Some(7)), (429, "Retry-After: 1\r\n", Some(1)), (503, "", None)]
    {
        let receiver = Receiver::start(move |_| status(code, header, "later")).await;
        let refused = sink(receiver.address, "batch = 10").deliver(&batch(0..10)).await.unwrap_err();
        assert_eq!(refused.retry_after, seconds.map(Duration::from_secs));
        assert!(
            refused.reason.contains(&code.to_string()) && refused.reason.ends_with("later"),
            "{}",
            refused.reason
        );
        assert_eq!(receiver.seen().len(), 1, "no batch is cut for that");
    }
}

#[tokio::test]
async fn what_a_status_means_can_be_configured() {
    for (more, code, expected) in [
        ("", 410, "j"),
        ("", 404, "j"),
        ("", 204, "d"),
        ("status = { 404 = \"delivered\" }", 404, "d"),
        ("status = { 4xx = \"delivered\", 404 = \"reject\" }", 404, "j"),
        ("status = { 5xx = \"reject\" }", 503, "j"),
    ] {
        let receiver = Receiver::start(move |_| status(code, "", "")).await;
        assert_eq!(delivered(&mut sink(receiver.address, more), [0]).await, expected, "{more} {code}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Receiver::start(|_| ok()).await;
    let location = format!("location: http://{}/\r\n", elsewhere.address);
    let receiver = Receiver::start(move |_| status(307, &location, "")).await;
    let said = delivered(&mut sink(receiver.address, ""), [0]).await;
    assert!(said.contains("307") && said.contains("redirects are not followed"), "{said}");
    assert_eq!(elsewhere.seen().len(), 0);
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_or_breaks_off_is_unavailable_and_gets_the_same_delivery_again() {
    let said = delivered(&mut sink(refused().await, ""), [0]).await;
    assert!(said.contains("no connection to 127.0.0.1"), "{said}");

    for broken in ["", "HTTP/1.1 2", "nonsense\r\n\r\n"] {
        let receiver = Receiver::start(move |request| match request.connection {
            0 => Reply::ThenReset(broken.to_owned()),
            _ => ok(),
        })
        .await;
        let mut sink = sink(receiver.address, "batch = 10");
        let said = delivered(&mut sink, [5]).await;
        assert!(said.starts_with("the connection broke before an answer"), "{broken}: {said}");
        assert_eq!(delivered(&mut sink, [5]).await, "d");
        let ids: Vec<_> =
            receiver.seen().iter().map(|request| request.header("webhook-id").unwrap().to_owned()).collect();
        assert_eq!((ids.len(), &ids[0]), (2, &ids[1]), "the same event has the same webhook-id");
    }
}

#[tokio::test]
async fn silence_is_waited_for_until_the_timeout_only() {
    let receiver = Receiver::start(|_| Reply::Hang).await;
    let said = delivered(&mut sink(receiver.address, "timeout = \"1s\""), [0]).await;
    assert!(said.starts_with("no answer within"), "{said}");
}

#[tokio::test]
async fn the_status_counts_whatever_becomes_of_the_body() {
    let endless_header = format!("HTTP/1.1 200 OK\r\n{}", "x-long: 0123456789\r\n".repeat(20_000));
    let receiver = Receiver::start(move |request| match request.connection {
        0 => Reply::Endless,
        1 => Reply::ThenClose("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbroken".to_owned()),
        2 => Reply::Answer(endless_header.clone()),
        _ => ok(),
    })
    .await;
    let mut sink = sink(receiver.address, "");
    assert_eq!(delivered(&mut sink, [0]).await, "d", "endless");
    assert_eq!(delivered(&mut sink, [1]).await, "d", "broken off in the body");
    assert_eq!(delivered(&mut sink, [2]).await, "r", "a header without end is no answer");
    assert_eq!(delivered(&mut sink, [2]).await, "d");
    assert_eq!(receiver.seen().last().unwrap().connection, 3);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_replaced_unnoticed() {
    let receiver =
        Receiver::start(|_| Reply::ThenClose("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()))
            .await;
    let mut sink = sink(receiver.address, "");
    for offset in 0..20 {
        assert_eq!(delivered(&mut sink, [offset]).await, "d");
    }
}

#[tokio::test]
async fn what_was_settled_before_an_outage_is_not_sent_again_after_it() {
    let receiver = Receiver::start(|request| match (request.connection, &request.body) {
        (0, body) if body.contains("e2") => status(503, "connection: close\r\n", ""),
        (_, body) if body.contains("e1") => status(400, "", ""),
        _ => ok(),
    })
    .await;
    let mut sink = sink(receiver.address, "mode = \"structured\"\nbatch = 4");
    assert!(delivered(&mut sink, 0..4).await.contains("503"));
    assert_eq!(delivered(&mut sink, 0..4).await, "djdd");
    let sent: Vec<String> = receiver.seen().into_iter().map(|request| request.body).collect();
    assert_eq!(sent, [text(0), text(1), text(2), text(2), text(3)]);
    assert_eq!(delivered(&mut sink, 0..1).await, "d", "what was answered is forgotten");
    assert_eq!(receiver.seen().len(), 6);
}

#[tokio::test]
async fn an_endpoint_that_fails_everything_costs_no_attempt_and_poison_alone_is_let_past() {
    let receiver = Receiver::start(|_| status(500, "", "broken")).await;
    let mut sink = sink(receiver.address, "batch = 8");
    for _ in 0..3 {
        let before = receiver.seen().len();
        assert!(delivered(&mut sink, 0..8).await.contains("500"));
        assert!(receiver.seen().len() - before <= 6, "the rest is not even tried");
    }
    // Now the same event alone, as often as patience lasts.
    let mut rounds = 0;
    while delivered(&mut sink, [0]).await != "r" {
        rounds += 1;
    }
    assert_eq!(rounds, 0, "it stood in front three times already");
}

#[tokio::test]
async fn a_private_address_is_reached_only_when_that_is_configured() {
    let receiver = Receiver::start(|_| ok()).await;
    let mut config =
        configured(receiver.address, &format!("url = \"http://localhost:{}\"", receiver.address.port()));
    let SinkKind::Webhook(webhook) = &mut config.kind else { panic!("a webhook") };
    webhook.allow_private = false; // as if a public name led here
    let said = delivered(&mut open(&config), [0]).await;
    assert!(said.contains("`allow_private = true`") && said.contains("`localhost` is at"), "{said}");
    assert_eq!(receiver.seen().len(), 0);
}

/// An authority and an acceptor with a certificate of it for `localhost`.
fn tls() -> (String, TlsAcceptor) {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = authority.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(authority, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    (certificate.pem(), TlsAcceptor::from(Arc::new(server)))
}

#[tokio::test]
async fn a_certificate_must_come_from_a_trusted_authority_and_name_the_host() {
    let (authority, acceptor) = tls();
    let (stranger, _) = tls();
    let receiver = Receiver::start_with(Some(acceptor), |_| ok()).await;
    let dir = tempfile::tempdir().unwrap();
    let port = receiver.address.port();
    for (pem, host, expected) in [
        (&authority, "localhost", "d"),
        (&authority, "127.0.0.1", "TLS failed"),
        (&stranger, "localhost", "TLS failed"),
    ] {
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, pem).unwrap();
        let more = format!("url = \"https://{host}:{port}/\"\nca_file = {:?}", file.display().to_string());
        let said = delivered(&mut sink(receiver.address, &more), [0]).await;
        assert!(said.starts_with(expected), "{host}: {said}");
    }
    // Plain HTTP to a TLS port is no answer, and a TLS client at a plain port no connection.
    let said =
        delivered(&mut sink(receiver.address, &format!("url = \"http://localhost:{port}/\"")), [0]).await;
    assert!(said.contains("broke before an answer"), "{said}");
}
