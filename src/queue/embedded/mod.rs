//! The queue on this machine's own disk: two logs, a window a sink, and a dedupe table.

#![allow(dead_code)]

mod codec;
mod dedupe;
mod ranges;
mod ring;
mod window;
