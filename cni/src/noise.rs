//! Whatever comes in: no panic, and either a request or a CNI error.

use crate::call::{Environment, Step, prepare};
use crate::result::CniResult;
use serde_json::Value;

const COMMANDS: [&str; 7] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "?"];

fn environment(command: u8, values: &[String; 4]) -> Environment {
    let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"];
    let mut environment = Environment { program: values[0].clone(), ..Environment::default() };
    let command = COMMANDS[usize::from(command) % COMMANDS.len()];
    environment.variables.insert("CNI_COMMAND".into(), command.into());
    for (name, value) in names.iter().zip(values) {
        environment.variables.insert((*name).into(), value.clone());
    }
    environment
}

fn judge(environment: &Environment, stdin: &[u8]) {
    match prepare(environment, stdin) {
        Ok(Step::Ask(ask)) => {
            // What names a file must not lead out of its folder.
            assert!(!ask.request.container_id.contains('/') && !ask.request.ifname.contains('/'));
            assert!(ask.socket.is_absolute() && ask.state_dir.is_absolute());
        }
        Ok(Step::Nothing) => {
            assert_ne!(environment.variables.get("CNI_COMMAND").map(String::as_str), Some("ADD"));
        }
        Ok(Step::Print(value)) => assert!(value.get("supportedVersions").is_some()),
        Err(error) => {
            assert!((1..=99).contains(&error.code));
            assert!(!error.msg.is_empty() && error.msg.len() < 1000, "{}", error.msg);
        }
    }
}

#[test]
fn bytes_on_stdin_and_in_the_environment() {
    bolero::check!()
        .with_type::<(u8, [String; 4], Vec<u8>)>()
        .for_each(|(command, values, stdin)| judge(&environment(*command, values), stdin));
}

/// A good configuration with one value replaced by something else: reaches deeper than bytes.
#[test]
fn almost_good_configurations() {
    let good = r#"{"cniVersion":"1.1.0","name":"n","type":"bowline","network":"blue",
        "interface":{"type":"memif","rxQueues":2},"ipam":{"type":"bowline-ipam"},
        "runtimeConfig":{"mac":"m","ips":["i"],"portMappings":[{"hostPort":1}]},
        "capabilities":{"mac":true},"prevResult":{"cniVersion":"1.0.0","ips":[{"address":"a"}]},
        "cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}"#;
    let good: Value = serde_json::from_str(good).unwrap();
    bolero::check!().with_type::<(u8, u8, u8, i64, String)>().for_each(
        |(command, at, kind, n, s)| {
            let mut config = good.clone();
            let replacement = match kind % 6 {
                0 => Value::Null,
                1 => Value::Bool(*n > 0),
                2 => (*n).into(),
                3 => s.as_str().into(),
                4 => Value::Array(vec![s.as_str().into()]),
                _ => serde_json::json!({ s.as_str(): n }),
            };
            let object = config.as_object_mut().unwrap();
            let key = object.keys().nth(usize::from(*at) % object.len()).unwrap().clone();
            object.insert(key, replacement);
            let values = ["c", "/n", "eth0", "A=B"].map(String::from);
            judge(&environment(*command, &values), config.to_string().as_bytes());
            if let Ok(result) = CniResult::from_value(&config["prevResult"]) {
                assert!(result.to_version("0.3.1").is_some());
            }
        },
    );
}
