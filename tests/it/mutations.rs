//! Takes the mechanisms out of the program one at a time and sees that a test notices.
//!
//! `mutations/list.toml` has, for each fault of docs/RELIABILITY.md that it covers, the lines that stand against it, what is put in
//! their place, and the test that must fail then. The real run compiles the program once a mutation, so it takes
//! the better part of an hour and is not part of `cargo test`:
//!
//! ```text
//! cargo test --test it -- --ignored --nocapture mutations     (EVENTFLOW_MUTATIONS=archive for some of them)
//! ```
//!
//! What is part of it: every mutation still applies, to exactly one place, and its test exists.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::documents::root;
use crate::tidy;

#[derive(Deserialize)]
struct List {
    mutation: Vec<Mutation>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutation {
    /// What goes wrong.
    fault: String,
    /// Where the mechanism is.
    file: String,
    /// Its text, which is there once.
    takes: String,
    /// What stands there instead.
    puts: String,
    /// The end of the test's path.
    test: String,
    /// The target the test is in: `lib`, or the name of an integration test.
    target: String,
}

fn mutations() -> Vec<Mutation> {
    let list: List = toml::from_str(&root("tests/it/mutations/list.toml")).expect("a list of mutations");
    list.mutation
}

#[test]
fn every_mutation_applies_to_one_place_and_its_test_exists_and_is_told_of() {
    let sources = [tidy::sources("src"), tidy::sources("tests")].concat();
    let page = root("docs/RELIABILITY.md");
    for Mutation { fault, file, takes, puts, test, .. } in mutations() {
        assert_eq!(root(&file).matches(&takes).count(), 1, "{fault}: `{takes}` in {file}");
        assert_ne!(takes, puts, "{fault}");
        assert!(
            sources.iter().any(|source| source.text.contains(&format!("fn {test}("))),
            "{fault}: no test `{test}`"
        );
        assert!(page.contains(&format!("`{test}`")), "{fault}: docs/RELIABILITY.md does not name `{test}`");
    }
}

/// A copy of what is compiled, whose target directory is kept from run to run.
fn copy() -> PathBuf {
    fn copy_into(from: &Path, to: &Path) {
        if from.is_dir() {
            std::fs::create_dir_all(to).expect("a directory");
            for entry in std::fs::read_dir(from).expect("a directory of sources") {
                let name = entry.expect("an entry").file_name();
                if name != "target" && name != ".git" {
                    copy_into(&from.join(&name), &to.join(&name));
                }
            }
        } else if std::fs::read(to).ok() != Some(std::fs::read(from).expect("a readable file")) {
            // Only what differs, so that cargo compiles no more than that.
            std::fs::copy(from, to).expect("copied");
        }
    }
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations");
    copy_into(Path::new(env!("CARGO_MANIFEST_DIR")), &copy);
    copy
}

/// Whether the test was run and failed; the end of what was printed.
fn fails(copy: &Path, mutation: &Mutation) -> (bool, String) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(copy).args(["test", "--locked"]);
    match mutation.target.as_str() {
        "lib" => cargo.arg("--lib"),
        target => cargo.args(["--test", target]),
    };
    let output = cargo.args(["--", &mutation.test]).output().expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("error: could not compile"), "{}: {said}", mutation.fault);
    let failed = said.lines().any(|line| line.ends_with(&format!("{} ... FAILED", mutation.test)));
    let end = said.char_indices().rev().nth(3000).map_or(0, |(at, _)| at);
    (failed, said[end..].to_owned())
}

#[test]
#[ignore = "compiles the program once a mutation"]
fn a_program_without_its_mechanism_fails_its_test() {
    let wanted = std::env::var("EVENTFLOW_MUTATIONS").unwrap_or_default();
    let copy = copy();
    let mut missed = Vec::new();
    let mut caught = 0;
    for mutation in mutations().iter().filter(|mutation| mutation.fault.contains(&wanted)) {
        let path = copy.join(&mutation.file);
        let whole = std::fs::read_to_string(&path).expect("a source");
        std::fs::write(&path, whole.replacen(&mutation.takes, &mutation.puts, 1)).expect("written");
        let (failed, said) = fails(&copy, mutation);
        std::fs::write(&path, whole).expect("written");
        println!("{} | {} | {}", if failed { "caught" } else { "MISSED" }, mutation.fault, mutation.test);
        if failed {
            caught += 1;
        } else {
            missed.push(format!("{}: {} said\n{said}", mutation.fault, mutation.test));
        }
    }
    println!("{caught} caught, {} missed", missed.len());
    assert!(missed.is_empty(), "{}", missed.join("\n\n"));
    assert!(caught > 0, "no fault is named like EVENTFLOW_MUTATIONS");
}
