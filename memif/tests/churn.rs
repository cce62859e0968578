//! Nothing may pile up: descriptors and mappings are the same after a thousand attacks and a
//! thousand reconnects. One test only, because it counts what the whole process has open.

mod common;

use common::rogue::{ATTACKS, REGION_BYTES, Rogue, memory, raw_connect, run};
use common::{connect, listener, offer, payload, resources, unique_name, wait_for};
use memif::{Address, Answer, ClientConfig, Connector};
use std::time::Instant;

#[test]
fn a_thousand_attacks_and_reconnects_leave_nothing_behind() {
    let name = unique_name();
    let mut listener = listener(&name);
    let answer = Answer::Accept(offer());
    let mut connector = Connector::new(ClientConfig::new(Address::Abstract(name.clone()), 0));
    let mut cycle = |attacks: usize, reconnects: u32| {
        for attack in ATTACKS.iter().cycle().take(attacks) {
            let reason = run(attack, &name, &mut listener).to_string();
            assert!(reason.starts_with(attack.expect), "{}: {reason}", attack.name);
        }
        for _ in 0..attacks {
            drop(raw_connect(&name));
            // What the last ones brought may still be being closed, and count as half open.
            wait_for("an empty backlog", || {
                while listener.accept().unwrap().is_some() {}
                listener.retry_at().is_none().then_some(())
            });
        }
        for number in 0..reconnects {
            let (mut server, mut client) = connect(&mut listener, &mut connector, &answer);
            let frame = payload(number, 1500);
            assert!(client.tx()[0].send(&frame).unwrap());
            client.tx()[0].publish();
            let mut buffer = [0; 2048];
            assert_eq!(server.rx()[0].recv(&mut buffer), Ok(Some(1500)));
            assert!(buffer[..1500] == frame);
            // Half of them go without a word from the client, half without one from the server.
            if number % 2 == 0 {
                drop(client);
            } else {
                drop(server);
            }
            connector.lost(Instant::now());
            connector = Connector::new(ClientConfig::new(Address::Abstract(name.clone()), 0));
        }
        for _ in 0..reconnects / 10 {
            Rogue::establish(&name, &mut listener, &answer, memory(REGION_BYTES, true), 10);
        }
    };
    cycle(2 * ATTACKS.len(), 20);
    let before = resources();
    cycle(1000, 1000);
    // What is over is closed and unmapped by threads of its own.
    let as_before = || {
        let now = resources();
        (now.0 <= before.0 && now.1 <= before.1).then_some(())
    };
    wait_for("open descriptors and mappings of memory files to be as few as before", as_before);
}
