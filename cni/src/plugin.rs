//! The plugin as a function: environment and stdin in, what is printed and the exit status out.

use serde_json::{Value, json};

use crate::call::{Ask, Environment, Step, prepare};
use crate::client::{ask, time_limit};
use crate::error::{CniError, code};
use crate::result::SUPPORTED_VERSIONS;
use crate::rpc::{Command, Outcome};
use crate::tombstone;

/// What the process does at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For the runtime.
    pub stdout: String,
    /// For the runtime's log.
    pub stderr: String,
    /// Exit status 0.
    pub success: bool,
}

impl Answer {
    fn printing(value: &Value) -> Self {
        Answer { stdout: format!("{value}\n"), stderr: String::new(), success: true }
    }

    fn nothing() -> Self {
        Answer { stdout: String::new(), stderr: String::new(), success: true }
    }

    fn failing(error: &CniError, version: &str) -> Self {
        let mut object = json!({ "cniVersion": version, "code": error.code, "msg": error.msg });
        if !error.details.is_empty() {
            object["details"] = error.details.as_str().into();
        }
        Answer { stdout: format!("{object}\n"), stderr: String::new(), success: false }
    }
}

/// Runs one call.
#[must_use]
pub fn run(environment: &Environment, stdin: std::io::Result<&[u8]>) -> Answer {
    let stdin = match stdin {
        Ok(stdin) => stdin,
        Err(e) => {
            let error = CniError::new(code::IO_FAILURE, format!("stdin cannot be read: {e}"));
            return Answer::failing(&error, newest());
        }
    };
    let version = error_version(stdin);
    match prepare(environment, stdin) {
        Ok(Step::Print(value)) => Answer::printing(&value),
        Ok(Step::Nothing) => Answer::nothing(),
        Ok(Step::Ask(call)) => forward(&call, &version),
        Err(error) => Answer::failing(&error, &version),
    }
}

fn newest() -> &'static str {
    SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1]
}

/// Errors are printed in the version of the configuration, where that can be told.
fn error_version(stdin: &[u8]) -> String {
    let asked: Option<Value> = serde_json::from_slice(stdin).ok();
    let asked = asked.as_ref().and_then(|v| v.get("cniVersion")).and_then(Value::as_str);
    asked.filter(|v| SUPPORTED_VERSIONS.contains(v)).unwrap_or(newest()).into()
}

fn forward(call: &Ask, version: &str) -> Answer {
    let command = call.request.command;
    let response = match ask(&call.socket, &call.request, time_limit(command)) {
        Ok(response) => response,
        Err(error) => return without_agent(call, version, &error.to_string()),
    };
    match response.outcome {
        Outcome::Error(error) => Answer::failing(&error, version),
        Outcome::Result(result) if command == Command::Add => match result.to_version(version) {
            Some(value) => Answer::printing(&value),
            None => {
                let msg = format!("the result cannot be printed in version {version}");
                Answer::failing(&CniError::new(code::INCOMPATIBLE_VERSION, msg), version)
            }
        },
        Outcome::Done if command == Command::Add => {
            let error = CniError::new(code::INTERNAL, "the agent answered ADD without a result");
            Answer::failing(&error, version)
        }
        Outcome::Result(_) | Outcome::Done => Answer::nothing(),
    }
}

/// What a call means while nobody answers.
fn without_agent(call: &Ask, version: &str, why: &str) -> Answer {
    match call.request.command {
        Command::Del => match tombstone::write(&call.state_dir, &call.request) {
            Ok(()) => Answer {
                stderr: format!("{why}; DEL is noted and done when the agent is back"),
                ..Answer::nothing()
            },
            Err(e) => {
                let msg = format!(
                    "{why}; and DEL cannot be noted in {}: {e}",
                    call.state_dir.join(tombstone::FOLDER).display()
                );
                Answer::failing(&CniError::new(code::TRY_AGAIN_LATER, msg), version)
            }
        },
        Command::Status => Answer::failing(&CniError::new(code::NOT_AVAILABLE, why), version),
        Command::Add | Command::Check | Command::Gc => {
            Answer::failing(&CniError::new(code::TRY_AGAIN_LATER, why), version)
        }
    }
}
