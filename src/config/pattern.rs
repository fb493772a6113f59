//! A glob over a name: checked when the configuration is read, matched as often as there are events.
//!
//! Pure code. `*` stands for any text, dots and slashes included, because types, sources and subjects
//! are names and not paths.

use std::fmt;

use globset::{Glob, GlobMatcher, GlobSet};

/// The longest pattern, in bytes.
const LONGEST: usize = 1024;

/// A valid glob.
#[derive(Clone)]
pub struct Pattern(GlobMatcher);

impl Pattern {
    /// Reads a glob; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        if text.is_empty() || text.len() > LONGEST {
            return Err(format!("a pattern has 1 to {LONGEST} bytes"));
        }
        let glob = Glob::new(text).map_err(|error| error.kind().to_string())?;
        // Compiling alone would panic on what is too large to compile; as a set it is an error.
        GlobSet::builder().add(glob.clone()).build().map_err(|error| error.kind().to_string())?;
        Ok(Pattern(glob.compile_matcher()))
    }

    /// Whether the whole of `name` matches.
    pub fn is_match(&self, name: &str) -> bool {
        self.0.is_match(name)
    }

    /// The glob as it was written.
    pub fn as_str(&self) -> &str {
        self.0.glob().glob()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text_dots_and_slashes_included() {
        let matches = |glob: &str, name: &str| Pattern::parse(glob).unwrap().is_match(name);
        assert!(matches("com.example.order.*", "com.example.order.line.added"));
        assert!(matches("/shop/*", "/shop/a/b"));
        assert!(matches("{a,b}?", "b1"));
        assert!(!matches("com.example.order.*", "com.example.orders"));
        assert!(!matches("a", "ab"));
        assert!(!matches("A", "a"));
    }

    #[test]
    fn what_is_no_glob_or_too_large_is_an_error_and_never_a_panic() {
        for bad in ["", "[", "{a", "a}", &"x".repeat(LONGEST + 1)] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        // The worst that fits: alternates within alternates.
        let nested = format!("{}{}", "{*a,".repeat(200), "}".repeat(200));
        let _ = Pattern::parse(&nested);
    }
}
