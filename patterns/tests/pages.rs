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
            assert!(tests.contains(&format!("fn {name}(")), "there is no test '{name}'");
            answered += 1;
        }
    }
    assert!(answered > 30, "{answered} tests are named");
}
