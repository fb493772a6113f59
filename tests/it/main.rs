//! The one integration binary: house rules, and black-box tests of the real `eventflow` binary.

mod cli;
mod documents;
mod harness;
mod stop;
mod tidy;
