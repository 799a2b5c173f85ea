//! A disk that can be filled: a file system in memory, in a mount namespace of its own. So it needs no rights beyond those to
//! make a namespace, nobody else sees it, and it goes when its holder does.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{process, temp};

/// Mounts and then stays until it is killed, so that the namespace does.
const HOLDER: &str = "mount -t tmpfs -o size=$2m small-disk \"$1\" && echo ready && exec sleep infinity";
const FILLER: &str = "filler";

pub struct SmallDisk {
    holder: Child,
    /// Enters the namespace and starts what follows.
    enter: Vec<String>,
    mounted: TempDir,
}

impl SmallDisk {
    pub fn new(megabytes: u32) -> SmallDisk {
        let mounted = temp::dir("small-disk");
        let mut refused = Vec::new();
        // As a user of a namespace where one may mount; else with the rights that this process has.
        for (make, enter) in [
            ("-rm", &["-U", "-m", "--preserve-credentials"][..]),
            ("-m", &["-m"][..]),
        ] {
            match hold(make, mounted.path(), megabytes) {
                Ok(holder) => {
                    let pid = holder.id().to_string();
                    let enter = [&["nsenter", "-t", &pid][..], enter].concat();
                    return SmallDisk {
                        holder,
                        enter: enter.into_iter().map(str::to_owned).collect(),
                        mounted,
                    };
                }
                Err(problem) => refused.push(format!("unshare {make}: {problem}")),
            }
        }
        panic!(
            "cannot mount a small disk for this test ({}); allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 or \
             kernel.apparmor_restrict_unprivileged_userns=0), or run it as root; in a container: --cap-add SYS_ADMIN",
            refused.join("; ")
        );
    }

    /// What starts a program that sees the disk.
    pub fn enter(&self) -> &[String] {
        &self.enter
    }

    /// The disk's root, as those see it who entered.
    pub fn path(&self) -> &Path {
        self.mounted.path()
    }

    /// Takes so many megabytes away, or all that are left; `free` gives them back.
    pub fn fill(&self, megabytes: Option<u64>) {
        let path = self.seen_from_here().join(FILLER);
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .expect("open the filler");
        let chunk = vec![0; 64 << 10];
        let mut left = megabytes.map_or(u64::MAX, |megabytes| megabytes << 20);
        while left > 0 {
            match file.write(&chunk) {
                Ok(written) => left = left.saturating_sub(written as u64),
                Err(error) if error.kind() == ErrorKind::StorageFull && megabytes.is_none() => return,
                Err(error) => panic!("fill the small disk: {error}"),
            }
        }
    }

    /// Removes what `fill` has written.
    pub fn free(&self) {
        fs::remove_file(self.seen_from_here().join(FILLER)).expect("remove the filler");
    }

    /// The disk's root, as this process sees it.
    pub fn seen_from_here(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        Path::new(&root).join(self.path().strip_prefix("/").expect("an absolute path"))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        process::kill_group(&mut self.holder);
    }
}

fn hold(make: &str, at: &Path, megabytes: u32) -> Result<Child, String> {
    let mut command = Command::new("unshare");
    command
        .args([make, "sh", "-c", HOLDER, "sh"])
        .arg(at)
        .arg(megabytes.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut holder = process::spawn(command).map_err(|error| error.to_string())?;
    let mut line = String::new();
    let stdout = holder.stdout.take().expect("stdout is piped");
    match BufReader::new(stdout).read_line(&mut line) {
        Ok(_) if line == "ready\n" => Ok(holder),
        _ => {
            let mut problem = String::new();
            let stderr = holder.stderr.take().expect("stderr is piped");
            process::kill_group(&mut holder);
            // What it said is only for the message.
            let _ = BufReader::new(stderr).read_line(&mut problem);
            Err(problem.trim().to_owned())
        }
    }
}
