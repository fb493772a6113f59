//! The manual pages and shell completions that a package carries, made from the command line itself.
//!
//! `cargo run --example packaging -- DIR` writes them into `DIR`; `tests/systemd/package` does that.

use std::path::PathBuf;

use clap_complete::Shell;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: packaging DIR")?);
    std::fs::create_dir_all(&dir)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut eventflow::cli::command(), "eventflow", &dir)?;
    }
    clap_mangen::generate_to(eventflow::cli::command(), &dir)?;
    Ok(())
}
