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

#[test]
fn every_test_that_is_named_exists() {
    let page = page();
    let mut found = 0;
    for name in page.split('`').skip(1).step_by(2) {
        let Some((file, function)) = name.split_once("::") else { continue };
        let text =
            std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(text.contains(&format!("fn {function}(")), "{file} has no test {function}");
        found += 1;
    }
    assert!(found > 100, "only {found} tests are named");
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
