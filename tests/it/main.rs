//! The one integration binary: house rules, and black-box tests of the real `eventflow` binary.

mod activation;
mod cli;
mod corpus;
mod documents;
mod eio;
mod failures;
mod faults;
mod full_disk;
mod harness;
mod hostile;
mod index;
mod kill;
mod power;
mod sdk;
mod snapshot;
mod stop;
mod tidy;
mod watchdog;
mod webhook;
