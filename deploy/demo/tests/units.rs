//! The systemd units: systemd itself reads them, and has nothing to say.

use std::path::Path;
use std::process::Command;

#[test]
fn systemd_accepts_the_units_and_finds_every_setting_known() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
    let copies = std::env::temp_dir().join(format!("bwdtest-units-{}", std::process::id()));
    std::fs::create_dir_all(&copies).expect("a folder");
    let mut units = vec![];
    for name in ["bowline-dataplane", "bowline-agent"] {
        let text = std::fs::read_to_string(folder.join(format!("{name}.service"))).expect("a unit");
        let program = format!("ExecStart=/usr/bin/{name} $BOWLINE_ARGS\n");
        assert!(text.contains(&program), "{name} starts something else");
        // The program is not installed here; that it exists is the one thing not looked at.
        let path = copies.join(format!("{name}.service"));
        std::fs::write(&path, text.replace(&program, "ExecStart=/bin/true $BOWLINE_ARGS\n"))
            .expect("a copy");
        units.push(path);
    }
    let verified = Command::new("systemd-analyze").arg("verify").args(&units).output();
    let broken = copies.join("bowline-broken.service");
    std::fs::write(&broken, "[Service]\nExecStart=/bin/true\nRestartt=always\n").expect("a unit");
    let control = Command::new("systemd-analyze").arg("verify").arg(&broken).output();
    std::fs::remove_dir_all(&copies).expect("removed");
    let said = |output: std::io::Result<std::process::Output>| {
        let output = output.expect("systemd-analyze, of the package systemd");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(said(verified), (true, String::new()));
    assert!(said(control).1.contains("Restartt"), "the control");
}
