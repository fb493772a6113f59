//! The CloudEvents SDKs of Python and JavaScript against the real binary, in every mode they have; and what the
//! handbook says of reading an archive with other tools.
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

/// The first block of this language in a section of the handbook.
fn block<'a>(handbook: &'a str, section: &str, language: &str) -> &'a str {
    let section = handbook.split_once(section).expect("the section is there").1;
    let block = section.split_once(&format!("```{language}\n")).expect("the block is there").1;
    block.split_once("```").expect("the block ends").0
}

#[test]
fn what_the_handbook_says_of_reading_an_archive_elsewhere_works() {
    let Some(python) = installed("python/bin/python") else { return };
    let handbook = include_str!("../../docs/OPERATIONS.md");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let data = folder.path().join("eventflow-data");
    let small = [
        ("EVENTFLOW_SINK__ARCHIVE__COMPRESS", "zstd"),
        ("EVENTFLOW_SINK__ARCHIVE__ROTATE_SIZE", "4KiB"),
        ("EVENTFLOW_SINK__ARCHIVE__LAYOUT", "year=%Y/month=%m/day=%d"),
    ];
    let daemon = Daemon::start(&data, &small);
    let events = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/events.ndjson");
    let sent = harness::run(&["send", events.to_str().expect("UTF-8"), "--url", &daemon.url()]);
    assert_eq!(sent.status.code(), Some(0), "{}", words(&sent));
    let archived = daemon.drained()["wal"]["next_offset"].as_u64().expect("a number");
    assert_eq!(daemon.terminate().code(), Some(0));

    let binary = Path::new(env!("CARGO_BIN_EXE_eventflow")).parent().expect("a folder");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    let has_jq = Command::new("jq").arg("--version").output().is_ok();
    let commands = block(handbook, "### Reading it elsewhere", "sh");
    let commands = if has_jq { commands } else { commands.lines().next().expect("the export") };
    shell.args(["-ec", commands]).envs(small);
    let listed = shell.current_dir(folder.path()).env("PATH", path).output().expect("it runs");
    assert!(listed.status.success(), "{}", words(&listed));
    assert!(!has_jq || String::from_utf8_lossy(&listed.stdout).contains("49.90"), "{listed:?}");

    let mut script = Command::new(python);
    script.args(["-c", block(handbook, "### Reading it elsewhere", "python")]);
    let read = script.current_dir(folder.path()).output().expect("it runs");
    let text = String::from_utf8_lossy(&read.stdout);
    assert!(read.status.success(), "{}", words(&read));
    let told = text.matches("com.example.order.created").count();
    let counted = text.matches(&format!(" {archived} ")).count();
    assert!(told == 2 && counted == 2, "all of it, and all of this year's partitions: {text}");
}
