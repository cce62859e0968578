//! The plugin against an agent that the test plays: what goes in, what the agent is asked, what comes
//! out, for every command and version.
#![allow(missing_docs, reason = "a test has no users")]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cni::call::Environment;
use cni::error::{CniError, code};
use cni::plugin::{Answer, run};
use cni::result::{CniResult, Interface, IpConfig, Route, SUPPORTED_VERSIONS};
use cni::rpc::{CallMode, Command, Outcome, Request, Response};
use cni::tombstone;
use serde_json::{Value, json};

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Bench { folder: tempfile::tempdir().unwrap() }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("cni.sock")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn config(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "cluster", "type": "bowline",
            "agentSocket": self.socket(), "stateDir": self.state(),
        })
    }

    /// An agent that answers one call with `answer` and returns the request.
    fn agent(&self, answer: Vec<u8>) -> JoinHandle<Request> {
        let listener = UnixListener::bind(self.socket()).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut text = Vec::new();
            stream.read_to_end(&mut text).unwrap();
            stream.write_all(&answer).unwrap();
            serde_json::from_slice(&text).unwrap()
        })
    }
}

fn environment(command: &str) -> Environment {
    let variables = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_NETNS", "/run/netns/pod"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1;\
             K8S_POD_INFRA_CONTAINER_ID=c0ffee",
        ),
    ];
    let variables = variables.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    Environment { variables, program: "bowline".into() }
}

fn call(environment: &Environment, config: &Value) -> Answer {
    run(environment, Ok(config.to_string().as_bytes()))
}

fn stdout(answer: &Answer) -> Value {
    serde_json::from_str(&answer.stdout).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
}

fn bytes(outcome: Outcome) -> Vec<u8> {
    serde_json::to_vec(&Response::new(outcome)).unwrap()
}

/// Every field that some version does not have.
fn full_result() -> CniResult {
    CniResult {
        cni_version: "1.1.0".into(),
        interfaces: vec![Interface {
            name: "memif1".into(),
            mac: "0e:00:00:00:00:01".into(),
            mtu: Some(1450),
            sandbox: "/run/netns/pod".into(),
            socket_path: "@memif1".into(),
            pci_id: String::new(),
        }],
        ips: vec![
            IpConfig {
                address: "10.0.0.5/24".into(),
                gateway: Some("10.0.0.1".into()),
                interface: Some(0),
            },
            IpConfig { address: "fd00::5/64".into(), gateway: None, interface: Some(0) },
        ],
        routes: vec![Route {
            dst: "0.0.0.0/0".into(),
            gw: Some("10.0.0.1".into()),
            mtu: Some(1400),
            table: Some(100),
            ..Route::default()
        }],
        ..CniResult::default()
    }
}

#[test]
fn add_prints_the_result_in_the_version_asked_for() {
    let golden = |version: &str| {
        let mut interface =
            json!({"name": "memif1", "mac": "0e:00:00:00:00:01", "sandbox": "/run/netns/pod"});
        let mut v4 = json!({"address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 0});
        let mut v6 = json!({"address": "fd00::5/64", "interface": 0});
        let mut route = json!({"dst": "0.0.0.0/0", "gw": "10.0.0.1"});
        if version == "1.1.0" {
            interface["mtu"] = 1450.into();
            interface["socketPath"] = "@memif1".into();
            route["mtu"] = 1400.into();
            route["table"] = 100.into();
        }
        if version.starts_with("0.") {
            v4["version"] = "4".into();
            v6["version"] = "6".into();
        }
        json!({"cniVersion": version, "interfaces": [interface], "ips": [v4, v6], "routes": [route]})
    };
    for version in SUPPORTED_VERSIONS {
        let bench = Bench::new();
        let agent = bench.agent(bytes(Outcome::Result(full_result())));
        let answer = call(&environment("ADD"), &bench.config(version));
        assert!(answer.success, "{answer:?}");
        assert_eq!(stdout(&answer), golden(version), "{version}");
        // What was printed comes back as prevResult and is read without loss of what it says.
        let back = CniResult::from_value(&golden(version)).unwrap();
        assert_eq!(back.to_version(version), Some(golden(version)));
        let request = agent.join().unwrap();
        assert_eq!((request.command, request.mode), (Command::Add, CallMode::Interface));
    }
}

#[test]
fn the_agent_is_told_everything_that_the_runtime_said() {
    let bench = Bench::new();
    let agent = bench.agent(bytes(Outcome::Result(full_result())));
    let mut config = bench.config("1.0.0");
    config["network"] = "blue".into();
    config["interface"] = json!({"type": "memif", "rxQueues": 2});
    config["runtimeConfig"] = json!({
        "mac": "0e:11:22:33:44:55", "ips": ["10.0.0.9/24"], "CNIDeviceInfoFile": "/run/info",
        "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}],
    });
    config["prevResult"] = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}]});
    config["somethingNew"] = json!({"a": [1]});
    assert!(call(&environment("ADD"), &config).success);
    let request = agent.join().unwrap();
    assert_eq!(request.container_id, "c0ffee");
    assert_eq!(request.netns, "/run/netns/pod");
    assert_eq!(request.ifname, "eth0");
    let pod = &request.pod;
    assert_eq!(
        (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()),
        ("shop", "web-0", "u-1")
    );
    assert_eq!(request.config.network, "blue");
    assert_eq!(request.config.interface.as_ref().unwrap().rx_queues, Some(2));
    let runtime = request.config.runtime_config.as_ref().unwrap();
    assert_eq!(runtime.port_mappings[0].container_port, 8080);
    assert_eq!(runtime.device_info_file.as_deref(), Some("/run/info"));
    assert_eq!(request.prev_result.unwrap().interfaces[0].name, "eth0");
    assert_eq!(request.config.other["somethingNew"], json!({"a": [1]}));
}

#[test]
fn other_commands_print_nothing_and_ask_the_agent() {
    let expected = [
        ("DEL", Command::Del),
        ("CHECK", Command::Check),
        ("GC", Command::Gc),
        ("STATUS", Command::Status),
    ];
    for (name, command) in expected {
        let bench = Bench::new();
        let agent = bench.agent(bytes(Outcome::Done));
        let mut config = bench.config("1.1.0");
        config["prevResult"] = full_result().to_version("1.1.0").unwrap();
        config["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
        let answer = call(&environment(name), &config);
        assert_eq!(answer, Answer { stdout: String::new(), stderr: String::new(), success: true });
        let request = agent.join().unwrap();
        assert_eq!(request.command, command);
        let valid = request.config.valid_attachments.unwrap();
        assert_eq!((valid[0].container_id.as_str(), valid[0].ifname.as_str()), ("a", "eth0"));
    }
}

#[test]
fn version_needs_no_agent_and_no_configuration() {
    for (stdin, version) in [
        (r#"{"cniVersion": "0.4.0"}"#, "0.4.0"),
        ("", "1.1.0"),
        (r#"{"cniVersion": "9"}"#, "1.1.0"),
    ] {
        let answer = run(&environment("VERSION"), Ok(stdin.as_bytes()));
        assert!(answer.success);
        let expected = json!({"cniVersion": version, "supportedVersions": SUPPORTED_VERSIONS});
        assert_eq!(stdout(&answer), expected);
    }
}

#[test]
fn the_agents_error_is_printed_with_its_code() {
    let bench = Bench::new();
    let error = CniError::new(code::NO_ADDRESS, "no address for eth0 of pod shop/web-0")
        .with_details("pool blue-v4 is used up (64 of 64 held)");
    let agent = bench.agent(bytes(Outcome::Error(error)));
    let answer = call(&environment("ADD"), &bench.config("0.4.0"));
    assert!(!answer.success);
    let expected = json!({
        "cniVersion": "0.4.0", "code": 101, "msg": "no address for eth0 of pod shop/web-0",
        "details": "pool blue-v4 is used up (64 of 64 held)",
    });
    assert_eq!(stdout(&answer), expected);
    agent.join().unwrap();
}

#[test]
fn without_agent_add_waits_status_says_so_and_del_leaves_a_tombstone() {
    let bench = Bench::new();
    let config = bench.config("1.1.0");
    for (command, expected) in [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)] {
        let mut config = config.clone();
        config["prevResult"] = json!({"cniVersion": "1.1.0"});
        let answer = call(&environment(command), &config);
        assert!(!answer.success);
        let error = stdout(&answer);
        assert_eq!(error["code"], expected, "{command}");
        let msg = error["msg"].as_str().unwrap();
        assert!(msg.contains("is bowline-agent running?"), "{msg}");
    }
    assert_eq!(tombstone::read_all(&bench.state()).unwrap().len(), 0);
    for _ in 0..2 {
        let answer = call(&environment("DEL"), &config);
        assert!(answer.success && answer.stdout.is_empty(), "{answer:?}");
    }
    let found = tombstone::read_all(&bench.state()).unwrap();
    assert_eq!(found.len(), 1);
    let request = found[0].1.as_ref().unwrap();
    assert_eq!((request.command, request.container_id.as_str()), (Command::Del, "c0ffee"));
    assert_eq!(found[0].0, tombstone::path_of(&bench.state(), request));
}

#[test]
fn a_del_that_cannot_be_noted_fails_so_that_the_runtime_repeats_it() {
    let bench = Bench::new();
    std::fs::write(bench.state(), "a file where the folder should be").unwrap();
    let answer = call(&environment("DEL"), &bench.config("1.1.0"));
    assert!(!answer.success);
    assert_eq!(stdout(&answer)["code"], 11);
}

#[test]
fn half_written_tombstones_are_skipped_and_broken_ones_named() {
    let bench = Bench::new();
    let folder = bench.state().join(tombstone::FOLDER);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(".c0ffee.12"), "{\"ver").unwrap();
    std::fs::write(folder.join("beef:eth0.json"), "{\"ver").unwrap();
    let found = tombstone::read_all(&bench.state()).unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].0.ends_with("beef:eth0.json") && found[0].1.is_err());
}

#[test]
fn an_agent_that_talks_nonsense_is_an_error_not_a_result() {
    let newer = json!({"version": 2, "outcome": "done"}).to_string().into_bytes();
    for (answer, word) in [
        (b"".to_vec(), "broke off"),
        (b"{\"version\": 1".to_vec(), "something else than a response"),
        (newer, "install the plugin"),
        (bytes(Outcome::Done), "without a result"),
    ] {
        let bench = Bench::new();
        let agent = bench.agent(answer);
        let answer = call(&environment("ADD"), &bench.config("1.1.0"));
        assert!(!answer.success);
        let msg = stdout(&answer)["msg"].to_string();
        assert!(msg.contains(word), "{msg}");
        agent.join().unwrap();
    }
}

#[test]
fn a_hanging_agent_costs_the_time_limit_and_no_more() {
    let bench = Bench::new();
    let listener = UnixListener::bind(bench.socket()).unwrap();
    let environment = environment("STATUS");
    let cni::call::Step::Ask(ask) =
        cni::call::prepare(&environment, bench.config("1.1.0").to_string().as_bytes()).unwrap()
    else {
        panic!("STATUS asks the agent")
    };
    let begin = Instant::now();
    let limit = Duration::from_millis(200);
    let error = cni::client::ask(&ask.socket, &ask.request, limit).unwrap_err();
    assert!(matches!(error, cni::client::ClientError::Slow { .. }), "{error}");
    assert!(begin.elapsed() >= limit && begin.elapsed() < Duration::from_secs(5));
    drop(listener);
}

#[test]
fn bad_input_is_refused_with_the_name_of_the_field() {
    let bench = Bench::new();
    let good = bench.config("1.1.0");
    let with = |key: &str, value: &str| {
        let mut environment = environment("ADD");
        environment.variables.insert(key.into(), value.into());
        environment
    };
    let env_cases = [
        (with("CNI_COMMAND", ""), "CNI_COMMAND"),
        (with("CNI_COMMAND", "PURGE"), "PURGE"),
        (with("CNI_CONTAINERID", ""), "CNI_CONTAINERID"),
        (with("CNI_CONTAINERID", "../../etc"), "CNI_CONTAINERID"),
        (with("CNI_CONTAINERID", &"a".repeat(201)), "CNI_CONTAINERID"),
        (with("CNI_IFNAME", "a-name-too-long1"), "CNI_IFNAME"),
        (with("CNI_IFNAME", "eth/0"), "CNI_IFNAME"),
        (with("CNI_IFNAME", ".."), "CNI_IFNAME"),
        (with("CNI_NETNS", ""), "CNI_NETNS"),
        (with("CNI_NETNS", "run/netns/x"), "CNI_NETNS"),
        (with("CNI_ARGS", "K8S_POD_NAME"), "CNI_ARGS"),
        (with("CNI_ARGS", &"a".repeat(20_000)), "CNI_ARGS"),
    ];
    for (environment, word) in env_cases {
        let answer = call(&environment, &good);
        assert!(!answer.success);
        assert_eq!(stdout(&answer)["code"], 4, "{answer:?}");
        assert!(answer.stdout.contains(word), "{answer:?}");
    }
    let config = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        config
    };
    for (config, code, word) in [
        (config("cniVersion", "0.2.0".into()), 1, "0.2.0"),
        (config("cniVersion", 3.into()), 6, "stdin"),
        (config("name", "".into()), 7, "name"),
        (config("name", "a/b".into()), 7, "a/b"),
        (config("agentSocket", "cni.sock".into()), 7, "agentSocket"),
        (config("stateDir", "x".into()), 7, "stateDir"),
        (config("interface", json!({"rxqueues": 1})), 6, "rxqueues"),
        (config("prevResult", json!({"cniVersion": "7"})), 6, "prevResult"),
    ] {
        let answer = call(&environment("ADD"), &config);
        assert!(!answer.success);
        assert_eq!(stdout(&answer)["code"], code, "{answer:?}");
        assert!(answer.stdout.contains(word), "{answer:?}");
    }
    let no_prev = call(&environment("CHECK"), &good);
    assert_eq!(stdout(&no_prev)["code"], 7);
}

#[test]
fn a_del_survives_what_an_add_is_refused_for() {
    let bench = Bench::new();
    let agent = bench.agent(bytes(Outcome::Done));
    let mut environment = environment("DEL");
    environment.variables.insert("CNI_NETNS".into(), String::new());
    environment.variables.insert("CNI_ARGS".into(), "nonsense".into());
    let mut config = bench.config("0.3.1");
    config["prevResult"] = json!({"cniVersion": "0.1.0"});
    assert!(call(&environment, &config).success);
    assert_eq!(agent.join().unwrap().netns, "");
}

#[test]
fn the_name_of_the_program_decides_the_mode() {
    let bench = Bench::new();
    for (program, mode) in [
        ("bowline", CallMode::Interface),
        ("bowline-ipam", CallMode::Ipam),
        ("spiderpool", CallMode::Ipam),
        ("coordinator", CallMode::Coordinator),
        ("ifacer", CallMode::Ifacer),
    ] {
        let mut environment = environment("ADD");
        environment.program = program.into();
        let config = bench.config("1.0.0").to_string();
        match cni::call::prepare(&environment, config.as_bytes()).unwrap() {
            cni::call::Step::Ask(ask) => assert_eq!(ask.request.mode, mode, "{program}"),
            step => panic!("{step:?}"),
        }
    }
}

#[test]
fn each_plugin_of_a_chain_leaves_its_own_tombstone() {
    let bench = Bench::new();
    for kind in ["bowline", "spiderpool", "coordinator", "ifacer"] {
        let mut config = bench.config("1.0.0");
        config["type"] = kind.into();
        let answer = call(&environment("DEL"), &config);
        assert!(answer.success && answer.stdout.is_empty(), "{kind}: {answer:?}");
    }
    let left = tombstone::read_all(&bench.state()).unwrap();
    let modes: Vec<CallMode> = left.into_iter().map(|(_, request)| request.unwrap().mode).collect();
    // A device of the node stays, so that ifacer has nothing to note.
    assert_eq!(modes, [CallMode::Interface, CallMode::Coordinator, CallMode::Ipam]);
}

fn binary(program: &Path, command: &str, config: &str) -> (i32, String) {
    let mut process = Process::new(program);
    process.env_clear().envs(environment(command).variables);
    let mut child =
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_binary_behaves_as_the_function_does() {
    let built = Path::new(env!("CARGO_BIN_EXE_bowline-cni"));
    let bench = Bench::new();
    let (status, out) = binary(built, "VERSION", "{}");
    assert_eq!(status, 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["cniVersion"], "1.1.0");

    // Called by its other name it asks for addresses only.
    let ipam = bench.folder.path().join("bowline-ipam");
    std::os::unix::fs::symlink(built, &ipam).unwrap();
    let agent = bench.agent(bytes(Outcome::Result(full_result())));
    let (status, out) = binary(&ipam, "ADD", &bench.config("0.3.1").to_string());
    assert_eq!(status, 0, "{out}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["ips"][1]["version"], "6");
    assert_eq!(agent.join().unwrap().mode, CallMode::Ipam);

    std::fs::remove_file(bench.socket()).unwrap();
    let (status, out) = binary(built, "ADD", &bench.config("0.3.1").to_string());
    assert_eq!(status, 1);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["code"], 11);
}
