//! Compiles the gRPC API (by protox: no protoc needed) and notes the build for `--version`.

use std::path::PathBuf;
use std::process::Command;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/kvs2.proto");
    let descriptors = protox::compile(["proto/kvs2.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("kvs2.descriptors"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::grpc::codec::Bounded")
        .build_client(false)
        .compile_fds(descriptors)?;

    // A commit leaves HEAD as it is, and adds a line to its log. A file that is missing would be a change each time.
    for file in [".git/HEAD", ".git/logs/HEAD"] {
        if std::path::Path::new(file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = commit.ok().filter(|out| out.status.success()).map(|out| out.stdout);
    let commit = commit.and_then(|out| String::from_utf8(out).ok()).unwrap_or_default();
    println!("cargo:rustc-env=BUILD_COMMIT={}", commit.trim());
    println!("cargo:rustc-env=BUILD_TARGET={}", std::env::var("TARGET")?);
    println!("cargo:rustc-env=BUILD_PROFILE={}", std::env::var("PROFILE")?);
    Ok(())
}
