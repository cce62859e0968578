//! Signals that end a process. SIGBUS where it is not contained, without `install` and outside of peers'
//! memory, must kill; SIGPIPE of a peer that hangs up must not. So each scene runs in a process of its own:
//! this program, called with the scene's name.

mod common;

use common::rogue::{BUFFERS_AT, REGION_BYTES, Rogue, S2M_AT, answers, memory};
use common::{listener, offer, unique_name};
use memif::{Answer, Offer, Progress, RxBurst};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use std::num::NonZeroUsize;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("peer") => peer(),
        Some("contained") => {
            memif::sigbus::install().unwrap();
            memif::sigbus::install().unwrap();
            assert!(memif::sigbus::installed());
            peer();
        }
        Some("other") => {
            memif::sigbus::install().unwrap();
            other();
        }
        Some("unwatched") => unwatched(),
        Some("gone") => gone(),
        // The arguments of a test runner.
        _ => run_all(),
    }
}

fn run_all() {
    let scenes = [
        ("peer", Some(libc::SIGBUS)),
        ("contained", None),
        ("other", Some(libc::SIGBUS)),
        ("unwatched", None),
        ("gone", None),
    ];
    for (scene, killed_by) in scenes {
        let status = Command::new(std::env::current_exe().unwrap()).arg(scene).status().unwrap();
        assert_eq!(status.signal(), killed_by, "scene {scene}: {status}");
        assert!(status.success() || killed_by.is_some(), "scene {scene}: {status}");
        println!("scene {scene} ... ok");
    }
}

/// A peer truncates its memory while we look at it.
fn peer() {
    let name = unique_name();
    let mut listener = listener(&name);
    let answer = Answer::Accept(Offer { require_sealed: false, ..offer() });
    let file = memory(REGION_BYTES, false);
    let (rogue, mut connection) = Rogue::establish(&name, &mut listener, &answer, file, 6);
    let (mut rx, _tx) = connection.take_queues();
    rogue.set_descriptor(S2M_AT, 0, (0, 0, 60, BUFFERS_AT));
    rogue.set_head(S2M_AT, 1);
    let mut burst = RxBurst::new(1);
    assert_eq!(rx[0].claim(1, &mut burst), Ok(1));
    rogue.file.set_len(0).unwrap();
    let frame = burst.frames()[0];
    assert_eq!(rx[0].copy_to(&burst, &frame, &mut [0; 64]), Some(60));
    assert!(rx[0].poisoned());
}

/// Where a filter forbids to watch memory, none is taken that would have to be.
fn unwatched() {
    forbid(libc::SYS_userfaultfd);
    memif::sigbus::install().unwrap();
    let name = unique_name();
    let mut listener = listener(&name);
    for require_sealed in [false, true] {
        let answer = Answer::Accept(Offer { require_sealed, ..offer() });
        let file = memory(REGION_BYTES, require_sealed);
        let refused = Rogue::try_establish(&name, &mut listener, &answer, file, 6).err();
        assert_eq!(refused.is_none(), require_sealed, "unsealed memory is taken unwatched");
        assert!(refused.is_none_or(|reason| reason.to_string().contains("userfaultfd")));
    }
}

/// Has a system call fail with EPERM in this process.
fn forbid(call: libc::c_long) {
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, equal, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let mut ops = [
        op(load, 0, 0, 0),
        op(equal, 0, 1, call as u32),
        op(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        op(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: ops.len() as u16, filter: ops.as_mut_ptr() };
    // SAFETY: the program is complete and lives during the call.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// A peer hangs up before it is answered, in a program that leaves SIGPIPE as C programs find it.
fn gone() {
    // SAFETY: the default disposition needs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let name = unique_name();
    let mut listener = listener(&name);
    let (rogue, mut handshake) = Rogue::connect(&name, &mut listener);
    // HELLO is read, or the kernel would drop what follows.
    assert_eq!(nix::unistd::read(&rogue.socket, &mut [0; 128]), Ok(128));
    rogue.send_region();
    drop(rogue);
    let Progress::Closed(reason) = handshake.on_readable(&answers) else { panic!("still open") };
    assert!(reason.to_string().starts_with("Unexpected message"), "{reason}");
}

/// Memory that is no peer's vanishes, beside a peer whose own is listed: the process has a bug, and must
/// not go on as if it had not.
fn other() {
    let name = unique_name();
    let mut listener = listener(&name);
    let honest = memory(REGION_BYTES, true);
    let _peer = Rogue::establish(&name, &mut listener, &Answer::Accept(offer()), honest, 6);
    let file = memory(4096, false);
    let length = NonZeroUsize::new(4096).unwrap();
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let base = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) };
    let base = base.unwrap().cast::<u8>();
    file.set_len(0).unwrap();
    // SAFETY: mapped above; that this kills the process is what the scene is about.
    let byte = unsafe { base.as_ptr().read_volatile() };
    panic!("read {byte} where nothing is");
}
