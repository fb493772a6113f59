//! The queue on this machine's own disk: two logs, a window a sink, and a dedupe table.

mod dedupe;
mod ranges;
mod window;
