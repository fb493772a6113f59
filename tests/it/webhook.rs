//! A webhook sink of the real binary against a receiver, and its signatures against the packages
//! that receivers check them with.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::{Daemon, TINY, eventflow, eventually, run, words};
use crate::sdk::installed;

/// What arrived: headers in lower case, and the body.
pub type Received = Arc<Mutex<Vec<(Vec<(String, String)>, String)>>>;

/// Takes requests and answers each with the status that `status` gives its body.
pub fn receiver(status: impl Fn(&str) -> u16 + Send + Sync + 'static) -> (SocketAddr, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let (received, status) = (Received::default(), Arc::new(status));
    let seen = received.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (seen, status) = (seen.clone(), status.clone());
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                loop {
                    let mut headers = Vec::new();
                    for line in
                        stream.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty())
                    {
                        if let Some((name, value)) = line.split_once(": ") {
                            headers.push((name.to_lowercase(), value.to_owned()));
                        }
                    }
                    let Some((_, length)) = headers.iter().find(|(name, _)| name == "content-length") else {
                        return;
                    };
                    let mut body = vec![0; length.parse().expect("a length")];
                    stream.read_exact(&mut body).expect("a body");
                    let body = String::from_utf8(body).expect("text");
                    let code = status(&body);
                    seen.lock().expect("nobody panics with it").push((headers, body));
                    let answer = format!("HTTP/1.1 {code} Word\r\ncontent-length: 2\r\n\r\nno");
                    if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, received)
}

/// A daemon with a webhook beside its archive.
pub fn daemon(dir: &Path, address: SocketAddr, more: &str) -> Daemon {
    let config = dir.join("eventflow.toml");
    let text = format!(
        "[[sink]]\nname = \"archive\"\ntype = \"json_file\"\n[[sink]]\nname = \"hook\"\ntype = \"webhook\"\n\
         url = \"http://{address}/hook\"\nallow_private = true\nbackoff_initial = \"1ms\"\n{more}\n"
    );
    std::fs::write(&config, text).expect("a configuration");
    let mut command = eventflow(&["serve", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(&config).arg("--data-dir").arg(dir.join("data")).envs(TINY.iter().copied());
    Daemon::spawn(command, dir).listening()
}

pub fn post(daemon: &Daemon, numbers: std::ops::Range<u32>) {
    let lines: Vec<String> = numbers.map(|n| json!({ "number": n }).to_string()).collect();
    let answer = eventually("an answer of 202", || {
        let answer = daemon.client().post("application/x-ndjson", lines.join("\n").as_bytes()).ok()?;
        (answer.status == 202).then_some(answer)
    });
    assert_eq!(answer.json()["accepted"], lines.len());
}

/// The webhook's part of the status once it has nothing to do.
pub fn finished(daemon: &Daemon) -> Value {
    eventually("the webhook to be done", || {
        let hook = daemon.status()["sinks"].as_array()?.iter().find(|sink| sink["name"] == "hook")?.clone();
        (hook["pending"] == 0 && hook["delivered"] != 0).then_some(hook)
    })
}

#[test]
fn a_webhook_gets_every_event_and_the_packages_of_receivers_accept_its_signatures() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (address, received) = receiver(|_| 200);
    let keys = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"];
    let daemon = daemon(dir.path(), address, &format!("secrets = {keys:?}"));
    post(&daemon, 0..10);
    assert_eq!(finished(&daemon)["delivered"], 10);
    assert_eq!(daemon.terminate().code(), Some(0));
    let received = received.lock().expect("nobody panics with it").clone();
    assert_eq!(received.len(), 10);
    let mut input = String::new();
    for (headers, body) in &received {
        let headers: serde_json::Map<String, Value> =
            headers.iter().map(|(n, v)| (n.clone(), json!(v))).collect();
        input += &json!({ "secrets": keys, "headers": headers, "body": body }).to_string();
        input.push('\n');
    }
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk");
    if let Some(python) = installed("python/bin/python") {
        verified(Command::new(python).arg(sdk.join("signatures.py")), &input);
    }
    if let (Some(script), Some(_)) =
        (installed("javascript/signatures.mjs"), installed("javascript/node_modules/standardwebhooks"))
    {
        verified(Command::new("node").arg(script), &input);
    }
}

/// Runs a program that checks every signature it reads, and that it would notice a wrong one.
fn verified(program: &mut Command, input: &str) {
    let child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the interpreter runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", words(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("10 signatures"), "{output:?}");
}

#[test]
fn bad_events_are_dead_rows_with_the_endpoints_own_words_and_everything_else_is_delivered() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let is_bad = |body: &str| body.contains("\"number\":13}") || body.contains("\"number\":77}");
    for (mode, code, retry) in
        [("batch", 400, ""), ("structured", 422, ""), ("batch", 500, "max_attempts = 2, ")]
    {
        let (address, received) = receiver(move |body| if is_bad(body) { code } else { 200 });
        let place = dir.path().join(format!("{mode}-{code}"));
        std::fs::create_dir(&place).expect("a directory");
        let more = format!("mode = \"{mode}\"\nretry = {{ {retry}initial = \"1ms\", max = \"2ms\" }}");
        let daemon = daemon(&place, address, &more);
        post(&daemon, 0..100);
        let hook = eventually("98 delivered and 2 dead", || {
            let hook = finished(&daemon);
            (hook["dead"] == 2).then_some(hook)
        });
        assert_eq!(
            (&hook["delivered"], &hook["retrying"], &hook["dropped"]),
            (&json!(98), &json!(0), &json!(0))
        );
        let rows = daemon.client().get("/v1/failures?sink=hook").expect("an answer").text();
        assert_eq!(rows.matches(&format!("the endpoint answered {code} ")).count(), 2, "{rows}");
        let received = received.lock().expect("nobody panics with it").clone();
        for number in 0..100 {
            let event = format!("\"number\":{number}}}");
            assert!(received.iter().any(|(_, body)| body.contains(&event)), "{number} never arrived");
        }
        assert_eq!(daemon.terminate().code(), Some(0));
    }
}

#[test]
fn a_program_gets_every_event_and_its_word_decides() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("eventflow.toml");
    let script = r#"while IFS= read -r line; do o=${line##*\"eventflowoffset\":\"}; o=${o%%\"*}
        case $line in *13}*) word=reject;; *) word=delivered;; esac
        printf '{"offset":"%s","outcome":"%s","reason":"unlucky"}\n' "$o" "$word"; done"#;
    let command = json!(["sh", "-c", script]);
    let text = format!("[[sink]]\nname = \"hook\"\ntype = \"exec\"\ncommand = {command}\n");
    std::fs::write(&file, text).expect("a configuration");
    let mut command = eventflow(&["serve", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(&file).arg("--data-dir").arg(dir.path().join("data")).envs(TINY.iter().copied());
    let daemon = Daemon::spawn(command, dir.path()).listening();
    post(&daemon, 0..50);
    let hook = eventually("49 delivered and 1 dead", || {
        let hook = finished(&daemon);
        (hook["dead"] == 1).then_some(hook)
    });
    assert_eq!(hook["delivered"], 49);
    assert!(daemon.client().get("/v1/failures?sink=hook").expect("an answer").text().contains("unlucky"));
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn a_local_url_is_refused_with_the_key_that_permits_it_and_secrets_are_never_shown() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("eventflow.toml");
    let check = |more: &str| {
        let text = format!(
            "[[sink]]\nname = \"hook\"\ntype = \"webhook\"\nurl = \"http://localhost:3000/\"\n{more}"
        );
        std::fs::write(&file, text).expect("a configuration");
        run(&["check", "--config", file.to_str().expect("text")])
    };
    let refused = check("");
    assert_eq!(refused.status.code(), Some(2));
    assert!(words(&refused).contains("set `allow_private = true`"), "{}", words(&refused));
    let fine = check("allow_private = true\nsecrets = [\"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"]");
    assert_eq!(fine.status.code(), Some(0), "{}", words(&fine));
    let shown = String::from_utf8_lossy(&fine.stdout).into_owned() + &words(&fine);
    assert!(shown.contains("secrets = [\"***\"]") && !shown.contains("MfKQ9r8"), "{shown}");
}
