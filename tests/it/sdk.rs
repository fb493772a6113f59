//! The CloudEvents SDKs of Python and JavaScript against the real binary, in every mode they have.
//!
//! `tests/sdk/install` puts them below `target/sdk`; without them these tests say so and pass, unless
//! `EVENTFLOW_REQUIRE_SDK` is set, as CI does.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{self, Daemon, TINY, words};

pub fn installed(path: &str) -> Option<PathBuf> {
    harness::installed(&format!("sdk/{path}"), "tests/sdk/install", "EVENTFLOW_REQUIRE_SDK")
}

/// Runs one SDK's program against a fresh daemon; it compares the archive with what it sent.
fn sends_unchanged(mut program: Command) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = Daemon::start(dir.path(), TINY);
    program.arg(daemon.url()).arg(dir.path().join("archive"));
    let output = program.output().expect("the interpreter runs");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn what_the_python_sdk_sends_is_in_the_archive_unchanged() {
    let Some(python) = installed("python/bin/python") else { return };
    let mut program = Command::new(python);
    program.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/python.py"));
    sends_unchanged(program);
}

#[test]
fn what_the_javascript_sdk_sends_is_in_the_archive_unchanged() {
    // Beside its packages, because that is where node looks for them.
    let Some(script) = installed("javascript/javascript.mjs") else { return };
    let Some(_) = installed("javascript/node_modules/cloudevents") else { return };
    let mut program = Command::new("node");
    program.arg(script);
    sends_unchanged(program);
}
