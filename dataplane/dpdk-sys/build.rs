//! Finds libdpdk, compiles the shim and generates the bindings.
//!
//! What is missing is reported in one sentence with its remedy: a build log is where most people
//! meet this crate for the first time.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The libraries whose symbols are used. pkg-config lists some fifty; drivers load by themselves.
const LIBRARIES: &[&str] = &["rte_eal", "rte_ethdev", "rte_mbuf", "rte_mempool", "rte_dmadev"];

/// Functions that the safe crate calls. All are in DPDK's stable ABI from 22.11 to 24.11.
const FUNCTIONS: &[&str] = &[
    "bl_.*",
    "rte_dev_probe",
    "rte_dev_remove",
    "rte_dma_close",
    "rte_dma_get_dev_id_by_name",
    "rte_dma_stop",
    "rte_eal_init",
    "rte_eal_iova_mode",
    "rte_eth_allmulticast_enable",
    "rte_eth_dev_close",
    "rte_eth_dev_get_port_by_name",
    "rte_eth_dev_rx_intr_disable",
    "rte_eth_dev_rx_intr_enable",
    "rte_eth_dev_rx_intr_ctl_q_get_fd",
    "rte_eth_dev_set_mtu",
    "rte_eth_dev_socket_id",
    "rte_eth_dev_start",
    "rte_eth_dev_stop",
    "rte_eth_macaddr_get",
    "rte_eth_promiscuous_disable",
    "rte_eth_promiscuous_enable",
    "rte_eth_stats_get",
    "rte_mempool_avail_count",
    "rte_mempool_free",
    "rte_pktmbuf_free_bulk",
    "rte_strerror",
    "rte_thread_register",
    "rte_thread_unregister",
];

/// Only ever seen behind a pointer, or packed around aligned members, which Rust cannot express.
const OPAQUE: &[&str] = &[
    "rte_arp_hdr",
    "rte_arp_ipv4",
    "rte_device",
    "rte_gtp_psc_generic_hdr",
    "rte_l2tpv2_combined_msg_hdr",
    "rte_mbuf",
    "rte_mempool",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=csrc");
    let library = pkg_config::Config::new()
        .atleast_version("22.11")
        .cargo_metadata(false)
        .probe("libdpdk")
        .unwrap_or_else(|error| give_up(&dpdk_remedy(&error)));
    for path in &library.link_paths {
        println!("cargo:rustc-link-search=native={}", path.display());
    }
    compile_shim(&library.include_paths);
    for name in LIBRARIES {
        println!("cargo:rustc-link-lib=dylib={name}");
    }
    generate(&library.include_paths);
}

fn dpdk_remedy(error: &pkg_config::Error) -> String {
    let found = match error {
        pkg_config::Error::ProbeFailure { .. } => "libdpdk is not installed or older than 22.11",
        pkg_config::Error::Command { .. } => "pkg-config is not installed",
        _ => "pkg-config cannot describe libdpdk",
    };
    format!(
        "{found}: run `apt-get install libdpdk-dev pkg-config` (Debian 12 has 22.11), or set \
         PKG_CONFIG_PATH to the folder of another DPDK's libdpdk.pc."
    )
}

fn give_up(sentence: &str) -> ! {
    println!("cargo:warning={sentence}");
    eprintln!("error: {sentence}");
    std::process::exit(1);
}

/// DPDK's headers want their configuration first, and the instruction set that DPDK assumes.
fn dpdk_flags() -> Vec<String> {
    let mut flags = vec!["-include".to_owned(), "rte_config.h".to_owned()];
    match std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => flags.push("-march=corei7".to_owned()),
        Ok("aarch64") => flags.push("-march=armv8-a+crc".to_owned()),
        _ => {}
    }
    flags
}

fn compile_shim(includes: &[PathBuf]) {
    let mut build = cc::Build::new();
    build.file("csrc/shim.c").includes(includes).opt_level(3).warnings(false);
    build.flag("-Werror=implicit-function-declaration");
    for flag in dpdk_flags() {
        build.flag(flag);
    }
    if let Err(error) = build.try_compile("bowline_dpdk_shim") {
        give_up(&format!(
            "compiling csrc/shim.c failed: {error}; gcc is needed (`apt-get install gcc \
             libc6-dev`)."
        ));
    }
}

fn generate(includes: &[PathBuf]) {
    require_libclang();
    let mut builder = bindgen::Builder::default()
        .header("csrc/shim.h")
        .clang_args(includes.iter().map(|path| format!("-I{}", path.display())))
        .clang_args(dpdk_flags())
        .use_core()
        .derive_debug(true)
        .derive_default(true)
        .layout_tests(false)
        .generate_comments(false)
        .prepend_enum_name(false)
        .rust_target(bindgen::RustTarget::stable(85, 0).expect("Rust 1.85 is known to bindgen"))
        .rust_edition(bindgen::RustEdition::Edition2024)
        .allowlist_type("rte_eth_stats")
        .allowlist_type("bl_.*")
        .allowlist_var("BL_.*");
    for name in FUNCTIONS {
        builder = builder.allowlist_function(name);
    }
    for name in OPAQUE {
        builder = builder.opaque_type(name);
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    match builder.generate() {
        Ok(bindings) => {
            bindings.write_to_file(out.join("bindings.rs")).expect("OUT_DIR is writable");
        }
        Err(error) => give_up(&format!("bindgen cannot read the DPDK headers: {error}")),
    }
}

/// bindgen panics with a page of text when it finds no libclang; this says it in one sentence.
fn require_libclang() {
    let has_env = std::env::var_os("LIBCLANG_PATH").is_some();
    let has_config = ["llvm-config", "clang"]
        .iter()
        .any(|tool| Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success()));
    let has_library = std::fs::read_dir("/usr/lib").is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            entry.file_name().to_string_lossy().starts_with("llvm-")
                && Path::new(&entry.path().join("lib/libclang.so.1")).exists()
        })
    });
    if !(has_env || has_config || has_library) {
        give_up(
            "libclang is not installed, and the bindings to DPDK are generated with it: run \
             `apt-get install libclang-dev clang`, or set LIBCLANG_PATH to the folder of libclang.so.",
        );
    }
}
