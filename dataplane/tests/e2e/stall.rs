//! A receiver that does not read costs only itself.

use crate::lab::node::tx_drops;
use crate::lab::{End, Lab, MemifPod, Node, Realm, counts};

#[test]
fn a_stalled_receiver_costs_the_others_nothing() {
    let _lab = Lab::new();
    for workers in [1, 2] {
        let mut node = Node::local(workers);
        let blue = Realm::new("blue", 56, 1500);
        node.add_realm(&blue);
        let mut a = MemifPod::new(&mut node, &blue, 20);
        let mut good = MemifPod::new(&mut node, &blue, 21);
        let stalled = MemifPod::new(&mut node, &blue, 22);
        let ring = 1024;
        let rounds = 4 * ring;
        // Alternately to both, from the same ring; only the good one reads.
        for n in 0..rounds {
            let mark = format!("number {n:06}");
            let to_stalled = a.datagram(1, (stalled.at.ip4(), 2), mark.as_bytes());
            let to_good = a.datagram(1, (good.at.ip4(), 2), mark.as_bytes());
            a.inject(&to_stalled);
            a.inject(&to_good);
            if n % 32 == 31 {
                let seen = good.wait_marked(b"number", 32);
                assert_eq!(seen.len(), 32, "round {n}");
            }
        }
        counts("sent", rounds, || node.account(&good.at.id).tx_pkts);
        counts("sent or dropped", rounds, || {
            let bad = node.account(&stalled.at.id);
            bad.tx_pkts + tx_drops(&bad, "ring_full")
        });
        let (good, bad) = (node.account(&good.at.id), node.account(&stalled.at.id));
        assert!(good.tx_drops.is_empty(), "{good:?}");
        let full = tx_drops(&bad, "ring_full");
        assert!(bad.tx_pkts <= ring && full >= rounds - ring, "{bad:?}");
    }
}
