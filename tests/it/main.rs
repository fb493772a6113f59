//! The one integration binary: house rules, and black-box tests of the real `eventflow` binary.

mod access;
mod activation;
mod cli;
mod corpus;
mod documents;
mod eio;
mod failures;
mod faults;
mod full_disk;
mod harness;
mod hooks;
mod hostile;
mod index;
mod kill;
mod metrics;
mod openapi;
mod power;
mod reload;
mod replay;
mod sdk;
mod snapshot;
mod stop;
mod tidy;
mod tls;
mod watchdog;
mod webhook;
