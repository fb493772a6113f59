//! The documents against the code: what they list exists, with the defaults they state, and nothing
//! that exists is missing from them.

use std::collections::BTreeMap;
use std::path::Path;

use eventflow::config::Config;

use crate::tidy;

fn root(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Keys and values of a flat TOML file, as `section.key` → value text.
fn settings(toml: &str) -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut found = BTreeMap::new();
    for line in toml.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_matches(['[', ']']));
        } else if let Some((key, value)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            found.insert(format!("{section}{key}"), value.to_string());
        }
    }
    found
}

fn defaults() -> Config {
    Config::parse("empty", "", Vec::new(), &[]).expect("no configuration at all is fine")
}

#[test]
fn the_sample_configuration_states_every_key_with_its_default() {
    let sample = root("data/eventflow.toml");
    let parsed = Config::parse("data/eventflow.toml", &sample, Vec::new(), &[]).expect("valid");
    assert_eq!(parsed, defaults(), "data/eventflow.toml must state the defaults");
    let (stated, real) = (settings(&sample), settings(&defaults().to_toml()));
    assert_eq!(
        stated.keys().collect::<Vec<_>>(),
        real.keys().collect::<Vec<_>>(),
        "data/eventflow.toml must state every key and no other"
    );
}

#[test]
fn the_configuration_page_lists_every_key_with_its_default() {
    let page = root("docs/CONFIGURATION.md");
    let mut listed = BTreeMap::new();
    for line in page.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(|c| c.trim().trim_matches('`')).collect();
        listed.insert(cells[1].to_string(), cells[2].to_string());
    }
    let off =
        ["http.webhook_allowed_origin", "sink.filter.type", "sink.filter.source", "sink.filter.subject"];
    for key in off {
        listed.remove(key).unwrap_or_else(|| panic!("{key} is off by default, and listed all the same"));
    }
    for key in ["sink.name", "sink.type"] {
        assert_eq!(listed.insert(key.to_string(), "–".to_string()).as_deref(), Some("–"), "{key}");
    }
    let mut real = settings(&defaults().to_toml());
    for key in ["sink.name", "sink.type"] {
        real.insert(key.to_string(), "–".to_string());
    }
    assert_eq!(listed, real, "docs/CONFIGURATION.md (left) against the code (right)");
}

#[test]
fn the_page_of_sinks_lists_every_key_that_only_they_have() {
    let page = root("docs/SINKS.md");
    for (kind, needed) in [("webhook", "url = \"https://x/\""), ("exec", "command = [\"x\"]")] {
        let section = page.split("\n## ").find(|part| part.starts_with(&format!("`{kind}`")));
        let section = section.unwrap_or_else(|| panic!("a section on {kind}"));
        let text = format!("[[sink]]\nname = \"a\"\ntype = \"{kind}\"\n{needed}\n");
        let printed = Config::parse("sink", &text, Vec::new(), &[]).expect("valid").to_toml();
        let common = settings(&defaults().to_toml());
        for (key, value) in settings(&printed).into_iter().filter(|(key, _)| key.starts_with("sink.")) {
            let name = key.trim_start_matches("sink.");
            let row = section.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            match row {
                Some(row) if !["url", "command"].contains(&name) => {
                    assert!(
                        row.contains(&format!("`{value}`")),
                        "{kind}: {name} is {value}, not as in {row}"
                    );
                }
                Some(_) => {}
                None => assert!(
                    common.get(&key) == Some(&value) || ["name", "type", "linger"].contains(&name),
                    "docs/SINKS.md lacks `{name}` = {value} of {kind}"
                ),
            }
        }
    }
}

#[test]
fn the_sample_events_are_json_and_worth_a_test() {
    let lines = root("data/events.ndjson");
    assert!(lines.lines().count() >= 20);
    for line in lines.lines() {
        serde_json::from_str::<&serde_json::value::RawValue>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
}

#[test]
fn architecture_stays_a_page_that_one_reads() {
    assert!(root("ARCHITECTURE.md").lines().count() < 200);
}

#[test]
fn every_test_that_the_reliability_page_names_exists() {
    let sources = [tidy::sources("src"), tidy::sources("tests")].concat();
    let page = root("docs/RELIABILITY.md");
    let rows =
        page.lines().skip_while(|l| !l.starts_with("## What is proved")).filter(|l| l.starts_with("| "));
    let mut named = 0;
    for row in rows.skip(1) {
        let proof = row.split('|').nth(3).expect("three columns");
        let tests: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty() || proof.contains("not yet") || proof.contains("---"), "no test: {row}");
        for test in tests {
            let wanted = format!("fn {test}(");
            let exists = sources.iter().any(|source| source.text.contains(&wanted));
            assert!(exists, "docs/RELIABILITY.md names `{test}`, which is gone");
            named += 1;
        }
    }
    assert!(named > 5);
}
