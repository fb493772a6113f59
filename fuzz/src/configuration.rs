//! Whatever a configuration says, it is one, or every mistake in it is told with its place.
//!
//! * A valid one, printed, is read back as the same one; so is the one with explanations.
//! * A mistake is a sentence that names a key or a section in backticks, or the line or the variable.
//! * A file of tokens is read, or refused with a sentence.
//!
//! ```text
//! input    the file; behind a zero byte the environment, lines `NAME=value`
//! ```

use eventflow::config::{Config, ConfigError, Tokens};

const FILE: &str = "f.toml";
/// What stands for a secret.
const MASK: &str = "\"***\"";

/// See the module.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if ["/dev", "/proc", "/sys"].iter().any(|place| text.contains(place)) {
        return; // a configuration may name files, and reading one of these may never end
    }
    let (file, env) = text.split_once('\0').unwrap_or((text, ""));
    let env = env.lines().filter_map(|line| line.split_once('='));
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    match Config::parse(FILE, file, env, &[]) {
        Ok(config) => check_printed(&config),
        Err(ConfigError::Mistakes(mistakes)) => {
            assert!(!mistakes.is_empty(), "it is wrong, and nobody says why");
            mistakes.iter().for_each(|mistake| check_mistake(mistake, file));
        }
        Err(ConfigError::Unreadable { .. }) => panic!("a text was read that is a file's"),
    }
    if let Err(wrong) = Tokens::parse(file) {
        assert!(!wrong.trim().is_empty(), "it is wrong, and nobody says why");
    }
}

fn check_printed(config: &Config) {
    for printed in [config.to_toml(), config.explain()] {
        let again = Config::parse(FILE, &printed, [], &[]).map_err(|wrong| wrong.to_string());
        match again {
            Ok(again) => {
                assert!(again == *config || printed.contains(MASK), "printed it is another:\n{printed}")
            }
            // A secret is not shown, and so not read back; all else is.
            Err(wrong) if printed.contains(MASK) => {
                assert!(!wrong.contains(": this is not TOML: "), "printed it is no TOML: {wrong}\n{printed}");
            }
            Err(wrong) => panic!("printed it is none: {wrong}\n{printed}"),
        }
    }
    assert_eq!(config.changed(config), Vec::<String>::new(), "it differs from itself");
}

fn check_mistake(mistake: &str, file: &str) {
    let line = mistake.strip_prefix("f.toml:").and_then(|rest| rest.split(':').next());
    if let Some(line) = line {
        let line: usize = line.parse().unwrap_or_else(|_| panic!("no line: {mistake}"));
        assert!((1..=file.split('\n').count()).contains(&line), "there is no such line: {mistake}");
    }
    let names_variable = mistake.starts_with("EVENTFLOW_") || mistake.starts_with("environment variable ");
    assert!(line.is_some() || names_variable || mistake.contains('`'), "nobody knows where: {mistake}");
}
