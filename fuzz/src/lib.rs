//! What must hold for any bytes, one module a fuzz target; each begins with the property it checks and
//! with how its input is laid out.
//!
//! Plain functions that panic when the property does not hold. The targets in `fuzz_targets/` call them
//! with what the fuzzer makes up, and `tests/it/fuzz.rs` with every file of `corpus/`, so that neither the
//! corpus nor the properties rot between two runs of the fuzzer.

pub mod ce_headers;
pub mod configuration;
pub mod decoder;
pub mod frame_reader;
#[cfg(feature = "fuzzing")]
pub mod ledger_reader;
pub mod lines;

/// A target's name, which is also that of its folder in `corpus/`, and its property.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this build.
pub const TARGETS: &[Target] = &[
    ("ce_headers", ce_headers::check),
    ("configuration", configuration::check),
    ("decoder", decoder::check),
    ("frame_reader", frame_reader::check),
    #[cfg(feature = "fuzzing")]
    ("ledger_reader", ledger_reader::check),
    ("lines", lines::check),
];
