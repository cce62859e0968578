//! docs/spiderpool.md: every id of the catalogue has its row, and every test that a row names exists.
#![allow(missing_docs, reason = "a test has no users")]

use std::collections::BTreeSet;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn page() -> String {
    std::fs::read_to_string(root().join("docs/spiderpool.md")).unwrap()
}

/// A test of its own; or a part of one, which somebody calls; or a case of the cluster's suite.
fn is_run(file: &str, text: &str, function: &str) -> bool {
    let Some(at) = text.find(&format!("fn {function}(")) else { return false };
    let before = text[..at].trim_end_matches(|c: char| c != '\n');
    let last = before.lines().rev().take_while(|line| !line.trim().is_empty());
    let mut attributes = last.filter(|line| line.trim().starts_with("#["));
    if attributes.any(|line| line.contains("test]") || line.contains("::test(")) {
        return true;
    }
    let called = text.matches(&format!("{function}(")).count()
        > text.matches(&format!("fn {function}(")).count();
    let module = Path::new(file).file_stem().unwrap().to_str().unwrap();
    let suite = std::fs::read_to_string(root().join("deploy/e2e/tests/cluster/main.rs")).unwrap();
    called || (file.starts_with("deploy/e2e/") && suite.contains(&format!("{module}::{function}")))
}

#[test]
fn every_test_that_is_named_runs() {
    let page = page();
    let mut found = 0;
    for name in page.split('`').skip(1).step_by(2) {
        let Some((file, function)) = name.split_once("::") else { continue };
        let text =
            std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(is_run(file, &text, function), "{file} has no test {function}, or nobody runs it");
        found += 1;
    }
    assert!(found > 100, "only {found} tests are named");
}

#[test]
fn every_row_names_a_test_or_says_why_not() {
    for line in page().lines().filter(|l| l.starts_with("| ") && !l.starts_with("| **")) {
        let cells: Vec<&str> = line.trim_matches(['|', ' ']).split(" | ").collect();
        let [id, _, shown] = cells[..] else { continue };
        if id.as_bytes().get(1).is_some_and(u8::is_ascii_digit) {
            let names_a_test = shown.contains(".rs::");
            assert!(names_a_test || shown.starts_with("Does not apply: "), "{id}: {shown}");
        }
    }
}

/// Letters of the catalogue with the highest number of each, as upstream counts them; holes are
/// numbers that upstream does not use.
const IDS: [(&str, u32, &[u32]); 17] = [
    ("E", 10, &[]),
    ("L", 9, &[]),
    ("A", 18, &[]),
    ("D", 17, &[]),
    ("S", 4, &[]),
    ("I", 24, &[]),
    ("T", 5, &[]),
    ("G", 12, &[]),
    ("R", 7, &[]),
    ("P", 2, &[1]),
    ("F", 3, &[]),
    ("K", 2, &[]),
    ("H", 1, &[]),
    ("C", 24, &[]),
    ("V", 11, &[]),
    ("M", 40, &[18]),
    ("N", 6, &[]),
];

#[test]
fn every_id_has_one_row() {
    let page = page();
    let rows: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" |").map(|(id, _)| id))
        .collect();
    let mut seen = BTreeSet::new();
    for row in rows.iter().filter(|r| r.as_bytes().get(1).is_some_and(u8::is_ascii_digit)) {
        assert!(seen.insert(*row), "{row} has two rows");
    }
    for (letter, last, holes) in IDS {
        for n in (1..=last).filter(|n| !holes.contains(n)) {
            let id = format!("{letter}{n:05}");
            assert!(seen.contains(id.as_str()), "{id} has no row");
        }
    }
}
