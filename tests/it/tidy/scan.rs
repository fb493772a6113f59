//! Rust source as tokens with line numbers: enough to see imports, calls and the length of things.
//!
//! Comments and the insides of literals are gone, so a rule never trips over prose.

/// One identifier, or one character of punctuation. Literals become `"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

impl Token {
    pub fn is(&self, text: &str) -> bool {
        self.text == text
    }
}

/// Splits source text into tokens.
pub fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < text.len() {
        let start = at;
        let rest = &text[at..];
        let token = if rest.starts_with(&['/', '/']) {
            at += rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
            None
        } else if rest.starts_with(&['/', '*']) {
            at += block_comment(rest);
            None
        } else if let Some(len) = raw_string(rest) {
            at += len;
            Some("\"".to_string())
        } else if rest[0] == '"' || rest.starts_with(&['b', '"']) || rest.starts_with(&['c', '"']) {
            at += quoted(rest);
            Some("\"".to_string())
        } else if let Some(len) = character(rest) {
            at += len;
            Some("\"".to_string())
        } else if rest[0].is_alphanumeric() || rest[0] == '_' {
            at += rest.iter().position(|c| !c.is_alphanumeric() && *c != '_').unwrap_or(rest.len());
            Some(text[start..at].iter().collect())
        } else {
            at += 1;
            (!rest[0].is_whitespace()).then(|| rest[0].to_string())
        };
        if let Some(token) = token {
            found.push(Token { text: token, line });
        }
        line += text[start..at].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of `r"…"`, `r#"…"#`, `br#"…"#`, if one starts here.
fn raw_string(rest: &[char]) -> Option<usize> {
    let mut at = usize::from(matches!(rest[0], 'b' | 'c'));
    if rest.get(at) != Some(&'r') {
        return None;
    }
    at += 1;
    let hashes = rest[at..].iter().take_while(|c| **c == '#').count();
    at += hashes;
    if rest.get(at) != Some(&'"') {
        return None;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let len = rest[at + 1..].windows(end.len()).position(|w| w == end)?;
    Some(at + 1 + len + end.len())
}

fn quoted(rest: &[char]) -> usize {
    let mut at = rest.iter().position(|c| *c == '"').unwrap_or(0) + 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Length of a character literal, if one (and not a lifetime) starts here.
fn character(rest: &[char]) -> Option<usize> {
    let at = usize::from(rest[0] == 'b');
    if rest.get(at) != Some(&'\'') {
        return None;
    }
    match (rest.get(at + 1)?, rest.get(at + 2)?) {
        ('\\', _) => rest[at + 3..].iter().position(|c| *c == '\'').map(|len| at + 3 + len + 1),
        (_, '\'') => Some(at + 3),
        _ => None,
    }
}

/// The index after the bracket that closes the one at `open`.
pub fn after_closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return i + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// The tokens without items marked `#[cfg(test)]`, and the names of such modules kept in other files.
pub fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let (mut kept, mut elsewhere) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        let marked = ["#", "[", "cfg", "(", "test", ")", "]"];
        if !tokens[at..].iter().map(|t| t.text.as_str()).take(marked.len()).eq(marked) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += marked.len();
        while at < tokens.len() && !tokens[at].is("{") && !tokens[at].is(";") {
            if tokens[at].is("mod") && tokens.get(at + 2).is_some_and(|t| t.is(";")) {
                elsewhere.push(tokens[at + 1].text.clone());
            }
            at = if tokens[at].is("(") || tokens[at].is("[") { after_closing(tokens, at) } else { at + 1 };
        }
        at = if tokens.get(at).is_some_and(|t| t.is("{")) { after_closing(tokens, at) } else { at + 1 };
    }
    (kept, elsewhere)
}

/// Every path a file names, each as its segments and line, with `use` trees spread out.
pub fn paths(tokens: &[Token]) -> Vec<(Vec<String>, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if starts_path(tokens, at) {
            at = read_path(tokens, at, &[], &mut found);
        } else {
            at += 1;
        }
    }
    found
}

fn is_name(token: &Token) -> bool {
    token.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn joined(tokens: &[Token], at: usize) -> bool {
    tokens.get(at).is_some_and(|t| t.is(":")) && tokens.get(at + 1).is_some_and(|t| t.is(":"))
}

fn starts_path(tokens: &[Token], at: usize) -> bool {
    is_name(&tokens[at]) && joined(tokens, at + 1)
}

/// Reads one path (or `use` tree branch) at `at`; returns where it ended.
fn read_path(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<(Vec<String>, usize)>,
) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens[at].line;
    loop {
        match tokens.get(at) {
            Some(token) if is_name(token) || token.is("*") => path.push(token.text.clone()),
            Some(token) if token.is("{") => {
                let end = after_closing(tokens, at);
                at += 1;
                while at + 1 < end {
                    if is_name(&tokens[at]) || tokens[at].is("{") {
                        at = read_path(tokens, at, &path, found);
                        if tokens.get(at).is_some_and(|t| t.is("as")) {
                            at += 2;
                        }
                    } else {
                        at += 1;
                    }
                }
                return end;
            }
            _ => break,
        }
        at += 1;
        if !joined(tokens, at) {
            break;
        }
        at += 2;
    }
    found.push((path, line));
    at
}

/// Name, line and number of code lines of every function with a body.
pub fn functions(tokens: &[Token]) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if !token.is("fn") || !tokens.get(at + 1).is_some_and(is_name) {
            continue;
        }
        let mut open = at + 2;
        while open < tokens.len() && !tokens[open].is("{") && !tokens[open].is(";") {
            open = if tokens[open].is("(") || tokens[open].is("[") {
                after_closing(tokens, open)
            } else {
                open + 1
            };
        }
        if tokens.get(open).is_some_and(|t| t.is("{")) {
            let end = after_closing(tokens, open);
            found.push((tokens[at + 1].text.clone(), token.line, code_lines(&tokens[at..end])));
        }
    }
    found
}

/// How many lines hold a token.
pub fn code_lines(tokens: &[Token]) -> usize {
    let mut lines: Vec<usize> = tokens.iter().map(|t| t.line).collect();
    lines.dedup();
    lines.len()
}
