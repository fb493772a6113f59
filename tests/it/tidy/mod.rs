//! House rules that a reader can rely on because this test reads every source file for them.
//!
//! Each rule says what to do when it fails. Where a rule must give way, the exception stands in a
//! list below with its reason; an exception that nothing needs any more fails too.

mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use scan::Token;

/// Who may know whom: a module may name modules of lower levels only, and never those it must not
/// know. (Also drawn in ARCHITECTURE.md.)
struct Module {
    name: &'static str,
    level: u8,
    must_not_know: &'static [&'static str],
}

const MODULES: &[Module] = &[
    Module { name: "config", level: 0, must_not_know: &[] },
    Module { name: "disk", level: 0, must_not_know: &[] },
    Module { name: "event", level: 0, must_not_know: &[] },
    Module { name: "meter", level: 0, must_not_know: &[] },
    Module { name: "pulse", level: 0, must_not_know: &[] },
    Module { name: "planted", level: 0, must_not_know: &[] },
    Module { name: "waits", level: 0, must_not_know: &[] },
    Module { name: "log", level: 1, must_not_know: &["event"] },
    Module { name: "sink", level: 1, must_not_know: &[] },
    Module { name: "queue", level: 2, must_not_know: &[] },
    Module { name: "worker", level: 3, must_not_know: &["disk", "log"] },
    Module { name: "http", level: 3, must_not_know: &["disk", "log", "sink"] },
    Module { name: "daemon", level: 4, must_not_know: &[] },
    Module { name: "telemetry", level: 4, must_not_know: &["disk", "log", "sink", "worker", "http"] },
    Module { name: "cli", level: 5, must_not_know: &[] },
    Module { name: "main", level: 6, must_not_know: &[] },
    Module { name: "lib", level: 6, must_not_know: &[] },
];

/// Neighbours on one level that may know each other, one way.
const SAME_LEVEL: &[(&str, &str, &str)] = &[
    ("daemon", "telemetry", "the daemon sets up logs and counts"),
    ("pulse", "waits", "a question to a loop is a wake-up, and its answer another"),
];

/// Insides that only the named modules may reach into; everybody else uses the module's surface.
const INSIDES: &[(&str, &[&str], &str)] = &[
    ("queue::embedded", &["queue", "daemon", "cli"], "use the traits and types of `queue`"),
    ("sink::json_file", &["sink", "cli"], "use `sink::Sink`; the registry in sink/mod.rs builds sinks"),
    ("sink::exec", &["sink"], "use `sink::Sink`; the registry in sink/mod.rs builds sinks"),
    ("sink::webhook", &["sink"], "use `sink::Sink`; the registry in sink/mod.rs builds sinks"),
    ("sink::stdout", &["sink"], "use `sink::Sink`; the registry in sink/mod.rs builds sinks"),
];

/// Crates that one file each keeps to itself, so that one file could replace them.
const CONFINED_CRATES: &[(&str, &[&str])] =
    &[("sled", &["src/queue/embedded/index/store.rs"]), ("bincode", &["src/queue/embedded/codec.rs"])];

/// Files (or folders) that may touch the file system without `Disk`, each with its reason.
const OWN_FILES: &[(&str, &str)] = &[
    ("src/disk/real.rs", "the real implementation of Disk"),
    ("src/config", "reads the configuration file, which is not ours to make durable"),
    ("src/daemon", "the lock file and the sockets"),
    ("src/queue/embedded/index/store.rs", "the directory of a library that opens its files itself"),
    ("src/http/listener.rs", "the Unix socket it listens on"),
    ("src/telemetry", "sees where standard error leads"),
    ("src/cli", "files that a user names, and output files"),
];

/// A file holds at most this many lines of code, tests aside; a function at most this many.
const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;

/// Files and functions (`path` or `path::function`) over the limit, each with its reason.
const LONG: &[(&str, &str)] = &[];

/// One source file, read.
#[derive(Debug, Clone)]
pub struct Source {
    /// From the crate's root, with forward slashes.
    pub path: String,
    pub text: String,
}

/// Every Rust file below a folder.
pub fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut waiting = vec![root.join(folder)];
    let mut found = Vec::new();
    while let Some(dir) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        let mut entries: Vec<PathBuf> =
            entries.map(|e| e.expect("a readable source folder").path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("a readable source file");
                let path = path.strip_prefix(root).expect("below the root").display().to_string();
                found.push(Source { path, text });
            }
        }
    }
    found
}

/// The module a path below `src/` belongs to: `src/log/frame.rs` → `log`.
fn module_of(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let first = inside.split('/').next().unwrap_or(inside);
    first.strip_suffix(".rs").unwrap_or(first)
}

/// The module path of a file: `src/log/mod.rs` → `[log]`, `src/log/frame.rs` → `[log, frame]`.
fn module_path(path: &str) -> Vec<String> {
    let inside = path.strip_prefix("src/").unwrap_or(path).trim_end_matches(".rs");
    let mut parts: Vec<String> = inside.split('/').map(str::to_string).collect();
    if parts.last().is_some_and(|p| p == "mod" || p == "lib" || p == "main") {
        parts.pop();
    }
    parts
}

/// A path as seen from the crate's root: `[log, frame, Kind]`; `None` when it leaves the crate.
fn from_root(path: &str, named: &[String]) -> Option<Vec<String>> {
    match named.first()?.as_str() {
        "crate" | "eventflow" => Some(named[1..].to_vec()),
        // `super` inside an inline module climbs one level less; the shorter way up is assumed,
        // which can only miss an import that another line of the same file shows.
        "super" => {
            let up = named.iter().take_while(|s| *s == "super").count();
            let here = module_path(path);
            let kept = here.len().checked_sub(up)?;
            Some(here[..kept].iter().chain(&named[up..]).cloned().collect())
        }
        _ => None,
    }
}

fn check_imports(source: &Source, code: &[Token], wrong: &mut Vec<String>) {
    let own = module_of(&source.path);
    let Some(own_row) = MODULES.iter().find(|m| m.name == own) else {
        wrong.push(format!(
            "{}: module `{own}` has no level: add a row to MODULES in tests/it/tidy/mod.rs and to ARCHITECTURE.md",
            source.path
        ));
        return;
    };
    for (named, line) in scan::paths(code) {
        let Some(target) = from_root(&source.path, &named) else { continue };
        let Some(other) = target.first().and_then(|name| MODULES.iter().find(|m| m.name == *name)) else {
            continue;
        };
        if other.name != own {
            let neighbours = SAME_LEVEL.iter().any(|(from, to, _)| *from == own && *to == other.name);
            if other.level >= own_row.level && !neighbours {
                wrong.push(format!(
                    "{}:{line}: `{own}` (level {}) must not import `{}` (level {}): data goes one way; move what both \
                     need down, or pass it in from above",
                    source.path, own_row.level, other.name, other.level
                ));
            } else if own_row.must_not_know.contains(&other.name) {
                wrong.push(format!(
                    "{}:{line}: `{own}` must not know `{}`: go through the seam below it (see MODULES in \
                     tests/it/tidy/mod.rs)",
                    source.path, other.name
                ));
            }
        }
        for (inside, allowed, instead) in INSIDES {
            if target.join("::").starts_with(inside) && !allowed.contains(&own) {
                wrong.push(format!("{}:{line}: `{own}` reaches into `{inside}`: {instead}", source.path));
            }
        }
    }
}

fn check_confinement(source: &Source, code: &[Token], wrong: &mut Vec<String>) {
    for (named, line) in scan::paths(code) {
        for (name, allowed) in CONFINED_CRATES {
            if named[0] == *name && !allowed.contains(&source.path.as_str()) {
                wrong.push(format!(
                    "{}:{line}: `{name}` belongs to {} alone: call what that module offers",
                    source.path,
                    allowed.join(", ")
                ));
            }
        }
        let files = matches!(
            named.iter().map(String::as_str).collect::<Vec<_>>()[..],
            ["std" | "tokio" | "rustix", "fs", ..] | ["std", "os", "unix", "fs", ..]
        );
        if files && !OWN_FILES.iter().any(|(place, _)| source.path.starts_with(place)) {
            wrong.push(format!(
                "{}:{line}: raw file system access: go through `disk::Disk`, so that the simulated disk sees it; a \
                 place that must own files goes into OWN_FILES in tests/it/tidy/mod.rs with its reason",
                source.path
            ));
        }
    }
}

/// Rules for test code as well.
fn check_words(source: &Source, code: &[Token], wrong: &mut Vec<String>) {
    for (at, token) in code.iter().enumerate() {
        let next = |n: usize| code.get(at + n).map_or("", |t| t.text.as_str());
        if ["unbounded_channel", "UnboundedSender", "UnboundedReceiver", "unbounded"]
            .contains(&token.text.as_str())
        {
            wrong.push(format!(
                "{}:{}: an unbounded channel: memory must not grow with the backlog; use `mpsc::channel(limit)` with \
                 the limit from config",
                source.path, token.line
            ));
        }
        // std::sync::mpsc::channel(), with or without a turbofish, takes no limit.
        if token.is("mpsc") && next(3) == "channel" {
            let call =
                code[at + 3..].windows(3).find(|w| w[1].is("(") && (w[0].is("channel") || w[0].is(">")));
            if call.is_some_and(|w| w[2].is(")")) {
                wrong.push(format!(
                    "{}:{}: `mpsc::channel()` is unbounded: use `sync_channel(limit)`",
                    source.path, token.line
                ));
            }
        }
        if ["todo", "unimplemented", "dbg"].contains(&token.text.as_str()) && next(1) == "!" {
            wrong.push(format!(
                "{}:{}: `{}!`: build it, or return an error that says what is missing",
                source.path, token.line, token.text
            ));
        }
    }
    for (number, line) in source.text.lines().enumerate() {
        for word in [concat!("FIX", "ME"), concat!("XX", "X:"), concat!("TO", "DO")] {
            if line.contains(word) {
                wrong.push(format!(
                    "{}:{}: {word}: do it now or file an issue; the tree holds no promises to itself",
                    source.path,
                    number + 1
                ));
            }
        }
    }
}

fn check_size(source: &Source, code: &[Token], used: &mut BTreeSet<&'static str>, wrong: &mut Vec<String>) {
    let mut over = |name: String, what: String| match LONG.iter().find(|(allowed, _)| *allowed == name) {
        Some((allowed, _)) => {
            used.insert(allowed);
        }
        None => wrong.push(format!(
            "{what}: split it by what it does, or add `{name}` to LONG in tests/it/tidy/mod.rs with a reason"
        )),
    };
    let lines = scan::code_lines(code);
    if lines > FILE_LINES {
        over(source.path.clone(), format!("{}: {lines} lines of code, at most {FILE_LINES}", source.path));
    }
    for (name, line, lines) in scan::functions(code) {
        if lines > FUNCTION_LINES {
            over(
                format!("{}::{name}", source.path),
                format!(
                    "{}:{line}: fn {name} has {lines} lines of code, at most {FUNCTION_LINES}",
                    source.path
                ),
            );
        }
    }
}

fn check_module_doc(source: &Source, wrong: &mut Vec<String>) {
    if !source.text.starts_with("//!") {
        wrong.push(format!(
            "{}: begins without `//!`: say what it is for, which thread runs it and what happens when it fails",
            source.path
        ));
    }
}

/// All rules over all given files.
fn check(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    let scanned: BTreeMap<&str, (Vec<Token>, Vec<Token>)> = sources
        .iter()
        .map(|s| {
            let all = scan::tokens(&s.text);
            let code = scan::without_tests(&all).0;
            (s.path.as_str(), (all, code))
        })
        .collect();
    let test_files = test_files(sources, &scanned);
    for source in sources {
        let (all, code) = &scanned[source.path.as_str()];
        check_words(source, all, &mut wrong);
        let is_test = test_files.iter().any(|t| source.path.starts_with(t.as_str()));
        if !is_test {
            check_module_doc(source, &mut wrong);
        }
        if source.path.starts_with("src/") && !is_test {
            check_imports(source, code, &mut wrong);
            check_confinement(source, code, &mut wrong);
            check_size(source, code, &mut used, &mut wrong);
        }
    }
    for (name, reason) in LONG {
        let present = sources.iter().any(|s| s.path == name.split("::").next().unwrap_or(name));
        if present && !used.contains(name) {
            wrong
                .push(format!("LONG lists `{name}` ({reason}), which is within the limit: remove the entry"));
        }
    }
    wrong
}

/// Prefixes of the files that hold modules declared `#[cfg(test)] mod name;`.
fn test_files(sources: &[Source], scanned: &BTreeMap<&str, (Vec<Token>, Vec<Token>)>) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let folder =
            source.path.trim_end_matches("mod.rs").trim_end_matches("lib.rs").trim_end_matches(".rs");
        let folder = folder.trim_end_matches('/');
        for name in scan::without_tests(&scanned[source.path.as_str()].0).1 {
            found.push(format!("{folder}/{name}.rs"));
            found.push(format!("{folder}/{name}/"));
        }
    }
    found
}

#[test]
fn the_source_keeps_the_house_rules() {
    let mut all = sources("src");
    assert!(!all.is_empty(), "no source files found");
    all.extend(sources("tests"));
    all.extend(sources("benches"));
    all.extend(sources("examples"));
    all.extend(sources("fuzz/src"));
    all.extend(sources("fuzz/fuzz_targets"));
    let wrong = check(&all);
    assert!(wrong.is_empty(), "{} broken house rules:\n{}", wrong.len(), wrong.join("\n"));
}

/// What the checks say about one planted file.
fn verdict(path: &str, text: &str) -> String {
    check(&[Source { path: path.to_string(), text: format!("//! Planted.\n{text}") }]).join("\n")
}

#[test]
fn an_import_upward_or_sideways_or_into_the_inside_is_caught() {
    for (path, text) in [
        ("src/log/writer.rs", "use crate::queue::Status;"),
        ("src/log/writer.rs", "use crate::event::NewEvent;"),
        ("src/log/writer.rs", "use crate::{disk::Disk, sink};"),
        ("src/log/writer.rs", "fn f() { crate::http::serve() }"),
        ("src/log/writer.rs", "use super::super::daemon::run;"),
        ("src/queue/mod.rs", "use super::worker::Worker;"),
        ("src/http/ingest.rs", "use crate::log::Writer;"),
        ("src/http/ingest.rs", "use crate::sink::{Batch};"),
        ("src/http/ingest.rs", "use crate::queue::{Queue, embedded::Embedded};"),
        ("src/worker/mod.rs", "use crate::http::problem;"),
        ("src/daemon.rs", "use crate::cli::client;"),
        ("src/stranger.rs", "fn f() {}"),
    ] {
        let said = verdict(path, text);
        assert!(said.starts_with(path), "{path} may say `{text}`?\n{said}");
    }
}

#[test]
fn an_import_downward_and_test_code_pass() {
    for (path, text) in [
        ("src/log/writer.rs", "use crate::disk::{Disk, DiskFile};\nuse super::frame::Kind;"),
        (
            "src/queue/embedded/mod.rs",
            "use crate::log::Log; use crate::sink::Batch; use super::super::Claim;",
        ),
        (
            "src/log/frame.rs",
            "// crate::http::x\n/* crate::http /* nested */ */ fn f<'a>() { \"crate::http::x\"; }",
        ),
        (
            "src/log/frame.rs",
            "#[cfg(test)]\nmod tests { use crate::queue::Status; fn f() { std::fs::read(1); } }",
        ),
        ("src/daemon.rs", "use crate::telemetry; use std::fs::File;"),
        ("src/http/mod.rs", "use crate::queue::Queue; fn f() { tokio::sync::mpsc::channel::<u8>(4); }"),
    ] {
        assert_eq!(verdict(path, text), "", "{path}: {text}");
    }
}

#[test]
fn files_marked_as_tests_elsewhere_are_test_code() {
    let parent =
        Source { path: "src/log/mod.rs".into(), text: "//! Doc.\n#[cfg(test)]\nmod tests;\n".into() };
    let tests =
        Source { path: "src/log/tests.rs".into(), text: "//! Doc.\nuse crate::queue::Status;\n".into() };
    assert_eq!(check(&[parent, tests]), Vec::<String>::new());
}

#[test]
fn confined_crates_raw_files_and_unbounded_channels_are_caught() {
    for (text, expected) in [
        ("fn f() { sled::open(1); }", "`sled` belongs to"),
        ("use bincode::Options;", "`bincode` belongs to"),
        ("use std::fs;", "raw file system access"),
        ("use std::{io, fs::File};", "raw file system access"),
        ("fn f() { tokio::fs::read(1) }", "raw file system access"),
        ("use std::os::unix::fs::FileExt;", "raw file system access"),
        ("fn f() { mpsc::unbounded_channel(); }", "an unbounded channel"),
        ("fn f() { mpsc::channel(); }", "is unbounded"),
        ("fn f() { std::sync::mpsc::channel::<Vec<u8>>(); }", "is unbounded"),
    ] {
        let said = verdict("src/queue/mod.rs", text);
        assert!(said.contains(expected), "{text}: {said}");
    }
}

#[test]
fn unfinished_work_and_missing_docs_are_caught() {
    for text in [
        concat!("fn f() { to", "do!() }"),
        concat!("fn f() { unimple", "mented!(\"x\") }"),
        concat!("// FIX", "ME later"),
        concat!("// TO", "DO later"),
    ] {
        assert_ne!(verdict("src/queue/mod.rs", text), "", "{text}");
        assert_ne!(verdict("tests/it/x.rs", text), "", "{text}");
    }
    let bare = Source { path: "src/log/x.rs".into(), text: "fn f() {}\n".into() };
    assert!(check(&[bare])[0].contains("begins without `//!`"));
}

#[test]
fn long_files_and_functions_are_caught_and_comments_do_not_count() {
    let body = "    call();\n".repeat(FUNCTION_LINES);
    assert!(verdict("src/log/x.rs", &format!("fn long() {{\n{body}}}\n")).contains("fn long has"));
    let comments = "    // why\n\n".repeat(FUNCTION_LINES);
    assert_eq!(verdict("src/log/x.rs", &format!("fn short() {{\n{comments}}}\n")), "");
    let many = "const A: u8 = 0;\n".repeat(FILE_LINES + 1);
    assert!(verdict("src/log/x.rs", &many).contains("lines of code"));
}
