//! Signed webhooks through the real binary: real payloads, redeliveries, and whatever is not genuine.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::{Value, json};

use crate::corpus;
use crate::harness::{Answer, Client, Daemon, ROOMY, archive, eventflow, eventually, words};
use crate::sdk::installed;

const SECRET: &str = "a secret of thirty-two characters";
const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A daemon with a hook for GitHub and one for Standard Webhooks.
fn daemon(dir: &Path) -> Daemon {
    let config = dir.join("eventflow.toml");
    let text = format!(
        "[[hook]]\nname = \"github\"\ntype = \"github\"\nsecrets = [\"another one, soon to be gone\", \"{SECRET}\"]\n\
         [[hook]]\nname = \"pay\"\ntype = \"standard\"\nsecrets = [\"{KEY}\"]\nsource = \"https://pay.example\"\n"
    );
    std::fs::write(&config, text).expect("a configuration");
    let mut command = eventflow(&["serve", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(&config).arg("--data-dir").arg(dir.join("data")).envs(ROOMY.iter().copied());
    let daemon = Daemon::spawn(command, &dir.join("data")).listening();
    eventually("the daemon to be ready", || {
        Client::to(daemon.address).get("/readyz").ok().filter(|answer| answer.status == 200)
    });
    daemon
}

/// As GitHub signs a body.
fn signed(secret: &str, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let digits = hmac::sign(&key, body.as_bytes());
    let digits: String = digits.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

fn deliver(client: &mut Client, event: &str, id: &str, signature: &str, body: &str) -> Answer {
    let headers = [
        ("user-agent", "GitHub-Hookshot/044aadd"),
        ("content-type", "application/json"),
        ("x-github-event", event),
        ("x-github-delivery", id),
        ("x-hub-signature", "sha1=0000000000000000000000000000000000000000"),
        ("x-hub-signature-256", signature),
    ];
    client.request("POST", "/v1/hooks/github", &headers, body.as_bytes()).expect("answered")
}

#[test]
fn real_payloads_signed_as_github_signs_them_are_taken_once_however_often_they_are_delivered() {
    let (_, originals) = corpus::input();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = daemon(dir.path());
    let mut client = daemon.client();
    // Without the corpus there are the sample events, whose types are not GitHub's.
    let deliveries: Vec<_> = originals
        .iter()
        .filter_map(|original| {
            let name = original.attributes["type"].as_str()?;
            let event = name
                .strip_prefix("com.github.")
                .map_or("ping", |rest| rest.split_once('.').map_or(rest, |(event, _)| event));
            Some((event, original.data.as_deref()?, original))
        })
        .collect();
    for round in ["accepted", "duplicates"] {
        for (number, (event, body, _)) in deliveries.iter().enumerate() {
            let id = format!("72d3162e-cc78-11e3-81ab-{number:012}");
            let answer = deliver(&mut client, event, &id, &signed(SECRET, body), body);
            assert_eq!(answer.status, 202, "{}", answer.text());
            assert_eq!(answer.json()[round], 1, "{}", answer.text());
            assert_eq!(answer.json()["id"], id);
        }
    }
    daemon.drained();
    assert_eq!(daemon.terminate().code(), Some(0));
    let archived = archive(&dir.path().join("data"));
    assert_eq!(archived.len(), deliveries.len());
    for (archived, (_, body, original)) in archived.iter().zip(&deliveries) {
        assert_eq!(archived.data.as_deref(), Some(*body));
        let kept: Value = serde_json::from_str(&archived.line).expect("JSON");
        if original.attributes["type"].as_str().is_some_and(|name| name.starts_with("com.github.")) {
            for name in ["type", "source", "partitionkey", "datacontenttype"] {
                assert_eq!(kept.get(name), original.attributes.get(name), "{name} of {}", archived.line);
            }
        }
    }
}

#[test]
fn what_is_not_genuine_is_refused_and_nothing_of_it_is_archived() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = daemon(dir.path());
    let mut client = daemon.client();
    let body = r#"{"action":"opened","repository":{"url":"https://x","full_name":"o/r"}}"#;
    let good = signed(SECRET, body);
    for (signature, body) in [
        (signed("another secret than the one", body), body),
        (good.clone(), &body[..body.len() - 1]),
        (good.clone(), "{}"),
        (good.replace("sha256=", "sha1="), body),
        (good.replace("sha256=", ""), body),
        (good[..good.len() - 2].to_owned(), body),
        ("sha256=".to_owned(), body),
        (String::new(), body),
    ] {
        let answer = deliver(&mut client, "issues", "1", &signature, body);
        assert_eq!((answer.status, &*answer.slug()), (401, "unauthenticated"), "{signature}");
        assert!(!answer.text().contains(&good[7..]), "{}", answer.text());
    }
    // Whole, with no signature at all; and with a body that does not matter any more.
    let bare = client.request("POST", "/v1/hooks/github", &[("content-type", "application/json")], b"{}");
    assert_eq!(bare.expect("answered").slug(), "unauthenticated");
    let unknown =
        client.request("POST", "/v1/hooks/gitlab", &[("x-hub-signature-256", &good)], body.as_bytes());
    assert_eq!(unknown.expect("answered").slug(), "not-found");
    let got = client.request("GET", "/v1/hooks/github", &[], b"").expect("answered");
    assert_eq!((got.status, got.headers.get("allow").map(String::as_str)), (405, Some("POST")));
    // A genuine one whose body is no JSON.
    let answer = deliver(&mut client, "issues", "1", &signed(SECRET, "{"), "{");
    assert_eq!((answer.status, &*answer.slug()), (400, "malformed"));

    assert_eq!(deliver(&mut client, "issues", "1", &good, body).status, 202);
    daemon.drained();
    assert!(!daemon.said().contains(SECRET));
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(archive(&dir.path().join("data")).len(), 1);
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn standard_signature(id: &str, timestamp: u64, body: &str) -> String {
    let key = STANDARD.decode(KEY.trim_start_matches("whsec_")).expect("base64");
    let signed = format!("{id}.{timestamp}.{body}");
    format!("v1,{}", STANDARD.encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), signed.as_bytes())))
}

fn pay(client: &mut Client, id: &str, timestamp: u64, signature: &str, body: &str) -> Answer {
    let timestamp = timestamp.to_string();
    let headers = [
        ("content-type", "application/json"),
        ("webhook-id", id),
        ("webhook-timestamp", &*timestamp),
        ("webhook-signature", signature),
    ];
    client.request("POST", "/v1/hooks/pay", &headers, body.as_bytes()).expect("answered")
}

#[test]
fn a_standard_webhook_is_taken_in_its_time_and_a_replay_is_a_duplicate() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = daemon(dir.path());
    let mut client = daemon.client();
    let body = r#"{"type":"invoice.paid","data":{"amount":1.50}}"#;
    for old in [now() - 400, now() + 400, 0] {
        let answer = pay(&mut client, "msg_1", old, &standard_signature("msg_1", old, body), body);
        assert_eq!((answer.status, &*answer.slug()), (401, "unauthenticated"), "{old}");
    }
    let at = now();
    let signature = standard_signature("msg_1", at, body);
    for round in ["accepted", "duplicates"] {
        let answer = pay(&mut client, "msg_1", at, &signature, body);
        assert_eq!((answer.status, &answer.json()[round]), (202, &json!(1)), "{}", answer.text());
    }
    assert_eq!(pay(&mut client, "msg_2", at, &signature, body).status, 401, "another id");
    daemon.drained();
    assert_eq!(daemon.terminate().code(), Some(0));
    let archived = archive(&dir.path().join("data"));
    assert_eq!(archived.len(), 1);
    let kept: Value = serde_json::from_str(&archived[0].line).expect("JSON");
    assert_eq!((&kept["id"], &kept["type"]), (&json!("msg_1"), &json!("invoice.paid")));
    assert_eq!(kept["source"], "https://pay.example");
    assert_eq!(archived[0].data.as_deref(), Some(body));
}

/// The signature that a program prints for the key, an id, a time and a body.
fn signature_by(mut program: Command, id: &str, timestamp: u64, body: &str) -> String {
    let output = program.args([KEY, id, &timestamp.to_string(), body]).output().expect("it runs");
    assert!(output.status.success(), "{}", words(&output));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

#[test]
fn what_the_packages_of_standard_webhooks_sign_is_taken() {
    let mut programs = Vec::new();
    if let Some(python) = installed("python/bin/python") {
        let mut program = Command::new(python);
        program.args(["-c", "import sys, datetime as d\nfrom standardwebhooks.webhooks import Webhook\nkey, id, at, body = sys.argv[1:]\nprint(Webhook(key).sign(id, d.datetime.fromtimestamp(int(at), d.timezone.utc), body))"]);
        programs.push(program);
    }
    if let Some(packages) = installed("javascript/node_modules/standardwebhooks") {
        let mut program = Command::new("node");
        program.current_dir(packages.join("../.."));
        program.args(["--input-type=module", "-e", "import { Webhook } from 'standardwebhooks'\nconst [key, id, at, body] = process.argv.slice(1)\nconsole.log(new Webhook(key).sign(id, new Date(at * 1000), body))"]);
        programs.push(program);
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = daemon(dir.path());
    let mut client = daemon.client();
    for (number, program) in programs.into_iter().enumerate() {
        let (id, at, body) = (format!("msg_{number}"), now(), r#"{"type":"a.b","data":"é"}"#);
        let signature = signature_by(program, &id, at, body);
        let answer = pay(&mut client, &id, at, &signature, body);
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
}
