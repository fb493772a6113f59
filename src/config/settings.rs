//! Settings as they were given: file under environment under flags, each with its place.
//!
//! A [`Section`] is asked for its keys one by one; what nobody asked for is unknown, so the list of
//! known keys is the code that reads them. Mistakes are gathered, not returned, so that one run
//! names them all. Pure code: the caller brings the texts.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::units::{parse_duration, parse_size, show_duration, show_size};

/// What there may be many of: `[[sink]]`, `[[hook]]`.
const LISTS: [&str; 2] = ["sink", "hook"];

fn list_named(name: &str) -> Option<&'static str> {
    LISTS.into_iter().find(|list| *list == name)
}

/// Everything that was set.
#[derive(Debug, Default)]
pub(super) struct Settings {
    root: Section,
    sections: BTreeMap<String, Section>,
    /// Tables of which there may be many, by what they are.
    lists: BTreeMap<&'static str, Vec<Section>>,
    list_env: Vec<(&'static str, String, Setting)>,
    mistakes: Vec<String>,
    asked: Vec<Asked>,
    /// Where the service manager keeps what only this process may read.
    credentials: Option<PathBuf>,
}

/// A key that was asked for: the code that reads a key is what makes it known.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// `http.max_body`; of a sink `sink.batch`, whatever its name.
    pub(super) name: String,
    /// What it may be, as the code checks it; empty where that takes words.
    pub(super) range: String,
}

/// The keys of one table.
#[derive(Debug, Default)]
pub(super) struct Section {
    label: String,
    settings: BTreeMap<String, Setting>,
    asked: Vec<Asked>,
    mistakes: Vec<String>,
    /// As those of [`Settings`].
    pub(super) credentials: Option<PathBuf>,
}

/// One value and where it stands.
#[derive(Debug, Clone)]
struct Setting {
    raw: Raw,
    origin: Origin,
}

#[derive(Debug, Clone)]
enum Raw {
    /// A TOML string.
    Text(String),
    /// Text from the environment or a flag: whatever the key wants.
    Word(String),
    Integer(i64),
    Bool(bool),
    /// A TOML array of strings.
    List(Vec<String>),
    /// A TOML value that no key takes, by its kind.
    Other(&'static str),
}

#[derive(Debug, Clone)]
enum Origin {
    File { name: String, line: usize },
    Env(String),
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { name, line } => write!(f, "{name}:{line}"),
            Origin::Env(name) => write!(f, "environment variable {name}"),
            Origin::Flag => write!(f, "command line"),
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raw::Text(text) => write!(f, "{text:?}"),
            Raw::Word(text) => f.write_str(text),
            Raw::Integer(number) => write!(f, "{number}"),
            Raw::Bool(value) => write!(f, "{value}"),
            Raw::List(_) => f.write_str("a list"),
            Raw::Other(kind) => f.write_str(kind),
        }
    }
}

impl Settings {
    /// Adds what a TOML text sets.
    pub(super) fn add_file(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let line_of =
            |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
        let document = DeTable::parse(text).map_err(|error| {
            let line = line_of(error.span().map_or(0, |span| span.start));
            ConfigError::Mistakes(vec![format!("{name}:{line}: this is not TOML: {}", error.message())])
        })?;
        let origin = |at: usize| Origin::File { name: name.to_owned(), line: line_of(at) };
        for (key, value) in document.into_inner() {
            let (at, key) = (key.span().start, key.into_inner().into_owned());
            match (list_named(&key), value.into_inner()) {
                (Some(list), DeValue::Array(items)) => {
                    let tables = self.lists.entry(list).or_default();
                    for item in items {
                        let at = item.span().start;
                        match item.into_inner() {
                            DeValue::Table(table) => {
                                let mut section = Section::named(list);
                                section.fill(table, &origin);
                                tables.push(section);
                            }
                            _ => self.mistakes.push(format!("{}: each `{list}` must be a table", origin(at))),
                        }
                    }
                }
                (Some(list), _) => {
                    self.mistakes
                        .push(format!("{}: {list}s are written `[[{list}]]`, one for each", origin(at)));
                }
                (_, DeValue::Table(table)) => self.section_mut(&key).fill(table, &origin),
                (_, value) => {
                    self.root.settings.insert(key, Setting { raw: raw(value), origin: origin(at) });
                }
            }
        }
        Ok(())
    }

    /// Lays the environment over what is there.
    pub(super) fn add_env(&mut self, env: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in env {
            if name == "CREDENTIALS_DIRECTORY" {
                self.credentials = Some(PathBuf::from(&value));
            }
            let Some(path) = name.strip_prefix("EVENTFLOW_") else { continue };
            let path = path.to_ascii_lowercase();
            let setting = Setting { raw: Raw::Word(value), origin: Origin::Env(name.clone()) };
            match path.split_once("__") {
                Some((section, key)) => match list_named(section) {
                    Some(list) => self.list_env.push((list, key.to_owned(), setting)),
                    None => {
                        self.section_mut(section).settings.insert(key.replace("__", "."), setting);
                    }
                },
                None if path == "data_dir" => {
                    self.root.settings.insert(path, setting);
                }
                // Container platforms inject EVENTFLOW_PORT and its like for a service of this
                // name, so only what can hardly be meant otherwise is a mistake.
                None if strsim::damerau_levenshtein(&path, "data_dir") <= 2 => {
                    self.mistakes.push(format!("{name} is not a setting; did you mean EVENTFLOW_DATA_DIR?"));
                }
                None => {}
            }
        }
    }

    /// Lays flags over everything.
    pub(super) fn add_flags(&mut self, flags: &[(&str, String)]) {
        for (path, value) in flags {
            let setting = Setting { raw: Raw::Word(value.clone()), origin: Origin::Flag };
            match path.split_once('.') {
                Some((section, key)) => self.section_mut(section).settings.insert(key.to_owned(), setting),
                None => self.root.settings.insert((*path).to_owned(), setting),
            };
        }
    }

    /// Takes the keys outside any table.
    pub(super) fn root(&mut self) -> Section {
        std::mem::take(&mut self.root)
    }

    /// Takes a table; an empty one when it was not given.
    pub(super) fn section(&mut self, name: &'static str) -> Section {
        let mut section = self.sections.remove(name).unwrap_or_else(|| Section::named(name));
        section.credentials.clone_from(&self.credentials);
        section
    }

    /// Takes the sinks with the environment laid over them; when there is none, the default one.
    pub(super) fn sinks(&mut self) -> Vec<Section> {
        self.lists.entry("sink").or_insert_with(|| {
            let mut archive = Section::named("sink");
            for (key, value) in [("name", "archive"), ("type", "json_file")] {
                let setting = Setting { raw: Raw::Word(value.to_owned()), origin: Origin::Flag };
                archive.settings.insert(key.to_owned(), setting);
            }
            vec![archive]
        });
        self.list("sink")
    }

    /// Takes all tables of one kind with the environment laid over them.
    pub(super) fn list(&mut self, list: &'static str) -> Vec<Section> {
        let mut sections = self.lists.remove(list).unwrap_or_default();
        for section in &mut sections {
            section.credentials.clone_from(&self.credentials);
        }
        let (ours, others) =
            std::mem::take(&mut self.list_env).into_iter().partition(|(kind, _, _)| *kind == list);
        self.list_env = others;
        let ours: Vec<(&str, String, Setting)> = ours;
        for (_, path, setting) in ours {
            let named = |section: &Section, wanted: &str| {
                matches!(section.settings.get("name"), Some(Setting { raw: Raw::Text(name) | Raw::Word(name), .. })
                         if name.replace('-', "_") == wanted)
            };
            let Some((wanted, key)) = path.split_once("__") else {
                let upper = list.to_ascii_uppercase();
                self.mistakes.push(format!("{} must be EVENTFLOW_{upper}__<NAME>__<KEY>", setting.origin));
                continue;
            };
            let mut matching = sections.iter_mut().filter(|section| named(section, wanted));
            match (matching.next(), matching.next()) {
                (Some(section), None) => {
                    section.settings.insert(key.replace("__", "."), setting);
                }
                (None, _) => self.mistakes.push(format!("{}: no {list} is named `{wanted}`", setting.origin)),
                (Some(_), Some(_)) => {
                    self.mistakes.push(format!("{}: more than one {list} goes by that name", setting.origin));
                }
            }
        }
        sections
    }

    /// Takes a section back: what nobody asked for in it is unknown.
    pub(super) fn done(&mut self, section: Section) {
        let Section { label, settings, asked, mistakes, credentials: _ } = section;
        let dotted = |key: &str| if label.is_empty() { key.to_owned() } else { format!("{label}.{key}") };
        self.mistakes.extend(mistakes);
        self.asked.extend(asked.into_iter().map(|key| Asked { name: dotted(&key.name), ..key }));
        for (key, setting) in settings {
            // Judged in `finish`, once all known names are gathered.
            self.section_mut("").settings.insert(dotted(&key), setting);
        }
    }

    /// Notes a mistake that concerns more than one key.
    pub(super) fn mistake(&mut self, sentence: String) {
        self.mistakes.push(sentence);
    }

    /// Every key that was asked for so far, in sections that were taken back.
    pub(super) fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// All mistakes, unknown keys and sections included.
    pub(super) fn finish(mut self) -> Vec<String> {
        let unknown = self.sections.remove("").unwrap_or_default();
        for (key, setting) in unknown.settings {
            self.mistakes.push(unknown_key(&self.asked, &key, &setting.origin));
        }
        for (name, section) in self.sections {
            match section.settings.iter().next() {
                Some((key, setting)) => {
                    let key = format!("{name}.{key}");
                    self.mistakes.push(unknown_key(&self.asked, &key, &setting.origin));
                }
                None => {
                    let sections = self.asked.iter().filter_map(|known| known.name.split_once('.'));
                    let nearest = sections.map(|(section, _)| section);
                    let nearest = nearest.min_by_key(|known| strsim::damerau_levenshtein(known, &name));
                    let nearest = nearest.unwrap_or_default();
                    self.mistakes.push(format!("`[{name}]` is not a section; did you mean `[{nearest}]`?"));
                }
            }
        }
        self.mistakes
    }

    fn section_mut(&mut self, name: &str) -> &mut Section {
        self.sections.entry(name.to_owned()).or_insert_with(|| Section::named(name))
    }
}

/// The sentence for a key that does not exist, with the nearest one that does.
fn unknown_key(known: &[Asked], key: &str, origin: &Origin) -> String {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    // A known key in the wrong table is nearer than any misspelling.
    let names = known.iter().map(|known| known.name.as_str());
    let nearest = names
        .clone()
        .find(|name| last(name) == last(key))
        .or_else(|| names.clone().min_by_key(|name| strsim::damerau_levenshtein(name, key)));
    match nearest {
        Some(name) => format!("{origin}: `{key}` is not a key; did you mean `{name}`?"),
        None => format!("{origin}: `{key}` is not a key"),
    }
}

fn raw(value: DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Raw::Integer(number),
            Err(_) => Raw::Other("a number beyond 64 bits"),
        },
        DeValue::Boolean(value) => Raw::Bool(value),
        DeValue::Float(_) => Raw::Other("a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Array(items) => {
            let texts = items.into_iter().map(|item| match item.into_inner() {
                DeValue::String(text) => Some(text.into_owned()),
                _ => None,
            });
            texts.collect::<Option<Vec<_>>>().map_or(Raw::Other("an array"), Raw::List)
        }
        DeValue::Table(_) => Raw::Other("a table"),
    }
}

impl Section {
    fn named(label: &str) -> Self {
        Section { label: label.to_owned(), ..Section::default() }
    }

    fn fill(&mut self, table: DeTable<'_>, origin: &impl Fn(usize) -> Origin) {
        self.fill_below("", table, origin);
    }

    /// The keys of a table within are dotted: `retry = { max = "1m" }` is `retry.max`.
    fn fill_below(&mut self, prefix: &str, table: DeTable<'_>, origin: &impl Fn(usize) -> Origin) {
        for (key, value) in table {
            let origin_here = origin(key.span().start);
            let key = format!("{prefix}{}", key.into_inner());
            match value.into_inner() {
                DeValue::Table(inner) if !inner.is_empty() => {
                    self.fill_below(&format!("{key}."), inner, origin);
                }
                value => {
                    self.settings.insert(key, Setting { origin: origin_here, raw: raw(value) });
                }
            }
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Setting> {
        self.note(key, String::new());
        self.settings.remove(key)
    }

    /// Notes that a key was asked for, and what it may be.
    fn note(&mut self, key: &'static str, range: String) {
        match self.asked.iter_mut().find(|asked| asked.name == key) {
            Some(asked) if !range.is_empty() => asked.range = range,
            Some(_) => {}
            None => self.asked.push(Asked { name: key.to_owned(), range }),
        }
    }

    fn dotted(&self, key: &str) -> String {
        if self.label.is_empty() { key.to_owned() } else { format!("{}.{key}", self.label) }
    }

    fn wrong(&mut self, key: &str, setting: &Setting, wanted: impl fmt::Display) {
        let Setting { raw, origin } = setting;
        self.mistakes.push(format!("{origin}: `{}` = {raw} is wrong: {wanted}", self.dotted(key)));
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        self.parsed(key, "it must be a text", |text| Some(text.to_owned()))
    }

    /// A text of a certain form.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let setting = self.take(key)?;
        let value = match &setting.raw {
            Raw::Text(text) | Raw::Word(text) => parse(text),
            _ => None,
        };
        if value.is_none() {
            self.wrong(key, &setting, wanted);
        }
        value
    }

    /// A text whose value is in no mistake, because it may be a secret. The error says what is wrong.
    pub(super) fn hidden<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let setting = self.take(key)?;
        let parsed = match &setting.raw {
            Raw::Text(text) | Raw::Word(text) => parse(text),
            _ => Err("it must be a text".to_owned()),
        };
        self.or_wrong(key, &setting.origin, parsed)
    }

    /// Several texts, none of which is in a mistake. In the environment, white space is between them.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let setting = self.take(key)?;
        let parsed = match &setting.raw {
            Raw::List(texts) => texts.iter().map(|text| parse(text)).collect(),
            Raw::Word(text) => text.split_whitespace().map(parse).collect(),
            _ => Err("it must be a list of texts, such as [\"one\", \"two\"]".to_owned()),
        };
        self.or_wrong(key, &setting.origin, parsed)
    }

    /// The texts of a table whose keys are free, none of which is in a mistake.
    pub(super) fn entries<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str, &str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        self.table(key);
        let prefix = format!("{key}.");
        let found = self.take_where(|name| name.starts_with(&prefix));
        let mut entries = Vec::new();
        for (name, setting) in found {
            let parsed = match &setting.raw {
                Raw::Text(text) | Raw::Word(text) => parse(&name[prefix.len()..], text),
                _ => Err("it must be a text".to_owned()),
            };
            entries.extend(self.or_wrong(&name, &setting.origin, parsed));
        }
        (!entries.is_empty()).then_some(entries)
    }

    fn take_where(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<(String, Setting)> {
        let (taken, kept) =
            std::mem::take(&mut self.settings).into_iter().partition(|(name, _)| wanted(name));
        self.settings = kept;
        let taken: BTreeMap<String, Setting> = taken;
        taken.into_iter().collect()
    }

    fn or_wrong<T>(&mut self, key: &str, origin: &Origin, parsed: Result<T, String>) -> Option<T> {
        let wrong = |wanted| format!("{origin}: `{}` is wrong: {wanted}", self.dotted(key));
        let (value, mistake) = match parsed {
            Ok(value) => (Some(value), None),
            Err(wanted) => (None, Some(wrong(wanted))),
        };
        self.mistakes.extend(mistake);
        value
    }

    /// What a key is set to, without asking for it.
    pub(super) fn peek(&self, key: &str) -> Option<String> {
        self.settings.get(key).map(|setting| setting.raw.to_string())
    }

    /// Keys (and tables) that only sinks (or hooks) of another type have.
    pub(super) fn only_for(&mut self, kind: &str, keys: &[&'static str]) {
        for key in keys {
            self.note(key, String::new());
            let prefix = format!("{key}.");
            let found = self.take_where(|name| name == *key || name.starts_with(&prefix));
            for (name, Setting { origin, .. }) in found {
                let list = self.label.split('.').next().unwrap_or_default();
                self.mistakes.push(format!(
                    "{origin}: `{}` is a key of {list}s of type \"{kind}\" only",
                    self.dotted(&name)
                ));
            }
        }
    }

    /// One word of a few.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        self.note(key, names.join(", "));
        self.parsed(key, &format!("it must be {}", names.join(" or ")), |text| {
            choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
        })
    }

    /// Yes or no.
    pub(super) fn switch(&mut self, key: &'static str) -> Option<bool> {
        let setting = self.take(key)?;
        let value = match &setting.raw {
            Raw::Bool(value) => Some(*value),
            Raw::Word(text) => text.parse().ok(),
            _ => None,
        };
        if value.is_none() {
            self.wrong(key, &setting, "it must be true or false");
        }
        value
    }

    /// A whole number.
    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        self.measured(key, range, "a number", Some, |text| text.parse().ok(), |n| n.to_string())
    }

    /// A size in bytes.
    pub(super) fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        self.measured(key, range, "a size such as \"64MiB\"", Some, parse_size, show_size)
    }

    /// A time span.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.measured(key, range, "a duration such as \"30s\"", |_| None, parse_duration, show_duration)
    }

    fn measured<T: PartialOrd + Copy>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
        wanted: &str,
        from_integer: impl Fn(u64) -> Option<T>,
        from_text: impl Fn(&str) -> Option<T>,
        show: impl Fn(T) -> String,
    ) -> Option<T> {
        self.note(key, format!("{} – {}", show(*range.start()), show(*range.end())));
        let setting = self.take(key)?;
        let value = match &setting.raw {
            Raw::Integer(number) => u64::try_from(*number).ok().and_then(from_integer),
            Raw::Text(text) | Raw::Word(text) => from_text(text),
            Raw::Bool(_) | Raw::List(_) | Raw::Other(_) => None,
        };
        match value {
            Some(value) if range.contains(&value) => Some(value),
            _ => {
                let bounds = format!("{} to {}", show(*range.start()), show(*range.end()));
                self.wrong(key, &setting, format_args!("it must be {wanted} in the range {bounds}"));
                None
            }
        }
    }

    /// A key that can only hold others; an empty table is fine. Asked for besides its keys, which
    /// are dotted.
    pub(super) fn table(&mut self, key: &'static str) {
        if let Some(setting) = self.take(key)
            && !matches!(setting.raw, Raw::Other("a table"))
        {
            self.wrong(key, &setting, "it must be a table");
        }
    }

    /// Notes a mistake that concerns this section.
    pub(super) fn mistake(&mut self, sentence: String) {
        self.mistakes.push(sentence);
    }

    /// Says in mistakes which sink this is.
    pub(super) fn relabel(&mut self, label: String) {
        self.label = label;
    }

    /// Marks a key as known and forgets it.
    pub(super) fn skip(&mut self, key: &'static str) {
        self.take(key);
    }
}
