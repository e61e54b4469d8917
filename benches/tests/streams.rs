//! The program that measures streams does not rot: it runs, in small.

use std::process::Command;

#[test]
fn a_quick_run_measures_both_ways() {
    let run = Command::new(env!("CARGO_BIN_EXE_streams")).arg("--quick").output().expect("runs");
    let printed = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{printed}\n{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(printed.matches(", BLAKE3 ").count(), 2, "{printed}");
    assert_eq!(printed.matches(" MiB above the ").count(), 4, "{printed}");
    assert!(printed.contains("ratio to plain messages by lapin"), "{printed}");
}
