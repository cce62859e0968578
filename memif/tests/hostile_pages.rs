//! Pages that the peer has the kernel move.

mod common;

use common::huge::{Collapsible, HUGE_BYTES};
use common::rogue::{Rogue, memory};
use common::{listener, offer, unique_name, wait_for};
use memif::{Answer, Offer};
use nix::errno::Errno;
use std::os::unix::fs::FileExt;

/// While the kernel makes one page of many, whoever touches one of them sleeps: a worker must not.
#[test]
fn a_peer_cannot_have_pages_moved() {
    for require_sealed in [true, false] {
        let name = unique_name();
        let mut listener = listener(&name);
        let answer = Answer::Accept(Offer { require_sealed, ..offer() });
        let file = memory(HUGE_BYTES as u64, true);
        file.write_all_at(&[1; HUGE_BYTES], 0).unwrap();
        let peers = Collapsible::map(&file);
        let (rogue, connection) = Rogue::establish(&name, &mut listener, &answer, file, 6);
        for _ in 0..64 {
            assert!(peers.collapse().is_err(), "pages were moved under the server");
        }
        // Else the kernel would have refused for a reason of its own. Before Linux 6.1 it cannot do it, and
        // where memory is in pieces it has no huge page.
        drop((rogue, connection));
        wait_for("the pages to be free again", || match peers.collapse() {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOMEM) => Some(()),
            Err(_) => None,
        });
    }
}
