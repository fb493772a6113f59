//! The real binary against its own description, by tools that others made: an OpenAPI validator, and
//! schemathesis, which makes up requests and holds the answers against the document.
//!
//! `tests/openapi/install` puts them below `target/openapi`; without them these tests say so and pass, unless
//! `EVENTFLOW_REQUIRE_OPENAPI` is set, as CI does.

use std::path::Path;
use std::process::Command;

use crate::harness::{Daemon, ROOMY, installed};

/// A program of the tools' Python.
fn tool(name: &str) -> Option<Command> {
    let path = format!("openapi/python/bin/{name}");
    installed(&path, "tests/openapi/install", "EVENTFLOW_REQUIRE_OPENAPI").map(Command::new)
}

#[test]
fn the_description_is_valid_openapi() {
    let Some(mut python) = tool("python") else { return };
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let output = python.args(["-m", "openapi_spec_validator"]).arg(document).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn made_up_requests_are_answered_as_described() {
    let Some(mut schemathesis) = tool("schemathesis") else { return };
    let place = tempfile::tempdir().expect("a temporary directory");
    let settings = [ROOMY, &[("EVENTFLOW_HTTP__WEBHOOK_ALLOWED_ORIGIN", "*")]].concat();
    let daemon = Daemon::start(&place.path().join("data"), &settings);
    let seed = std::env::var("EVENTFLOW_SEED").unwrap_or_else(|_| "1".to_owned());
    println!("EVENTFLOW_SEED={seed}");
    // Run elsewhere, with its configuration: it leaves files behind.
    for file in ["schemathesis.toml", "hooks.py"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi").join(file);
        std::fs::copy(from, place.path().join(file)).expect("a copy");
    }
    let output = schemathesis
        .current_dir(place.path())
        .args(["run", &format!("{}/openapi.json", daemon.url()), "--seed", &seed, "--no-color"])
        .args(["--max-examples", "20", "--max-time", "30", "--continue-on-failure"])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<String> = said.lines().map(|line| line.chars().take(400).collect()).collect();
    assert!(output.status.success(), "{}", lines.join("\n"));
    assert!(said.contains("POST /v1/events") || said.contains("Tested:"), "it tested nothing:\n{said}");
    assert_eq!(daemon.terminate().code(), Some(0));
}
