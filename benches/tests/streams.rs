//! The program that measures streams does not rot: it runs, in small.

use std::process::Command;

fn quick_run(over: &str) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_streams"));
    let run = program.args(["--quick", "--protocol", over]).output().expect("runs");
    let printed = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success(), "{printed}\n{}", String::from_utf8_lossy(&run.stderr));
    printed
}

#[test]
fn a_quick_run_measures_both_protocols_and_memory() {
    for protocol in ["amqp091", "amqp10"] {
        let printed = quick_run(protocol);
        assert_eq!(printed.matches(", BLAKE3 ").count(), 2, "{printed}");
        assert_eq!(printed.matches(" MiB above the ").count(), 4, "{printed}");
        assert!(printed.contains("ratio to plain messages"), "{printed}");
    }
    let printed = quick_run("memory");
    assert_eq!(printed.matches(", BLAKE3 ").count(), 1, "{printed}");
    assert!(printed.contains("round 1, memory: "), "{printed}");
}
