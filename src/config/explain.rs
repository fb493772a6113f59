//! The configuration told: as a commented file, and as tables for the documents.
//!
//! Pure code. Words come from `keys`, values from a [`Config`] as `print` writes it, ranges from the code
//! that reads the keys: that code is run once to see what it asks for.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::keys::{INTRO, Key, TABLES, Table};
use super::settings::{Asked, Settings};
use super::{Config, print, read};

/// One sink of each kind, with the least that it needs.
const EVERY_KIND: &str = "
[[sink]]
name = \"archive\"
type = \"json_file\"
[[sink]]
name = \"console\"
type = \"stdout\"
[[sink]]
name = \"orders\"
type = \"webhook\"
url = \"https://example.org/hook\"
[[sink]]
name = \"work\"
type = \"exec\"
command = [\"python3\", \"/opt/work.py\"]
";

/// Lines of the file are broken before this width.
const WIDTH: usize = 118;

/// The whole configuration as a file that says of each key what it means. What is in force reads back as
/// `print`'s text does; kinds of sinks that are not there stand behind `#` at the end.
pub(super) fn file(config: &Config) -> String {
    let known = Known::new();
    let mut out = INTRO.to_owned();
    let settings = printed(config);
    for (at, given) in settings.iter().enumerate() {
        let _ = writeln!(out);
        if given.table == "sink" && settings[..at].iter().all(|earlier| earlier.table != "sink") {
            let common = TABLES.iter().filter(|table| table.name == "sink" && table.kind.is_empty());
            common.for_each(|table| comment(&mut out, table.intro));
        }
        known.tell(&mut out, given, "");
    }
    for example in known.settings.iter().filter(|example| example.table == "sink") {
        if settings.iter().all(|given| given.kind() != example.kind()) {
            let _ = writeln!(out);
            known.tell(&mut out, example, "#");
        }
    }
    out
}

/// The keys as a table in Markdown: of a kind of sink, or all that stand in no kind's own table but the
/// archive's.
pub(super) fn table(kind: Option<&str>) -> String {
    let known = Known::new();
    let mut out = "| key | default | range | what |\n| --- | --- | --- | --- |\n".to_owned();
    let row = |out: &mut String, shown: &str, key: &Key, table: &Table, default: Option<&str>| {
        let default = default.map_or(key.unset.to_owned(), |value| format!("`{value}`"));
        let range = known.range(table, key);
        let only = if shown == key.name || table.kind.is_empty() { "" } else { "Of an archive. " };
        let _ = writeln!(out, "| `{shown}` | {default} | {range} | {only}{} |", key.what);
    };
    let of_kind = |kind: &str| known.settings.iter().find(|given| given.kind() == Some(kind));
    let Some(archive) = of_kind("json_file") else { return out };
    if let Some(given) = kind.and_then(of_kind) {
        for (table, key) in rows("sink", given.kind()) {
            let default = given.value(key.name).filter(|_| key.unset.is_empty());
            // Of what every sink has only what is another default here.
            if !table.kind.is_empty() || (key.unset.is_empty() && default != archive.value(key.name)) {
                row(&mut out, key.name, key, table, default);
            }
        }
        return out;
    }
    for given in known.settings.iter().filter(|given| given.table != "sink").chain([archive]) {
        if let Some((table, _)) = rows(&given.table, None).next().filter(|_| !given.table.is_empty()) {
            let name =
                if given.kind().is_some() { "[[sink]]".to_owned() } else { format!("[{}]", table.name) };
            let _ = writeln!(out, "| **`{name}`** | | | {} |", table.intro);
        }
        for (table, key) in rows(&given.table, given.kind()) {
            let default = given.value(key.name).filter(|_| key.unset.is_empty());
            row(&mut out, &full_name(table, key), key, table, default);
        }
    }
    out
}

/// The keys of a table of the file, each with the table of words that it stands in: what every sink has,
/// and what only `kind` has.
fn rows<'a>(
    name: &'a str,
    kind: Option<&'a str>,
) -> impl Iterator<Item = (&'static Table, &'static Key)> + 'a {
    let tables = TABLES
        .iter()
        .filter(move |table| table.name == name && (table.kind.is_empty() || Some(table.kind) == kind));
    tables.flat_map(|table| table.keys.iter().map(move |key| (table, key)))
}

fn full_name(table: &Table, key: &Key) -> String {
    if table.name.is_empty() { key.name.to_owned() } else { format!("{}.{}", table.name, key.name) }
}

/// One table as it was printed.
struct Given {
    table: String,
    values: Vec<(String, String)>,
}

fn printed(config: &Config) -> Vec<Given> {
    let mut tables = vec![Given { table: String::new(), values: Vec::new() }];
    for line in print::print(config).lines() {
        if let Some(name) = line.strip_prefix('[') {
            tables.push(Given { table: name.trim_matches(['[', ']']).to_owned(), values: Vec::new() });
        } else if let (Some((key, value)), Some(given)) = (line.split_once(" = "), tables.last_mut()) {
            given.values.push((key.to_owned(), value.to_owned()));
        }
    }
    tables
}

impl Given {
    fn value(&self, key: &str) -> Option<&str> {
        self.values.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Of a sink, its kind.
    fn kind(&self) -> Option<&str> {
        self.value("type").filter(|_| self.table == "sink").map(|kind| kind.trim_matches('"'))
    }
}

/// A configuration with every kind of sink, and what was asked for while reading it.
struct Known {
    settings: Vec<Given>,
    asked: BTreeMap<String, Asked>,
}

/// Every key that the code asks for.
#[cfg(test)]
pub(super) fn asked() -> BTreeMap<String, Asked> {
    Known::new().asked
}

impl Known {
    fn new() -> Known {
        let mut settings = Settings::default();
        settings.add_file("every kind of sink", EVERY_KIND).expect("the text above is TOML");
        let config = read::gather(&mut settings);
        let mut asked: BTreeMap<String, Asked> = BTreeMap::new();
        for key in settings.asked() {
            let known = asked.entry(key.name.clone()).or_insert_with(|| key.clone());
            if known.range.is_empty() {
                known.range.clone_from(&key.range);
            }
        }
        Known { settings: printed(&config), asked }
    }

    /// What a key may be: as the code checks it, then in words.
    fn range(&self, table: &Table, key: &Key) -> String {
        let checked = self.asked.get(&full_name(table, key)).map_or("", |asked| asked.range.as_str());
        [checked, key.range].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
    }

    /// One table with a comment above each key. `off` stands before what is not in force; then only what
    /// makes this kind of sink one is told.
    fn tell(&self, out: &mut String, given: &Given, off: &str) {
        let kind = given.kind();
        let intros =
            TABLES.iter().filter(|table| table.name == given.table && kind.unwrap_or_default() == table.kind);
        intros.for_each(|table| comment(out, table.intro));
        if given.table == "hook" {
            comment(out, "Webhooks that are taken in; docs/SECURITY.md says what each key means.");
        }
        match given.table.as_str() {
            "" => {}
            name @ ("sink" | "hook") => _ = writeln!(out, "{off}[[{name}]]"),
            name => _ = writeln!(out, "{off}[{name}]"),
        }
        if given.table == "hook" {
            given.values.iter().for_each(|(name, value)| _ = writeln!(out, "{name} = {value}"));
        }
        for (table, key) in rows(&given.table, kind) {
            let entry = |name: &str| name.strip_prefix(key.name).is_some_and(|rest| rest.starts_with('.'));
            let values: Vec<_> =
                given.values.iter().filter(|(name, _)| name == key.name || entry(name)).collect();
            let words = off.is_empty() || !table.kind.is_empty();
            if words {
                self.explain(out, table, key);
            }
            if words && values.is_empty() {
                let _ = writeln!(out, "#{} = {}", key.name, key.example);
            }
            if words || ["name", "type"].contains(&key.name) {
                values.iter().for_each(|(name, value)| _ = writeln!(out, "{off}{name} = {value}"));
            }
        }
    }

    /// What a key means and may be; on two lines where one is too short.
    fn explain(&self, out: &mut String, table: &Table, key: &Key) {
        let range = self.range(table, key);
        let line = if range.is_empty() { key.what.to_owned() } else { format!("{} [{range}]", key.what) };
        if line.chars().count() < WIDTH || range.is_empty() {
            return comment(out, &line);
        }
        comment(out, key.what);
        comment(out, &format!("[{range}]"));
    }
}

/// Words behind `#`, broken into lines.
fn comment(out: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.replace('`', "").split_whitespace() {
        if line.len() > 1 && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(out, "{line}");
            line.truncate(1);
        }
        let _ = write!(line, " {word}");
    }
    if line.len() > 1 {
        let _ = writeln!(out, "{line}");
    }
}
