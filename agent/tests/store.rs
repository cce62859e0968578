//! The directory store: the suite that every store must pass. `BOWLINE_STORE_FULL=1`: a hundred agents with
//! ten pods each.

use std::path::Path;

use agent::catalog::Directory;
use judge::Version;
use multinet::conformance::{self, BlockOn, Crowd, Ground};
use tempfile::TempDir;

/// In memory where there is such a place: every write waits for the disk.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

fn is_full() -> bool {
    std::env::var_os("BOWLINE_STORE_FULL").is_some()
}

fn step() -> usize {
    if is_full() { 1 } else { 8 }
}

/// A handle of an agent of its own: nothing is shared but the files.
fn open(directory: &TempDir) -> Directory {
    Directory::open(directory.path()).unwrap()
}

const BLOCK_ON: BlockOn<'_> = &|future| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future);
};

#[test]
fn the_directory_store_conforms() {
    let directory = directory();
    let open = || open(&directory);
    conformance::check(Ground { open: &open, block_on: BLOCK_ON, history: None, step: step() });
}

#[test]
fn as_many_pods_as_addresses() {
    let (agents, pods) = if is_full() { (100, 10) } else { (12, 1) };
    let directory = directory();
    let open = || open(&directory);
    let ground = Ground { open: &open, block_on: BLOCK_ON, history: None, step: step() };
    conformance::crowd(ground, Crowd { agents, pods, interfaces: 3, trouble_every: 17 });
    // The files themselves, read by nobody of ours.
    let files = std::fs::read_dir(directory.path().join("AddressBlock")).unwrap();
    let mut addresses = 0;
    for file in files {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let object = serde_yaml_ng::from_str(&text).unwrap();
        let entries = Version::of(&object).entries;
        addresses += entries.len();
        let held: Vec<_> = entries.into_iter().filter(|(_, holder)| holder.is_some()).collect();
        assert!(held.is_empty(), "leaked: {held:?}");
    }
    assert_eq!(addresses, (agents * pods * 2 * 3) as usize, "every address was given once");
}
