//! `eventflow token`: makes tokens; the daemon only ever sees their hashes.
//!
//! Runs on the main thread. What belongs into the tokens file is the data, on standard output; the token
//! itself is said once, on standard error or into a file of the user's own, and kept nowhere.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use ring::rand::{SecureRandom, SystemRandom};

use super::{Exit, Failure, print};
use crate::config::{Scope, TokenHash, Tokens};
use crate::event::Micros;

/// What a token begins with, so that people and scanners for secrets know one when they see it.
const PREFIX: &str = "eft_";

/// `eventflow token …`
#[derive(Debug, Subcommand)]
pub(super) enum TokenVerb {
    /// Make a token: its table for the tokens file goes to standard output, the token itself is shown once
    #[command(after_help = "Examples:
  eventflow token new --name ci --scope ingest >> /etc/eventflow/tokens.toml
  eventflow token new --name grafana --scope read --expires 365d --out grafana.token >> tokens.toml
  eventflow token new --name ops --scope read --scope admin --json
  systemctl reload eventflow      # the daemon reads the file again on SIGHUP")]
    New(NewArgs),
}

#[derive(Debug, Args)]
pub(super) struct NewArgs {
    /// Who gets it; shown in answers
    #[arg(long)]
    name: String,
    /// What it is good for: `ingest` posts events, `read` looks, `admin` changes; may be given again
    #[arg(long = "scope", value_name = "SCOPE", required = true, value_parser = Scope::parse)]
    scopes: Vec<Scope>,
    /// Most requests a second
    #[arg(long, value_name = "N")]
    requests_per_second: Option<u32>,
    /// Good for this long, such as 90d; for ever without
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expires: Option<std::time::Duration>,
    /// Write the token into this new file, which only you may read, and show it nowhere
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print token and table as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Runs a verb.
pub(super) fn run(verb: &TokenVerb) -> Result<Exit, Failure> {
    match verb {
        TokenVerb::New(args) => new(args),
    }
}

fn new(args: &NewArgs) -> Result<Exit, Failure> {
    let token = random()?;
    let table = table(args, &token);
    // What the daemon would refuse is refused here.
    Tokens::parse(&table).map_err(|wrong| Failure::new(Exit::Usage, wrong))?;
    if let Some(file) = &args.out {
        keep(file, &token)?;
    }
    if args.json {
        let shown = args.out.is_none().then_some(&token);
        let answer = serde_json::json!({ "name": args.name, "token": shown, "table": table });
        print(&format!("{answer}\n"))?;
        return Ok(Exit::Done);
    }
    print(&table)?;
    let said = match &args.out {
        Some(file) => format!("token `{}` is in {}", args.name, file.display()),
        None => format!("token `{}`, shown only now:\n{token}", args.name),
    };
    // Whoever closed standard error does not want to hear it.
    let _ = writeln!(io::stderr(), "{said}");
    Ok(Exit::Done)
}

fn random() -> Result<String, Failure> {
    let mut bytes = [0u8; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Failure::failed("the system gives no random numbers; try again"))?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

fn table(args: &NewArgs, token: &str) -> String {
    let text = |text: &str| toml::Value::String(text.to_owned());
    let scopes = toml::Value::Array(args.scopes.iter().map(|scope| text(scope.name())).collect());
    let mut table = format!(
        "[[token]]\nname = {}\nhash = {}\nscopes = {scopes}\n",
        text(&args.name),
        text(&TokenHash::of(token.as_bytes()).to_string())
    );
    if let Some(rate) = args.requests_per_second {
        table += &format!("requests_per_second = {rate}\n");
    }
    if let Some(time) = args.expires {
        let micros = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let second = Micros::now().0.saturating_add(micros) / 1_000_000 * 1_000_000;
        table += &format!("expires = {}\n", text(&Micros(second).to_rfc3339()));
    }
    table + "\n"
}

/// Never over a file that is there: it may be the only copy of another token.
fn keep(file: &Path, token: &str) -> Result<(), Failure> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    made.and_then(|mut out| writeln!(out, "{token}"))
        .map_err(|error| Failure::failed(format_args!("cannot write {}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_another_one_of_256_bits() {
        let (one, two) = (random().unwrap(), random().unwrap());
        assert_ne!(one, two);
        let bytes = URL_SAFE_NO_PAD.decode(one.strip_prefix(PREFIX).unwrap()).unwrap();
        assert_eq!(bytes.len(), 32);
    }
}
