//! The program that measures RabbitMQ does not rot: it runs, in small, with all its workloads.

use std::process::Command;

fn quick_run(protocol: &str) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_rabbitmq"));
    let run = program.args(["--quick", "--protocol", protocol]).output().expect("runs");
    let printed = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success(), "{printed}\n{}", String::from_utf8_lossy(&run.stderr));
    assert!(!printed.contains("NaN"), "{printed}");
    printed
}

/// That the workloads were measured, with as many ratios at least.
fn has(printed: &str, workloads: &[&str], ratios: usize) {
    for workload in workloads {
        assert!(printed.lines().any(|line| line.starts_with(workload)), "{workload}:\n{printed}");
    }
    let there = printed.lines().filter(|line| line.trim_start().starts_with("ratio to")).count();
    assert!(there >= ratios, "{there} ratios:\n{printed}");
}

const OVER_BOTH: [&str; 5] = [
    "confirmed publish, Classic queue",
    "confirmed publish, Quorum queue",
    "consume and ack, Classic queue",
    "consume and ack, Quorum queue",
    "idle, 20 consumers",
];

// One test, because what measures is disturbed by what else measures.
#[test]
fn a_quick_run_measures_every_workload_over_both_protocols() {
    let printed = quick_run("amqp091");
    has(&printed, &OVER_BOTH, 30);
    let beside_lapin = [
        "publisher to subscriber",
        "request and reply, 1 in flight",
        "request and reply, 128 in flight",
    ];
    has(&printed, &beside_lapin, 30);
    has(&quick_run("amqp10"), &OVER_BOTH, 16);
}
