//! What the guides name is there.

use std::{fs, path::Path};

/// The sources below a folder, as one text.
fn sources(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all += &fs::read_to_string(path).expect("a source");
        }
    }
    all
}

/// Whether there is a function of that name that is a test itself or is in a list of tests.
fn is_run(sources: &str, name: &str) -> bool {
    let Some(at) = sources.find(&format!("fn {name}(")) else { return false };
    let before = sources[..at].lines().rev().take(3);
    let is_test =
        before.filter(|line| line.trim_start().starts_with("#[")).any(|line| line.contains("test"));
    let is_word = |(place, _): &(usize, &str)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        !sources[..*place].ends_with(is_part) && !sources[place + name.len()..].starts_with(is_part)
    };
    is_test || sources.match_indices(name).filter(is_word).count() > 1
}

/// A complaint counts as answered by the tests in the last column of its row.
#[test]
fn every_complaint_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let page = fs::read_to_string(root.join("docs/complaints.md")).expect("the page");
    let folders = ["patterns/tests", "testkit/src", "examples/tests"];
    let tests = folders.map(|folder| sources(&root.join(folder))).concat();
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| **"));
    let mut answered = 0;
    for row in rows.skip(1) {
        let column = row.trim_end_matches(" |").rsplit(" | ").next().expect("a column");
        let names: Vec<_> = column.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test for: {row}");
        for name in names {
            assert!(is_run(&tests, name), "there is no test '{name}', or nobody runs it");
            answered += 1;
        }
    }
    assert!(answered > 30, "{answered} tests are named");
}
