//! Who reaches whom: every ordered pair of pods, in both families.

use crate::catalog::Network;
use crate::lab::shell;
use crate::pod::Pod;
use crate::report::Report;
use bowline_pktgen::endpoint::Endpoint;
use bowline_pktgen::ping::{PingPlan, ping};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// An address that exists in red alone.
const RED_ONLY: [&str; 2] = ["10.0.0.99", "fd00::99"];
/// How long a pod asks whom it must reach, and whom it must not.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_IN_VAIN: Duration = Duration::from_secs(1);
/// Between two requests.
const EVERY: Duration = Duration::from_millis(100);

/// What one pod asked of another.
#[derive(Debug)]
struct Question<'a> {
    from: &'a Pod,
    to: String,
    dst: IpAddr,
    patience: Duration,
}

/// Pings between all pairs of a Network, and from blue to an address that only red has. `when` ends
/// the checks' names.
///
/// # Errors
/// A pod cannot be entered.
pub fn check(pods: &[Pod], when: &str, report: &mut Report) -> anyhow::Result<()> {
    for network in Network::ALL {
        for ipv4 in [true, false] {
            check_pairs(pods, (network, ipv4), when, report)?;
        }
    }
    for dst in RED_ONLY {
        let dst: IpAddr = dst.parse()?;
        let blue = pods.iter().filter(|p| p.plan.network == Network::Blue);
        let patience = PATIENCE_IN_VAIN;
        let questions: Vec<_> =
            blue.map(|from| Question { from, to: format!("red's {dst}"), dst, patience }).collect();
        let silent = ask_all(&questions)?.len();
        let (all, found) = (questions.len(), questions.len() - silent);
        let name = format!("reach: blue to {dst} of red alone{when}");
        let expected = format!("0 of {all} answered");
        report.check(&name, &expected, &format!("{found} of {all} answered"), found == 0);
    }
    Ok(())
}

fn check_pairs(
    pods: &[Pod],
    (network, ipv4): (Network, bool),
    when: &str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let members: Vec<&Pod> = pods.iter().filter(|p| p.plan.network == network).collect();
    let mut questions = vec![];
    for from in &members {
        for to in members.iter().filter(|to| to.plan.name != from.plan.name) {
            let (name, dst) = (to.plan.name.into(), to.address(ipv4)?);
            questions.push(Question { from, to: name, dst, patience: PATIENCE });
        }
    }
    let silent = ask_all(&questions)?;
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    let name = format!("reach: {} pods, all pairs, {family}{when}", network.name());
    let all = questions.len();
    let found = format!("{} of {all} pairs", all - silent.len());
    report.check(&name, &format!("{all} of {all} pairs"), &found, silent.is_empty());
    for Question { from, to, dst, .. } in silent {
        println!("    no answer: {} to {to} ({dst})", from.plan.name);
    }
    Ok(())
}

/// Asks from all pods at once; the answer lists those that stayed silent.
fn ask_all<'q, 'p>(questions: &'q [Question<'p>]) -> anyhow::Result<Vec<&'q Question<'p>>> {
    let mut by_source: Vec<Vec<&Question<'_>>> = vec![];
    for question in questions {
        match by_source.iter_mut().find(|l| l[0].from.plan.name == question.from.plan.name) {
            Some(list) => list.push(question),
            None => by_source.push(vec![question]),
        }
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            by_source.iter().map(|list| scope.spawn(move || ask_in_turn(list))).collect();
        let mut silent = vec![];
        for thread in threads {
            silent.extend(thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?);
        }
        Ok(silent)
    })
}

fn ask_in_turn<'q, 'p>(questions: &[&'q Question<'p>]) -> anyhow::Result<Vec<&'q Question<'p>>> {
    let mut silent = vec![];
    for &question in questions {
        let answered = match &question.from.station {
            None => ask_from_tap(question),
            Some(station) => ask_from_memif(question, &mut station.borrow()),
        };
        if !answered {
            silent.push(question);
        }
    }
    Ok(silent)
}

fn ask_from_memif(question: &Question<'_>, endpoint: &mut Endpoint) -> bool {
    let deadline = Instant::now() + question.patience;
    let plan = PingPlan {
        dst: question.dst,
        count: 1,
        interval: EVERY,
        payload_bytes: 56,
        patience: EVERY,
    };
    loop {
        // A neighbour that nobody answers for is silence, too.
        if ping(endpoint, &plan).is_ok_and(|report| report.received > 0) {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
    }
}

fn ask_from_tap(question: &Question<'_>) -> bool {
    let (netns, dst) = (question.from.netns.name(), question.dst);
    // Asks on until one answer has come, or the time is over.
    let (every, limit) = (EVERY.as_secs_f64(), question.patience.as_secs());
    shell::run(&format!("ip netns exec {netns} ping -n -q -c 1 -i {every} -w {limit} {dst}"))
        .is_ok()
}
