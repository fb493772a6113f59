//! The documents against the code: what they list exists, with the defaults they state, and nothing
//! that exists is missing from them.

use std::collections::BTreeMap;
use std::path::Path;

use eventflow::config::Config;

use crate::tidy;

/// A file of the project.
pub fn root(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Compares a file with what the code says it must be, or writes it anew when asked to.
fn is_current(file: &str, made: &str) {
    if root(file) == made {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_DOCUMENTS").is_some(),
        "{file} is not what src/config/keys.rs and the code say; write it anew: UPDATE_DOCUMENTS=1 cargo test --test it \
         documents"
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::write(&path, made).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// A page with the table between its marks replaced by one made from the code.
fn with_table(page: &str, of: &str, table: &str) -> String {
    let (begin, end) =
        (format!("<!-- keys of {of}: made from src/config/keys.rs -->\n"), "<!-- end of keys -->");
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("the page lacks {begin}"));
    let (_, after) = rest.split_once(end).expect("the table's end is marked");
    format!("{before}{begin}{table}{end}{after}")
}

#[test]
fn the_sample_configuration_is_what_the_code_explains() {
    is_current("data/eventflow.toml", &Config::default().explain());
}

#[test]
fn the_pages_list_every_key_as_the_code_has_it() {
    let page = root("docs/CONFIGURATION.md");
    let page = with_table(&page, "the file", &Config::table(None));
    is_current("docs/CONFIGURATION.md", &with_table(&page, "stdout", &Config::table(Some("stdout"))));
    let page = root("docs/SINKS.md");
    let page = with_table(&page, "a webhook", &Config::table(Some("webhook")));
    is_current("docs/SINKS.md", &with_table(&page, "an exec sink", &Config::table(Some("exec"))));
}

/// Keys and values of printed tables, as `table.key` → value.
fn settings(toml: &str) -> BTreeMap<String, String> {
    let mut table = "";
    let mut found = BTreeMap::new();
    for line in toml.lines() {
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_matches(['[', ']']);
        } else if let Some((key, value)) = line.split_once(" = ") {
            found.insert(format!("{table}.{key}"), value.to_owned());
        }
    }
    found
}

#[test]
fn the_page_of_security_lists_every_key_of_a_hook() {
    let page = root("docs/SECURITY.md");
    let text = "[[hook]]\nname = \"a\"\ntype = \"hmac\"\nsecrets = [\"0123456789abcdef\"]\nheader = \"x\"\n\
                source = \"s\"\nid_header = \"i\"\ntype_header = \"t\"\n";
    let printed = |more: &str| {
        let config = Config::parse("hook", &format!("{text}{more}"), Vec::new(), &[]).expect("valid");
        settings(&config.to_toml())
    };
    let (plain, timed) = (printed(""), printed("timestamp_header = \"x\"\n"));
    let mut keys: Vec<&str> = timed.keys().filter_map(|key| key.strip_prefix("hook.")).collect();
    keys.push("secret_files");
    for key in &keys {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{key}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/SECURITY.md lacks `{key}`"));
        let given = ["name", "type", "secrets", "secret_files", "header", "source"].contains(key)
            || key.ends_with("_header");
        let default = if given { "–".to_owned() } else { format!("`{}`", plain[&format!("hook.{key}")]) };
        assert!(row.contains(&format!("| {default} |")), "{key} is {default}, not as in {row}");
    }
    let listed = page.lines().skip_while(|line| !line.starts_with("| key | default | for |")).skip(2);
    assert_eq!(listed.take_while(|line| line.starts_with('|')).count(), keys.len());
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
    let section = page.lines().skip_while(|l| !l.starts_with("## What is proved")).skip(1);
    let rows = section.take_while(|l| !l.starts_with("## ")).filter(|l| l.starts_with("| "));
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
