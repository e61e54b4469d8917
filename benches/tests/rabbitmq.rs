//! The program that measures RabbitMQ does not rot: it runs, in small, with all its workloads.

use std::process::Command;

#[test]
fn a_quick_run_measures_every_workload() {
    let run = Command::new(env!("CARGO_BIN_EXE_rabbitmq")).arg("--quick").output().expect("runs");
    let printed = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{printed}\n{}", String::from_utf8_lossy(&run.stderr));
    for workload in [
        "confirmed publish, Classic queue",
        "confirmed publish, Quorum queue",
        "consume and ack, Classic queue",
        "consume and ack, Quorum queue",
        "publisher to subscriber",
        "request and reply, 1 in flight",
        "request and reply, 128 in flight",
        "idle, 20 consumers",
    ] {
        assert!(printed.lines().any(|line| line.starts_with(workload)), "{workload}:\n{printed}");
    }
    let ratios = printed.lines().filter(|line| line.trim_start().starts_with("ratio to")).count();
    assert!(ratios >= 30, "{ratios} ratios:\n{printed}");
    assert!(!printed.contains("NaN"), "{printed}");
}
