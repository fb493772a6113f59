//! TLS of the real binary: what people use to talk to it, and its own commands.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::{Client, Daemon, TINY, archive, eventflow, eventually, run, words};

/// An authority of its own, a certificate for localhost, and one for a client.
pub struct Files {
    folder: tempfile::TempDir,
    authority: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Files {
    pub fn new() -> Self {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        // A name of its own: OpenSSL takes a certificate whose issuer is called as it is for self-signed.
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "an authority of the tests");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let authority = rcgen::CertifiedIssuer::self_signed(parameters, key).expect("signed");
        let files = Files { folder: tempfile::tempdir().expect("a temporary directory"), authority };
        std::fs::write(files.folder.path().join("ca.pem"), files.authority.pem()).expect("written");
        files.issue("server");
        files.issue("client");
        files
    }

    /// A certificate and key under this name.
    pub fn issue(&self, name: &str) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let cert = parameters.signed_by(&key, &self.authority).expect("signed");
        std::fs::write(self.folder.path().join(format!("{name}.pem")), cert.pem()).expect("written");
        std::fs::write(self.folder.path().join(format!("{name}.key")), key.serialize_pem()).expect("written");
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    fn daemon(&self, dir: &Path, client_ca: bool) -> Daemon {
        let mut settings = vec![
            ("EVENTFLOW_HTTP__TLS_CERT", self.path("server.pem")),
            ("EVENTFLOW_HTTP__TLS_KEY", self.path("server.key")),
        ];
        settings.extend(client_ca.then(|| ("EVENTFLOW_HTTP__TLS_CLIENT_CA", self.path("ca.pem"))));
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, &**value)).collect();
        Daemon::launch(dir, &[&settings[..], TINY].concat()).listening()
    }
}

/// A program if this machine has it.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.exists());
    if found.is_none() {
        println!("skipped: there is no {name} here");
    }
    found
}

fn ended_well(output: &Output) -> String {
    assert!(output.status.success(), "{}", words(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn curl_python_and_our_own_commands_talk_tls() {
    let (files, dir) = (Files::new(), tempfile::tempdir().expect("a temporary directory"));
    let daemon = files.daemon(dir.path(), false);
    let url = format!("https://localhost:{}", daemon.address.port());
    let ca = files.path("ca.pem");
    let status = ["status", "--json", "--url", &url, "--ca-file", &ca];
    eventually("the daemon to serve", || {
        let output = run(&status);
        String::from_utf8_lossy(&output.stdout).contains("\"serving\"").then_some(())
    });
    let (mut sent, events_url) = (0, format!("{url}/v1/events"));
    if let Some(curl) = program("curl") {
        let body = ["-d", "{\"n\":1}", "-H", "content-type: application/json", "--cacert", &ca];
        for version in ["--tlsv1.3", "--tls-max=1.2"] {
            let version: Vec<&str> = version.split('=').collect();
            let arguments = [&body[..], &version, &["-sS", &events_url]].concat();
            let answer = ended_well(&Command::new(&curl).args(arguments).output().expect("it runs"));
            assert!(answer.contains("\"accepted\":1"), "{answer}");
            sent += 1;
        }
        let plain = Command::new(&curl).args(["-sS", &url.replace("https", "http")]).output();
        assert!(ended_well(&plain.expect("it runs")).contains("https://"));
        let untrusting = Command::new(&curl).args(["-sS", &url]).output().expect("it runs");
        assert!(!untrusting.status.success(), "trusted by nobody but us");
    }
    if let Some(python) = program("python3") {
        let script = "import json, ssl, sys, urllib.request as r\n\
                      context = ssl.create_default_context(cafile=sys.argv[2])\n\
                      request = r.Request(sys.argv[1] + '/v1/events', b'[1,2]', {'content-type': 'application/json'})\n\
                      print(json.load(r.urlopen(request, context=context))['accepted'])";
        let answer = Command::new(python).args(["-c", script, &url, &ca]).output().expect("it runs");
        assert_eq!(ended_well(&answer).trim(), "2");
        sent += 2;
    }
    let events = dir.path().join("events.ndjson");
    std::fs::write(&events, "1\n2\n3\n").expect("written");
    let file = events.to_str().expect("UTF-8");
    ended_well(&run(&["send", file, "--url", &url, "--ca-file", &ca]));
    sent += 3;
    let stranger = run(&["status", "--url", &url]);
    assert_eq!(stranger.status.code(), Some(1), "{}", words(&stranger));
    assert!(daemon.said().contains("https://"), "{}", daemon.said());
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(archive(dir.path()).len(), sent);
}

#[test]
fn where_certificates_are_wanted_the_commands_show_theirs() {
    let (files, dir) = (Files::new(), tempfile::tempdir().expect("a temporary directory"));
    let daemon = files.daemon(dir.path(), true);
    let url = format!("https://localhost:{}", daemon.address.port());
    let (ca, cert, key) = (files.path("ca.pem"), files.path("client.pem"), files.path("client.key"));
    let bare = ["status", "--url", &url, "--ca-file", &ca];
    let shown = [&bare[..], &["--client-cert", &cert, "--client-key", &key]].concat();
    eventually("the daemon to serve", || run(&shown).status.success().then_some(()));
    assert_eq!(run(&bare).status.code(), Some(1));
    // The plain word for plain HTTP needs no certificate.
    assert_eq!(Client::to(daemon.address).status("GET", "/livez", &[]).expect("answered"), 400);
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn files_that_do_not_fit_are_a_mistake_of_the_configuration() {
    let files = Files::new();
    let check = |cert: &str, key: &str| {
        let mut command = eventflow(&["check"]);
        command.env("EVENTFLOW_HTTP__TLS_CERT", files.path(cert));
        command.env("EVENTFLOW_HTTP__TLS_KEY", files.path(key)).output().expect("it runs")
    };
    assert_eq!(check("server.pem", "server.key").status.code(), Some(0));
    let wrong = check("server.pem", "client.key");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(words(&wrong).contains("do not fit together"), "{}", words(&wrong));
}
