//! Tokens from outside: what `eventflow token new` makes opens what it says and nothing else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::harness::{Client, DEADLINE, Daemon, archive, eventflow, run, words};

/// A folder with a tokens file, and each token by its scope.
struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let keys = Keys { folder };
        let mut tables = String::new();
        for scope in ["ingest", "read", "admin"] {
            let out = keys.file(scope);
            let made = run(&["token", "new", "--name", scope, "--scope", scope, "--out", path(&out)]);
            assert_eq!(made.status.code(), Some(0), "{}", words(&made));
            tables += std::str::from_utf8(&made.stdout).expect("UTF-8");
        }
        std::fs::write(keys.file("tokens.toml"), tables).expect("written");
        keys
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn token(&self, scope: &str) -> String {
        std::fs::read_to_string(self.file(scope)).expect("readable").trim().to_owned()
    }

    fn bearer(&self, scope: &str) -> String {
        format!("Bearer {}", self.token(scope))
    }

    fn daemon(&self, data_dir: &Path) -> Daemon {
        let file = self.file("tokens.toml");
        Daemon::start(data_dir, &[("EVENTFLOW_HTTP__TOKENS_FILE", path(&file))])
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Every route: the description has all of them, as a test beside the router makes sure. And one that is none.
fn routes() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let text = std::fs::read_to_string(file).expect("readable");
    let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut found: Vec<String> = document["paths"].as_object().expect("routes").keys().cloned().collect();
    assert!(found.len() >= 16, "{found:?}");
    found.push("/no/such/route".to_owned());
    found
}

#[test]
fn no_route_is_open_that_was_not_meant_to_be() {
    let (keys, dir) = (Keys::new(), tempfile::tempdir().expect("a temporary directory"));
    let daemon = keys.daemon(dir.path());
    let open = |method: &str, route: &str| match route {
        "/livez" | "/healthz" | "/readyz" => ["GET", "HEAD"].contains(&method),
        "/v1/events" => method == "OPTIONS",
        "/v1/hooks/{name}" => method == "POST",
        _ => false,
    };
    let read = |method: &str, route: &str| {
        ["GET", "HEAD"].contains(&method)
            && (route.starts_with("/v1/") || ["/metrics", "/openapi.json"].contains(&route))
    };
    for route in routes() {
        let address =
            route.replace("{offset}", "0").replace("{name}", "archive").replace("{sink}", "archive");
        assert!(!address.contains('{'), "a value for {address}");
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "FROBNICATE"] {
            let ask = |headers: &[(&str, &str)]| {
                Client::to(daemon.address).status(method, &address, headers).expect("answered")
            };
            let status = ask(&[]);
            assert_eq!(status != 401, open(method, &route), "{method} {address} without a token: {status}");
            if open(method, &route) {
                continue;
            }
            for scope in ["ingest", "read", "admin"] {
                let wanted = match (method, route.as_str()) {
                    ("POST", "/v1/events") => "ingest",
                    _ if read(method, &route) => "read",
                    _ => "admin",
                };
                let status = ask(&[("authorization", &keys.bearer(scope))]);
                assert_ne!(status, 401, "{method} {address} with {scope}");
                assert_eq!(status != 403, scope == wanted, "{method} {address} with {scope}: {status}");
            }
        }
    }
}

#[test]
fn what_is_refused_is_not_archived_and_the_commands_show_their_token() {
    let (keys, dir) = (Keys::new(), tempfile::tempdir().expect("a temporary directory"));
    let daemon = keys.daemon(dir.path());
    let events = keys.file("events.ndjson");
    std::fs::write(&events, "{\"n\":1}\n{\"n\":2}\n").expect("written");
    let send = ["send", path(&events), "--url", &daemon.url()];
    let status = ["status", "--url", &daemon.url()];

    let copy = keys.file("copy");
    let failures = ["failures", "list", "--url", &daemon.url()];
    let snapshot = ["snapshot", path(&copy), "--url", &daemon.url()];
    for arguments in [&send[..], &status, &failures, &snapshot] {
        let refused = run(arguments);
        assert_eq!(refused.status.code(), Some(1), "{}", words(&refused));
        let said = words(&refused);
        assert!(said.contains("answered 401: ") && said.contains("--token-file"), "{said}");
    }
    let with_file = |arguments: &[&str], scope: &str| {
        let file = keys.file(scope);
        run(&[arguments, &["--token-file", path(&file)]].concat())
    };
    let refused = with_file(&send, "read");
    let said = words(&refused);
    assert!(said.contains("answered 403: ") && said.contains("--token-file"), "{said}");
    let sent = with_file(&send, "ingest");
    assert_eq!(sent.status.code(), Some(0), "{}", words(&sent));
    let shown = eventflow(&status).env("EVENTFLOW_TOKEN", keys.token("read")).output().expect("it runs");
    assert_eq!(shown.status.code(), Some(0), "{}", words(&shown));
    let listed = with_file(&failures, "read");
    assert_eq!(listed.status.code(), Some(0), "{}", words(&listed));
    let said = daemon.said();
    for scope in ["ingest", "read", "admin"] {
        assert!(!said.contains(&keys.token(scope)), "a token in the log");
    }
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(archive(dir.path()).len(), 2);
}

#[test]
fn a_token_is_shown_once_and_its_file_is_read_by_nobody_else() {
    let made =
        run(&["token", "new", "--name", "ci", "--scope", "ingest", "--scope", "read", "--expires", "1d"]);
    let (table, token) = (String::from_utf8_lossy(&made.stdout).into_owned(), words(&made));
    let token = token.lines().find(|line| line.starts_with("eft_")).expect("shown");
    assert!(!table.contains(token) && table.contains("sha256:"), "{table}");
    assert!(
        table.contains("\"ingest\"") && table.contains("\"read\"") && table.contains("expires"),
        "{table}"
    );

    let folder = tempfile::tempdir().expect("a temporary directory");
    let out = folder.path().join("t");
    let new = ["token", "new", "--name", "ci", "--scope", "read", "--out", path(&out)];
    assert_eq!(run(&new).status.code(), Some(0));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&out).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let first = std::fs::read(&out).expect("readable");
    assert_eq!(run(&new).status.code(), Some(1), "a token is never overwritten");
    assert_eq!(std::fs::read(&out).expect("readable"), first);
    let wrong = run(&["token", "new", "--name", "ci", "--scope", "write"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", words(&wrong));
}

#[test]
fn beyond_loopback_there_are_tokens_or_a_word_that_says_so() {
    let keys = Keys::new();
    let file = keys.file("tokens.toml");
    let check = |settings: &[(&str, &str)]| {
        let mut command = eventflow(&["check"]);
        command.env("EVENTFLOW_HTTP__LISTEN", "0.0.0.0:8080").envs(settings.iter().copied());
        command.output().expect("it runs")
    };
    let bare = check(&[]);
    assert_eq!(bare.status.code(), Some(2));
    assert!(words(&bare).contains("tokens_file"), "{}", words(&bare));
    assert_eq!(check(&[("EVENTFLOW_HTTP__TOKENS_FILE", path(&file))]).status.code(), Some(0));
    assert_eq!(check(&[("EVENTFLOW_HTTP__ALLOW_ANONYMOUS", "true")]).status.code(), Some(0));
    let credential = ("EVENTFLOW_HTTP__TOKENS_FILE", "credential:tokens.toml");
    let none = check(&[credential]);
    assert!(words(&none).contains("CREDENTIALS_DIRECTORY"), "{}", words(&none));
    let given = check(&[credential, ("CREDENTIALS_DIRECTORY", path(keys.folder.path()))]);
    assert_eq!(given.status.code(), Some(0), "{}", words(&given));
    std::fs::write(&file, "[[token]]\nname = \"a\"\nhash = \"eft_plain\"\nscopes = [\"read\"]\n")
        .expect("written");
    let wrong = check(&[("EVENTFLOW_HTTP__TOKENS_FILE", path(&file))]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        words(&wrong).contains("`hash` must be") && !words(&wrong).contains("eft_plain"),
        "{}",
        words(&wrong)
    );
}

/// One request over a Unix socket, and everything that comes back.
fn over_unix(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    write!(stream, "{request}").expect("taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer to its end");
    answer
}

#[test]
fn with_a_listener_for_operators_the_other_one_takes_events_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("admin.sock");
    let listen = format!("unix:{}", path(&socket));
    let daemon = Daemon::start(dir.path(), &[("EVENTFLOW_HTTP__ADMIN_LISTEN", &listen)]);
    for route in routes() {
        let address =
            route.replace("{offset}", "0").replace("{name}", "archive").replace("{sink}", "archive");
        for method in ["GET", "POST"] {
            let status = Client::to(daemon.address).status(method, &address, &[]).expect("answered");
            let health = method == "GET" && ["/livez", "/healthz", "/readyz"].contains(&&*route);
            let events = method == "POST" && route == "/v1/events";
            assert_eq!(status == 404, !health && !events, "{method} {route}: {status}");
        }
    }
    let sent = daemon.client().post("application/json", b"1").expect("answered");
    assert_eq!(sent.status, 202);
    let ask = |request: &str| {
        over_unix(
            &socket,
            &format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"),
        )
    };
    for request in ["GET /v1/status", "GET /v1/events/0", "GET /readyz", "POST /v1/sinks/archive/resume"] {
        let answer = ask(request);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{request}: {answer}");
    }
    let event = "POST /v1/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n2";
    assert!(over_unix(&socket, event).contains("\"accepted\":1"));
    assert!(ask("GET /v1/status").contains("\"next_offset\":2"));
    for command in [&["status"][..], &["failures", "list"], &["top", "--count", "1"]] {
        let done = run(&[command, &["--url", &listen]].concat());
        assert_eq!(done.status.code(), Some(0), "{command:?}: {}", words(&done));
    }
    let nowhere = format!("{listen}-of-nobody");
    let refused = run(&["status", "--url", &nowhere]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(words(&refused).contains(nowhere.trim_start_matches("unix:")), "{}", words(&refused));
    assert_eq!(daemon.terminate().code(), Some(0));
}
