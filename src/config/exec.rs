//! What an exec sink is told: its program, its environment, its longest line.
//!
//! Pure code.

use super::settings::Section;
use super::units::{KIB, MIB};
use super::webhook::{Hidden, is_secret_header};

/// What only an exec sink has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    /// Added to the few variables that it gets anyway.
    pub env: Vec<(String, Hidden)>,
    /// Most bytes of a line that it writes.
    pub max_line_bytes: u64,
}

/// The keys that only an exec sink has; `env` holds others.
pub(super) const KEYS: [&str; 3] = ["command", "env", "max_line"];

/// Reads them; `None` when there is no command, which is noted as a mistake.
pub(super) fn read_keys(s: &mut Section, name: &str) -> Option<Exec> {
    let word = |text: &str| {
        if text.contains('\0') { Err("it holds a NUL".to_owned()) } else { Ok(text.to_owned()) }
    };
    let command =
        s.list("command", word).filter(|command| command.first().is_some_and(|program| !program.is_empty()));
    if command.is_none() {
        s.mistake(format!("sink `{name}` needs a `command`, such as [\"python3\", \"/opt/orders.py\"]"));
    }
    let env = s.entries("env", |key, value| {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err("it is not an environment variable".to_owned());
        }
        Ok((key.to_owned(), Hidden(value.to_owned())))
    });
    let max_line = s.size("max_line", 256..=16 * MIB);
    Some(Exec {
        command: command?,
        env: env.unwrap_or_default(),
        max_line_bytes: max_line.unwrap_or(64 * KIB),
    })
}

/// Whether a variable's value is masked where the configuration is shown.
pub(super) fn is_secret_variable(name: &str) -> bool {
    is_secret_header(name)
}
