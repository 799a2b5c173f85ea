//! Builds what is measured, unless it is given.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::options::Options;
use crate::servers::Site;
use crate::{root, target};

const EXAMPLES: &[&str] = &["bare_produce", "fill_topic"];

pub fn site(options: &Options) -> Result<Site> {
    let highwater = match &options.binary {
        Some(binary) => binary.clone(),
        None if options.smoke => {
            build(cargo(&["--bin", "highwater"]))?;
            target().join("debug/highwater")
        }
        None => {
            build(Command::new(root().join("docker/build-static")))?;
            target().join("x86_64-unknown-linux-gnu/dist/highwater")
        }
    };
    let examples = match &options.examples {
        Some(examples) => examples.clone(),
        None => build_examples(options.smoke)?,
    };
    let highwater = highwater
        .canonicalize()
        .with_context(|| format!("no server at {}", highwater.display()))?;
    Ok(Site::new(highwater, examples, options.bootstrap_servers.clone()))
}

fn build_examples(debug: bool) -> Result<PathBuf> {
    let mut arguments: Vec<&str> = EXAMPLES.iter().flat_map(|example| ["--example", example]).collect();
    if !debug {
        arguments.push("--release");
    }
    build(cargo(&arguments))?;
    Ok(target().join(if debug { "debug/examples" } else { "release/examples" }))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "--quiet"]).args(arguments);
    cargo
}

fn build(mut command: Command) -> Result<()> {
    let status = command
        .current_dir(root())
        // Where the results are looked for.
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
