//! What differs between two configurations, key by key.
//!
//! Pure code. Both are compared as `print` writes them, so a key that somebody adds is compared, too.

use std::collections::{BTreeMap, BTreeSet};

use super::{Config, print};

/// The keys whose values differ: `http.listen`, `sink.orders.timeout`; a sink or hook that is new or gone as
/// a whole: `sink.orders`. Of what is masked it is said that it is a secret, and not which.
pub(super) fn changed(old: &Config, new: &Config) -> Vec<String> {
    let (before, after) = (printed(old), printed(new));
    let tables: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut found = Vec::new();
    for table in tables {
        let (Some(before), Some(after)) = (before.get(table), after.get(table)) else {
            found.push(table.clone());
            continue;
        };
        let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let differing = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
        let dot = if table.is_empty() { "" } else { "." };
        found.extend(differing.map(|key| format!("{table}{dot}{key}")));
    }
    let sinks = new.sinks.iter().filter(|sink| !old.sinks.contains(sink)).map(|sink| ("sink", &sink.name));
    let hooks = new.hooks.iter().filter(|hook| !old.hooks.contains(hook)).map(|hook| ("hook", &hook.name));
    for (list, name) in sinks.chain(hooks) {
        let table = format!("{list}.{name}");
        // Another value, and nothing to see: it is behind a mask.
        if before.get(&table) == after.get(&table) {
            found.push(format!("{table} (a secret)"));
        }
    }
    found
}

/// Tables by name, a sink's as `sink.orders`; within them keys with their values.
fn printed(config: &Config) -> BTreeMap<String, BTreeMap<String, String>> {
    let text = print::print(config);
    let mut tables: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (at, part) in text.split("\n[").enumerate() {
        let (header, lines) = if at == 0 { ("", part) } else { part.split_once('\n').unwrap_or((part, "")) };
        let keys: BTreeMap<String, String> = lines
            .lines()
            .filter_map(|line| line.split_once(" = "))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let table = header.trim_matches(['[', ']']);
        let name = match (header.starts_with('['), keys.get("name")) {
            (true, Some(name)) => format!("{table}.{}", name.trim_matches('"')),
            _ => table.to_owned(),
        };
        tables.insert(name, keys);
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse("e.toml", text, Vec::new(), &[]).unwrap()
    }

    #[test]
    fn each_key_that_differs_is_named_and_no_secret_is() {
        let sink = "[[sink]]\nname = \"a\"\ntype = \"exec\"\ncommand = [\"x\"]\n";
        let hook = "[[hook]]\nname = \"h\"\ntype = \"github\"\nsecrets = [\"0123456789abcdef\"]\n";
        let (listen, both) = ("[http]\nlisten = \"127.0.0.1:1\"\n", format!("{sink}{hook}"));
        for (old, new, expected) in [
            ("", "", vec![]),
            ("", "data_dir = \"x\"", vec!["data_dir"]),
            ("", listen, vec!["http.listen"]),
            (&*both, &both, vec![]),
            (
                sink,
                &format!("{sink}timeout = \"3s\"\nretry.max = \"7m\""),
                vec!["sink.a.retry.max", "sink.a.timeout"],
            ),
            ("", sink, vec!["sink.a", "sink.archive"]),
            (&both, sink, vec!["hook.h"]),
            (sink, &both, vec!["hook.h"]),
            (&both, &both.replace("0123456789abcdef", "0123456789abcdeX"), vec!["hook.h (a secret)"]),
        ] {
            assert_eq!(changed(&parse(old), &parse(new)), expected, "{old} → {new}");
        }
    }
}
