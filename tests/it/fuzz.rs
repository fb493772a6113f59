//! The corpus of every fuzz target, replayed: what the fuzzer found worth keeping holds in every build.
//!
//! The properties are those of the targets themselves, in `fuzz/src`. The one of `ledger_reader` reaches
//! what is private and is there with the feature `fuzzing` only.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
mod properties;

/// More would make the tests slow and the repository large: let `cargo fuzz cmin` choose.
const MOST_FILES: usize = 120;
/// Bytes of one target's corpus.
const MOST_BYTES: usize = 100_000;

#[test]
fn every_property_holds_for_its_corpus() {
    let mut broken = Vec::new();
    for (name, check) in properties::TARGETS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut files = 0;
        let mut bytes = 0;
        for entry in corpus.read_dir().unwrap_or_else(|error| panic!("{}: {error}", corpus.display())) {
            let path = entry.expect("a readable corpus").path();
            let input = std::fs::read(&path).expect("a readable corpus");
            if catch_unwind(AssertUnwindSafe(|| check(&input))).is_err() {
                broken.push(format!("{name}: {}", path.display()));
            }
            files += 1;
            bytes += input.len();
        }
        println!("{name}: {files} files, {bytes} bytes");
        assert!((1..=MOST_FILES).contains(&files), "{files} files in {}", corpus.display());
        assert!(bytes <= MOST_BYTES, "{bytes} bytes in {}", corpus.display());
    }
    assert!(broken.is_empty(), "properties that do not hold, said above:\n{}", broken.join("\n"));
}
