//! The shop as a process.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;

fn shop(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shop")).args(arguments).output().expect("the shop runs")
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("text")
}

/// The result of a run that succeeded.
fn result(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// A file of orders for one test.
fn file(name: &str, contents: &[u8]) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, contents).expect("a file for the test");
    path.display().to_string()
}

#[track_caller]
fn assert_figures(result: &Value, expected: &[(&str, u64)]) {
    for (name, figure) in expected {
        assert_eq!(result[name], *figure, "{name}");
    }
}

/// What must come out for the sample, counted from the file by other means.
const TRUTH: [(&str, u64); 14] = [
    ("orders", 6_919),
    ("customers", 2_357),
    ("completed", 6_906),
    ("refused_by_inventory", 9),
    ("refused_by_payment", 4),
    ("revenue_cents", 23_936_012),
    ("cds_shipped", 16_187),
    ("emails_sent", 6_919),
    ("reports", 545),
    // Each order is created; 6,906 are paid and shipped, 13 refused.
    ("events_published", 6_919 + 2 * 6_906 + 13),
    // Each order is to be reserved, 6,910 are to be charged, 4 released.
    ("rpc_calls", 6_919 + 6_910 + 4),
    ("duplicates", 0),
    ("left_over", 0),
    ("bad_lines", 0),
];

#[test]
fn the_sample_comes_out_true_in_both_codecs() {
    for codec in ["msgpack", "json"] {
        let output = shop(&["--json", "--codec", codec]);
        let result = result(&output);
        assert_figures(&result, &TRUTH);
        assert_eq!(result["codec"], codec);
        assert_eq!(result["transport"], "memory://local");
        assert!(result["elapsed_ms"].is_u64());
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn the_table_says_the_same_to_people() {
    let orders = file("table.txt", b"7 19970101 2 29.33\n8 19970102 21 99.00\n");
    let output = shop(&["--orders", &orders, "--broker", "memory://table"]);
    let table = text(&output.stdout);
    for row in [
        "orders                               2   2 customers, 1997-01-01 to 1997-01-02",
        "refused by inventory               1   more than 20 CDs",
        "revenue                         $29.33",
        "orders per second, over memory://table in msgpack",
    ] {
        assert!(table.contains(row), "{row}\n{table}");
    }
}

#[test]
fn bad_lines_are_told_and_the_rest_is_done() {
    let lines = b"1 0001 19970101 2 29.33\n1 19970230 2 1.00\n2 19970101 1 0.00\nnonsense\n\
        3 19970101 1 11.7.7\n\xff\n4 19970101 0 1.00\n";
    let orders = file("bad.txt", lines);
    let output = shop(&["--json", "--orders", &orders]);
    let expected = [("orders", 2), ("completed", 2), ("revenue_cents", 2_933), ("bad_lines", 5)];
    assert_figures(&result(&output), &expected);
    let told: Vec<_> = text(&output.stderr).lines().collect();
    let expected = [
        (2, "\"19970230\" is no date of the form yyyymmdd"),
        (4, "1 column; a purchase has 4 or 5"),
        (5, "\"11.7.7\" is no amount of dollars and cents"),
        (6, "the line is not UTF-8 text"),
        (7, "\"0\" is no number of CDs from 1"),
    ];
    assert_eq!(told, expected.map(|(line, problem)| format!("{orders}:{line}: {problem}")));
}

#[test]
fn the_format_of_the_full_data_set_is_read() {
    let lines = b" customer_id  date number_of_cds  dollar_value\n 00001 19970101  1   11.77\n \
        00002 19970112  1   12.00\n 00002 19970112  5  377.00\n";
    let output = shop(&["--json", "--orders", &file("master.txt", lines)]);
    let expected = [("orders", 3), ("customers", 2), ("completed", 2), ("refused_by_payment", 1)];
    assert_figures(&result(&output), &expected);
    assert_figures(&result(&output), &[("revenue_cents", 2_377), ("reports", 2)]);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn an_empty_file_is_no_orders() {
    let output = shop(&["--json", "--orders", &file("empty.txt", b"")]);
    assert_figures(&result(&output), &[("orders", 0), ("emails_sent", 0), ("reports", 0)]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = shop(&["--orders", "no/such/file.txt"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.starts_with("shop: cannot read no/such/file.txt: No such file"), "{error}");
}

#[test]
fn what_is_not_known_is_refused_with_what_is() {
    for (option, value, possible) in [
        ("--broker", "pigeon://me:secret@loft", "no transport for 'pigeon://'; it has memory://"),
        ("--broker", "me:secret@loft", "no URL of a broker; it begins with memory://"),
        ("--codec", "xml", "no codec is named 'xml'; there are msgpack and json"),
    ] {
        let output = shop(&[option, value]);
        assert_eq!(output.status.code(), Some(2), "{option} {value}");
        let error = text(&output.stderr);
        assert!(error.contains(possible) && !error.contains("secret"), "{error}");
    }
}
