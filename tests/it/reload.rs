//! SIGHUP from outside: what is read again is in force without a restart, and a mistake changes nothing.

use std::path::PathBuf;

use crate::harness::{Client, Daemon, TINY, eventflow, eventually, run, words};
use crate::tls::Files;

/// A daemon whose configuration file the test rewrites.
struct Reloaded {
    folder: tempfile::TempDir,
    daemon: Option<Daemon>,
}

impl Reloaded {
    fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut reloaded = Self { folder, daemon: None };
        reloaded.write("eventflow.toml", config);
        let mut command = eventflow(&["serve", "--listen", "127.0.0.1:0", "--config"]);
        command.arg(reloaded.file("eventflow.toml")).arg("--data-dir").arg(reloaded.file("data"));
        command.envs(TINY.iter().copied());
        let daemon = Daemon::spawn(command, &reloaded.file("data")).listening();
        reloaded.daemon = Some(daemon);
        reloaded.says("serving");
        reloaded
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.file(name), text).expect("written");
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it was started")
    }

    fn says(&self, words: &str) -> String {
        eventually(words, || Some(self.daemon().said()).filter(|said| said.contains(words)))
    }

    /// Sends SIGHUP and waits for what the daemon says of it; that line.
    fn reload(&self) -> String {
        let outcomes = ["configuration read again", "configuration not valid"];
        let count = |said: &str| outcomes.iter().map(|words| said.matches(words).count()).sum::<usize>();
        let before = count(&self.daemon().said());
        self.daemon().signal("HUP");
        eventually("the daemon to say what came of the reload", || {
            let said = self.daemon().said();
            let is_one = |line: &&str| outcomes.iter().any(|words| line.contains(words));
            let last = said.lines().rfind(is_one).map(str::to_owned);
            last.filter(|_| count(&said) > before)
        })
    }

    fn status_with(&self, token: &str) -> u16 {
        let authorization = format!("Bearer {token}");
        let asked =
            self.daemon().client().request("GET", "/v1/status", &[("authorization", &authorization)], b"");
        asked.expect("answered").status
    }
}

/// A new token, and its table for the file.
fn token(name: &str) -> (String, String) {
    let made = run(&["token", "new", "--name", name, "--scope", "read", "--json"]);
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let text = |key: &str| made[key].as_str().expect("a text").to_owned();
    (text("token"), text("table"))
}

#[test]
fn tokens_come_and_go_with_a_reload_and_a_mistake_changes_nothing() {
    let ((old, old_table), (new, new_table)) = (token("old"), token("new"));
    let reloaded = Reloaded::start("");
    let config = |more: &str| {
        let file = reloaded.file("tokens.toml");
        format!("[http]\ntokens_file = {file:?}\n{more}")
    };
    assert_eq!(reloaded.status_with("nobody"), 200, "no tokens yet");
    reloaded.write("tokens.toml", &old_table);
    reloaded.write("eventflow.toml", &config(""));
    assert!(reloaded.reload().contains("http.tokens_file"));
    assert_eq!((reloaded.status_with("nobody"), reloaded.status_with(&old)), (401, 200));

    reloaded.write("tokens.toml", &(old_table.clone() + &new_table));
    reloaded.reload();
    assert_eq!((reloaded.status_with(&old), reloaded.status_with(&new)), (200, 200));
    reloaded.write("tokens.toml", &new_table);
    reloaded.reload();
    assert_eq!((reloaded.status_with(&old), reloaded.status_with(&new)), (401, 200));

    // A mistake in either file, and a file that is gone.
    for (name, text) in
        [("tokens.toml", "[[token]]\nname = \"x\"\n".to_owned()), ("eventflow.toml", config("liste = 1"))]
    {
        let kept = std::fs::read_to_string(reloaded.file(name)).expect("readable");
        reloaded.write(name, &text);
        let said = reloaded.reload();
        assert!(said.contains("ERROR") && said.contains("not valid"), "{said}");
        assert_eq!((reloaded.status_with(&old), reloaded.status_with(&new)), (401, 200));
        reloaded.write(name, &kept);
    }
    std::fs::remove_file(reloaded.file("tokens.toml")).expect("there");
    assert!(reloaded.reload().contains("cannot be read"));
    assert_eq!((reloaded.status_with("nobody"), reloaded.status_with(&new)), (401, 200));

    // Whoever takes the key out has to restart: nobody is let in by a signal.
    reloaded.write("tokens.toml", &new_table);
    reloaded.write("eventflow.toml", "");
    reloaded.reload();
    let said = reloaded.says("wait for a restart");
    assert!(said.lines().any(|line| line.contains("restart") && line.contains("http.tokens_file")), "{said}");
    assert_eq!((reloaded.status_with("nobody"), reloaded.status_with(&new)), (401, 200));
}

#[test]
fn a_new_certificate_is_shown_from_the_next_connection_on() {
    let files = Files::new();
    let config = format!(
        "[http]\ntls_cert = {:?}\ntls_key = {:?}\n",
        files.path("server.pem"),
        files.path("server.key")
    );
    let reloaded = Reloaded::start(&config);
    let url = format!("https://localhost:{}", reloaded.daemon().address.port());
    let ca = files.path("ca.pem");
    let status = ["status", "--url", &url, "--ca-file", &ca];
    assert_eq!(run(&status).status.code(), Some(0));
    // Certificate and key of two different ones: refused, and the old one stays.
    let strangers = Files::new();
    let put = |name: &str| std::fs::copy(strangers.path(name), files.path(name)).expect("copied");
    put("server.pem");
    assert!(reloaded.reload().contains("do not fit together"));
    assert_eq!(run(&status).status.code(), Some(0));
    put("server.key");
    reloaded.reload();
    assert_eq!(run(&status).status.code(), Some(1), "signed by another authority now");
    let other_ca = strangers.path("ca.pem");
    let trusting = run(&["status", "--url", &url, "--ca-file", &other_ca]);
    assert_eq!(trusting.status.code(), Some(0), "{}", words(&trusting));
}

#[test]
fn the_log_level_and_retry_policies_change_and_other_keys_are_named() {
    let sink = |attempts: u32| {
        // There is one event, so its offset is known.
        let program = r#"while read -r line; do echo '{"offset": "0", "outcome": "retry"}'; done"#;
        format!(
            "[[sink]]\nname = \"fails\"\ntype = \"exec\"\ncommand = [\"sh\", \"-c\", '''{program}''']\n\
             retry = {{ max_attempts = {attempts}, initial = \"1ms\", max = \"1ms\" }}\n"
        )
    };
    let reloaded = Reloaded::start(&sink(1_000_000));
    let sent = reloaded.daemon().client().post("application/json", b"1").expect("answered");
    assert_eq!(sent.status, 202);
    let counts = || {
        let status = reloaded.daemon().status();
        (status["sinks"][0]["retrying"].as_u64(), status["sinks"][0]["dead"].as_u64())
    };
    eventually("the event to be tried again", || (counts() == (Some(1), Some(0))).then_some(()));
    reloaded.write("eventflow.toml", &sink(3));
    assert!(reloaded.reload().contains("sink.fails.retry.max_attempts"));
    eventually("the event to be given up", || (counts() == (Some(0), Some(1))).then_some(()));

    let rubbish = || {
        // What is no HTTP is a line at debug level.
        let _ = Client::to(reloaded.daemon().address).request("GET /", "x", &[("a b", "c")], b"");
    };
    rubbish();
    assert!(!reloaded.daemon().said().contains("DEBUG"), "{}", reloaded.daemon().said());
    let config = format!("[telemetry]\nlevel = \"debug\"\n[http]\nmax_body = \"8MiB\"\n{}", sink(3));
    reloaded.write("eventflow.toml", &config.replace("command", "paused = true\ncommand"));
    assert!(reloaded.reload().contains("telemetry.level"));
    rubbish();
    let said = reloaded.says("DEBUG");
    let waiting = said.lines().find(|line| line.contains("wait for a restart")).expect("said");
    for key in ["http.max_body", "sink.fails.paused"] {
        assert!(waiting.contains(key), "{waiting}");
    }
    assert!(!waiting.contains("telemetry.level"), "{waiting}");
}

#[test]
fn webhooks_come_and_keys_change_with_a_reload() {
    let reloaded = Reloaded::start("");
    let hook = |secret: &str| {
        format!("[[hook]]\nname = \"h\"\ntype = \"hmac\"\nheader = \"x-s\"\nsecrets = [\"{secret}\"]\n")
    };
    let post = |secret: &str| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
        let digits = ring::hmac::sign(&key, b"1");
        let digits: String = digits.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let headers = [("x-s", &*digits), ("content-type", "application/json")];
        let answer = reloaded.daemon().client().request("POST", "/v1/hooks/h", &headers, b"1");
        answer.expect("answered").status
    };
    let (old, new) = ("an old secret of some length", "a new secret of some length");
    assert_eq!(post(old), 404);
    reloaded.write("eventflow.toml", &hook(old));
    assert!(reloaded.reload().contains("hook.h"));
    assert_eq!((post(old), post(new)), (202, 401));
    reloaded.write("eventflow.toml", &hook(new));
    assert!(reloaded.reload().contains("hook.h (a secret)"));
    assert_eq!((post(old), post(new)), (401, 202));
    assert!(!reloaded.daemon().said().contains(new));
}
