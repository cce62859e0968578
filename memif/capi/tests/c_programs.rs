//! C programs, compiled against our header and linked with our library, in both roles.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    output
}

/// Builds the library (cargo does not do that for tests of their own accord) and says where it is.
fn library() -> PathBuf {
    run(Command::new(env!("CARGO")).args(["build", "-q", "-p", "memif-capi"]));
    let mut folder = std::env::current_exe().unwrap();
    folder.pop();
    folder.pop();
    let library = folder.join("libmemif.so");
    assert!(library.exists(), "{} was not built", library.display());
    folder
}

/// Compiles one program.
fn compile(name: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let library = library();
    let program = library.join(format!("memif-capi-{name}"));
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include");
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-o"]);
    cc.arg(&program).arg(tests.join(format!("{name}.c")));
    cc.arg("-I").arg(include).arg("-L").arg(&library).args(["-lmemif", "-lpthread"]);
    cc.arg(format!("-Wl,-rpath,{}", library.display()));
    run(&mut cc);
    program
}

fn check(name: &str) {
    let socket = format!("memif-capi-{name}-{}", std::process::id());
    let output = run(Command::new(compile(name)).arg(socket));
    assert_eq!(output.stdout, b"ok\n");
}

#[test]
fn both_roles_with_the_librarys_event_loop() {
    check("pair");
}

#[test]
fn both_roles_with_the_programs_event_loop() {
    check("events");
}

#[test]
fn what_an_application_may_do_when_it_is_called_back() {
    check("callbacks");
}

/// What the header declares.
fn functions() -> Vec<String> {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include/libmemif.h");
    let header = std::fs::read_to_string(header).unwrap();
    let declared: Vec<_> = header
        .lines()
        .filter(|line| !line.starts_with("typedef") && !line.starts_with([' ', '\t', '/']))
        .filter_map(|line| line.split_once("memif_").map(|(_, rest)| rest))
        .filter_map(|rest| rest.split_once('(').map(|(name, _)| format!("memif_{name}")))
        .filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .collect();
    assert!(declared.len() >= 30, "{declared:?}");
    declared
}

/// What libmemif 4.0 exports, and a program may have been linked against.
#[test]
fn every_function_is_exported() {
    let library = library().join("libmemif.so");
    let output = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library));
    let symbols = String::from_utf8(output.stdout).unwrap();
    let exported: Vec<_> = symbols.lines().filter_map(|l| l.split(' ').nth(2)).collect();
    for name in functions() {
        assert!(exported.contains(&name.as_str()), "{name} is declared and not exported");
    }
}

#[test]
fn every_function_is_called_by_a_program() {
    let programs = concat!(include_str!("pair.c"), include_str!("events.c"));
    for name in functions() {
        assert!(programs.contains(&format!("{name}(")), "no program calls {name}");
    }
}

/// The header is C++ as well.
#[test]
fn the_header_compiles_as_cpp() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include/libmemif.h");
    let mut cc = Command::new("c++");
    run(cc.args(["-x", "c++", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]).arg(header));
}

/// Installed, the library is found by pkg-config, and by a program built with its answer.
#[test]
fn an_installed_library_is_found_by_pkg_config() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = library();
    let prefix = built.join(format!("memif-capi-install-{}", std::process::id()));
    let mut install = Command::new(here.join("install.sh"));
    run(install.arg(&prefix).env("LIBRARY", built.join("libmemif.so")));
    let mut pkg_config = Command::new("pkg-config");
    pkg_config.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    let flags = run(pkg_config.args(["--cflags", "--libs", "libmemif"]));
    let flags = String::from_utf8(flags.stdout).unwrap();
    let program = prefix.join("pair");
    let mut cc = Command::new("cc");
    cc.arg("-o").arg(&program).arg(here.join("tests/pair.c")).args(flags.split_whitespace());
    run(cc.arg("-lpthread"));
    let mut pair = Command::new(&program);
    pair.env("LD_LIBRARY_PATH", prefix.join("lib"));
    let output = run(pair.arg(format!("memif-capi-installed-{}", std::process::id())));
    assert_eq!(output.stdout, b"ok\n");
    std::fs::remove_dir_all(prefix).unwrap();
}
