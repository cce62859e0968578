//! Bowline on a real two-node Kubernetes, installed from its chart as the only CNI. One cluster for
//! all cases; `cargo test -p bowline-e2e --test cluster -- WORD` runs those whose name holds WORD. `KEEP=1` leaves the cluster running, and takes one that runs.

mod automatic;
mod chart;
mod deaths;
mod documents;
mod lifecycle;
mod migration;
mod networks;
mod power;
mod reclaim;
mod services;
mod third_party;
mod tokens;
mod traffic;
mod wild;
mod workloads;

use std::time::Instant;

use bowline_e2e::Cluster;

type Case = (&'static str, fn(&Cluster) -> anyhow::Result<()>);

/// What needs no cluster.
const BEFORE: &[Case] = &[
    ("the_chart_is_clean", chart::is_clean),
    ("nonsense_is_refused", chart::nonsense_is_refused),
    ("values_reach_their_places", chart::values_reach_their_places),
    ("plain_yaml_is_fresh", chart::plain_yaml_is_fresh),
    ("dockerfiles_run_the_image_script", chart::dockerfiles_run_the_image_script),
    ("the_controllers_image_needs_no_root", chart::the_controllers_image_needs_no_root),
];

/// What runs in it, one stage after the other. The lanes of a stage share the cluster at the same time: their
/// cases mostly wait for kubelets, and touch nothing of each other's.
const INSIDE: &[&[&[Case]]] = &[
    &[&[("every_part_runs", lifecycle::every_part_runs)]],
    &[
        &[
            ("services_reach_pods", services::one_of_each),
            ("other_plugins_tell_their_prefixes", third_party::other_plugins_tell_their_prefixes),
            ("wild_manifests_hurt_nobody", wild::nobody_else_is_hurt),
            ("macvlan_takes_bowlines_addresses", networks::macvlan),
        ],
        &[
            ("a_deployments_pods_reach_each_other", workloads::deployment),
            ("a_stateful_set_keeps_its_addresses", workloads::stateful_set),
            ("a_daemon_set_is_on_every_node", workloads::daemon_set),
            ("probes_logs_exec_and_the_node_reach_eth0", workloads::node_reaches_pods),
            ("a_pod_reaches_the_api_server", workloads::api_server),
            ("a_pod_of_very_long_yaml_runs", workloads::very_long_yaml),
            ("both_families_and_large_datagrams", traffic::both_families_and_large_datagrams),
            ("local_policy_keeps_the_client", traffic::local_policy_keeps_the_client),
            ("every_kind_has_its_pool", automatic::every_kind_has_its_pool),
        ],
        &[
            ("twins_on_two_networks_never_meet", networks::isolation),
            ("forged_tunnels_enter_no_network", traffic::forged_tunnels_enter_no_network),
            ("a_memif_serves_a_client", networks::memif),
            ("clone_sets_have_pools", third_party::clone_sets_have_pools),
            ("machines_keep_their_addresses", third_party::machines_keep_their_addresses),
            ("machines_migrate", migration::machines_migrate),
        ],
    ],
    // From here on each case changes the nodes: their CNI, their processes, their power.
    &[&[
        ("multus_attaches_a_memif", networks::multus),
        ("documents_are_applied_as_they_are", documents::are_applied_as_they_are),
        ("documents_underlay_pods_reach_services", documents::underlay_pods_reach_services),
        ("documents_addresses_follow_the_zone", documents::addresses_follow_the_zone),
        ("documents_excerpts_come_true", documents::excerpts_come_true),
        ("documents_go_without_a_trace", documents::go_without_a_trace),
        ("nothing_is_asked_for_without_a_grant", tokens::grants_suffice),
        ("a_nodes_token_is_worth_its_node", tokens::worth_its_node),
        ("addresses_come_back", reclaim::addresses_come_back),
        ("pods_come_and_go_while_processes_die", deaths::one_by_one),
        ("a_power_cut_leaks_no_address", power::cut_and_reboot),
        ("a_crash_of_all_but_the_kernel_leaks_none", power::crash_of_all_but_the_kernel),
        ("upgrade_and_rollback", lifecycle::upgrade_and_rollback),
        ("uninstall_leaves_nothing", lifecycle::uninstall),
        ("a_second_installation_takes_other_values", lifecycle::other_values),
        // What the cases above did is what the chart grants.
        ("every_right_is_used", tokens::grants_are_needed),
    ]],
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |case: &Case| words.is_empty() || words.iter().any(|w| case.0.contains(w));
    let cluster =
        Cluster::named(&std::env::var("BOWLINE_CLUSTER").unwrap_or("bowline-test".into()));
    let mut failed = run(&cluster, BEFORE, &wanted);
    if INSIDE.iter().flat_map(|stage| stage.iter()).any(|lane| lane.iter().any(wanted)) {
        match start(&cluster) {
            Ok(()) => failed
                .extend(INSIDE.iter().flat_map(|stage| side_by_side(&cluster, stage, &wanted))),
            Err(error) => {
                println!("{error:#}");
                failed.push("the_cluster_starts");
            }
        }
        if !failed.is_empty() {
            println!("{}", state(&cluster));
        }
        if !keep() {
            cluster.run("down.sh", &[]).expect("the cluster's remains can be removed");
        }
    }
    if !failed.is_empty() {
        println!("\ntest result: FAILED: {}", failed.join(", "));
        std::process::exit(1);
    }
    println!("\ntest result: ok.");
}

fn keep() -> bool {
    std::env::var_os("KEEP").is_some()
}

fn start(cluster: &Cluster) -> anyhow::Result<()> {
    if keep() && cluster.kubectl("get nodes").is_ok() {
        return Ok(());
    }
    let begun = Instant::now();
    cluster.run("cluster.sh", &["installed"])?;
    println!("the cluster runs after {:.1} s", begun.elapsed().as_secs_f32());
    Ok(())
}

/// The lanes of a stage at the same time; the names of the cases that failed.
fn side_by_side(
    cluster: &Cluster,
    lanes: &[&[Case]],
    wanted: &(impl Fn(&Case) -> bool + Sync),
) -> Vec<&'static str> {
    std::thread::scope(|scope| {
        let start = |lane| scope.spawn(move || run(cluster, lane, wanted));
        let running: Vec<_> = lanes.iter().map(|lane| start(*lane)).collect();
        running.into_iter().flat_map(|r| r.join().expect("cases do not panic")).collect()
    })
}

/// One case after the other; the names of those that failed.
fn run(cluster: &Cluster, cases: &[Case], wanted: &impl Fn(&Case) -> bool) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for (name, case) in cases.iter().filter(|case| wanted(case)) {
        let begun = Instant::now();
        let result = case(cluster);
        let seconds = begun.elapsed().as_secs_f32();
        match result {
            Ok(()) => println!("test {name} ... ok ({seconds:.1} s)"),
            Err(error) => {
                println!("test {name} ... FAILED ({seconds:.1} s)\n{error:#}");
                failed.push(*name);
            }
        }
    }
    failed
}

/// What a person would look at first.
fn state(cluster: &Cluster) -> String {
    let looks = [
        "get nodes,pods -A -o wide",
        "get networks,nodestates,addressblocks,spiderippools",
        "get events -A --field-selector type=Warning",
        "-n bowline-system logs -l app.kubernetes.io/component=agent --tail=15",
        "-n bowline-system logs -l app.kubernetes.io/component=controller --tail=20",
    ];
    let look = |words: &&str| {
        let said = cluster.kubectl(words).unwrap_or_else(|error| format!("{error:#}"));
        format!("== kubectl {words}\n{said}")
    };
    looks.iter().map(look).collect::<Vec<_>>().join("\n")
}
