//! The `eventflow` command.

fn main() {}
