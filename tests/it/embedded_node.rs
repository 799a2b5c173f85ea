//! A node on its embedded log: crashes, restarts, and what it refuses.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::client::Client;
use crate::support::resp::{Reply, command_line};
use crate::support::server::{self, Highwater};
use crate::support::{ports, process};

fn text_of(reply: &Reply) -> String {
    String::from_utf8_lossy(reply.bytes().expect("a string")).into_owned()
}

#[test]
fn acknowledged_writes_survive_kill_9_under_load() {
    let mut node = Highwater::embedded();
    for round in 0..5 {
        let (port, begun) = (node.port, Instant::now());
        let acknowledged: [AtomicU64; 4] = Default::default();
        std::thread::scope(|scope| {
            for (writer, acknowledged) in acknowledged.iter().enumerate() {
                scope.spawn(move || {
                    let mut client = Client::connect(port);
                    for n in 1.. {
                        let line = format!("SET r{round}w{writer} {n}");
                        let sent = client.try_write(&command_line(&line)).is_ok();
                        match sent.then(|| client.try_reply()) {
                            Some(Ok(Some(reply))) if reply == b"+OK\r\n" => acknowledged.store(n, Ordering::Relaxed),
                            _ => break,
                        }
                    }
                });
            }
            // On a busy machine it may take a while until all of them have begun.
            let idle = || acknowledged.iter().any(|n| n.load(Ordering::Relaxed) == 0);
            while begun.elapsed() < Duration::from_millis(300) || (idle() && begun.elapsed() < Duration::from_secs(20))
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            node.kill9();
        });
        node.restart();
        let mut client = node.client();
        for (writer, at_least) in acknowledged.into_iter().map(AtomicU64::into_inner).enumerate() {
            assert!(at_least > 0, "writer {writer} wrote nothing");
            let found: u64 = client
                .text(&format!("GET r{round}w{writer}"))
                .parse()
                .expect("a number");
            // The one under way when it was killed may be there too.
            assert!(
                found == at_least || found == at_least + 1,
                "writer {writer}: acknowledged {at_least}, found {found}"
            );
        }
        client.check("DBSIZE", &format!(":{}", 4 * (round + 1)));
    }
}

/// Random commands and restarts against a simple map.
#[test]
fn it_answers_as_a_map_does() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut model: HashMap<String, String> = HashMap::new();
    let mut node = Highwater::builder().args(&["--maxmemory", "64kb"]).start();
    let mut client = node.client();
    for step in 0..3_000 {
        let key = format!("k{}", random.random_range(0..60));
        let value = format!("{step}{}", "x".repeat(random.random_range(0..2_000)));
        match random.random_range(0..1_000) {
            0..350 => {
                client.check(&format!("SET {key} {value}"), "+OK");
                model.insert(key, value);
            }
            350..450 => {
                let reply = format!(":{}", i32::from(model.remove(&key).is_some()));
                client.check(&format!("DEL {key}"), &reply);
            }
            450..520 => {
                let joined = model.entry(key.clone()).or_default();
                joined.push('+');
                let length = joined.len();
                client.check(&format!("APPEND {key} +"), &format!(":{length}"));
            }
            520..560 => {
                let other = format!("k{}", random.random_range(0..60));
                let expected = match model.remove(&key) {
                    Some(value) => {
                        model.insert(other.clone(), value);
                        "+OK"
                    }
                    None => "-ERR no such key",
                };
                client.check(&format!("RENAME {key} {other}"), expected);
            }
            560..600 => {
                client.check(&format!("SET {key} gone PX 1"), "+OK");
                model.remove(&key);
                std::thread::sleep(Duration::from_millis(2));
            }
            600..603 => {
                client.check("FLUSHDB", "+OK");
                model.clear();
            }
            603..606 => {
                node.restart();
                client = node.client();
            }
            606..609 => {
                assert!(node.terminate().success(), "seed {seed}");
                node.restart();
                client = node.client();
            }
            _ => {
                let expected = model
                    .get(&key)
                    .map_or("$-1".to_owned(), |v| format!("${}\r\n{v}", v.len()));
                client.check(&format!("GET {key}"), &expected);
            }
        }
    }
    let mut keys: Vec<String> = client.tree("KEYS *").items().iter().map(text_of).collect();
    keys.sort();
    let mut expected: Vec<String> = model.keys().cloned().collect();
    expected.sort();
    assert_eq!(keys, expected, "seed {seed}");
}

#[test]
fn it_starts_with_fewer_and_with_more_databases() {
    let node = Highwater::builder().allow("another number of databases");
    let mut node = node.args(&["--databases", "2"]).start();
    let mut client = node.client();
    client.check("SET k zero", "+OK");
    client.check("SELECT 1", "+OK");
    client.check("SET k one", "+OK");
    assert!(node.terminate().success());
    for databases in ["1", "3", "2"] {
        node.restart_with(&["--databases", databases]);
        let mut client = node.client();
        client.check("GET k", "$4\r\nzero");
        client.check("DBSIZE", ":1");
        if databases != "1" {
            client.check("SELECT 1", "+OK");
            client.check("GET k", "$3\r\none");
        }
        assert!(node.terminate().success());
    }
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

#[test]
fn a_deleted_store_is_rebuilt() {
    let mut node = Highwater::embedded();
    let mut client = node.client();
    for n in 0..300 {
        client.check(&format!("SET k{n} v{n}"), "+OK");
    }
    client.check("SET once 1 PX 1", "+OK");
    assert!(node.terminate().success());
    std::fs::remove_dir_all(node.dir().join("store")).expect("the store is removed");
    node.restart();
    let mut client = node.client();
    client.check("GET k299", "$4\r\nv299");
    client.check("GET once", "$-1");
    client.check("KEYS once", "*0");
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        match entry.path() {
            path if path.is_dir() => files.extend(self::files(&path)),
            path => files.push(path),
        }
    }
    files.sort();
    files
}

/// One bit in every 512 bytes, in place: whoever has the file open sees it.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("a file");
    bytes.iter_mut().step_by(512).for_each(|byte| *byte ^= 4);
    let file = File::options().write(true).open(path).expect("a file");
    file.write_all_at(&bytes, 0).expect("it is written");
}

fn cut(path: &Path) {
    let file = File::options().write(true).open(path).expect("a file");
    let length = file.metadata().expect("a length").len();
    file.set_len(length / 2).expect("it is cut");
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("it is removed");
}

type Harm = (&'static str, fn(&Path));

const HARMS: [Harm; 3] = [("flipped", flip), ("cut", cut), ("removed", remove)];

/// Every key must be answered as it is, now or when the node has loaded it; nothing else is an answer.
fn check_all(node: &Highwater, values: &[String], what: &str) {
    let mut client = node.client();
    let until = Instant::now() + Duration::from_secs(60);
    let mut answer = |line: &str, expected: &str| loop {
        let reply = String::from_utf8_lossy(&client.line(line)).into_owned();
        if reply == expected {
            return;
        }
        assert!(reply.starts_with("-LOADING "), "{what}: {line}: {reply}");
        assert!(Instant::now() < until, "{what}: {line}: {reply}");
        std::thread::sleep(Duration::from_millis(5));
    };
    for (n, value) in values.iter().enumerate() {
        answer(&format!("GET k{n}"), &format!("${}\r\n{value}\r\n", value.len()));
    }
    answer("DBSIZE", &format!(":{}\r\n", values.len()));
    answer("SET k0 v0", "+OK\r\n");
}

/// A node that has to read from its disk, with these values of k0, k1 …
fn filled(engine: &str) -> (Highwater, Vec<String>) {
    let small = ["--store", engine, "--maxmemory", "64kb", "--store-cache", "1mb"];
    // The engines tell of damage in words of their own.
    let node = Highwater::builder().args(&small).allow("").start();
    let mut client = node.client();
    let mut values = vec!["v0".to_owned()];
    values.extend((1..2_000).map(|n| format!("v{n}").repeat(150)));
    for (n, value) in values.iter().enumerate() {
        client.check(&format!("SET k{n} {value}"), "+OK");
    }
    (node, values)
}

/// Each file of the store comes to harm in each way, while the node is down and while it runs.
fn damage_to_the_store_costs_a_rebuild_at_most(engine: &str) {
    let (mut node, values) = filled(engine);
    let (mut down, mut running) = (0, 0);
    for (harm, damage) in HARMS {
        for turn in 0.. {
            assert!(node.terminate().success());
            let Some(path) = files(&node.dir().join("store")).get(turn).cloned() else {
                node.restart();
                break;
            };
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            damage(&path);
            node.restart();
            check_all(&node, &values, &format!("{name} was {harm}"));
            down += node
                .client()
                .info("rebuilds")
                .map_or(0, |n| n.parse().expect("a number"));

            assert!(node.terminate().success());
            node.restart();
            let path = files(&node.dir().join("store")).get(turn).cloned();
            let Some(path) = path.filter(|path| path.exists()) else {
                continue;
            };
            damage(&path);
            check_all(&node, &values, &format!("{} was {harm} meanwhile", path.display()));
            running += node
                .client()
                .info("rebuilds")
                .map_or(0, |n| n.parse().expect("a number"));
        }
    }
    println!("{engine}: rebuilt {down} times at a start, {running} times while it ran");
    assert!(down > 2 && running > 0);
    check_all(&node, &values, "at the end");
}

#[test]
fn damage_to_the_store_costs_a_rebuild_at_most_on_sled() {
    damage_to_the_store_costs_a_rebuild_at_most("sled");
}

#[test]
fn damage_to_the_store_costs_a_rebuild_at_most_on_fjall() {
    damage_to_the_store_costs_a_rebuild_at_most("fjall");
}

#[test]
fn a_node_that_cannot_build_its_store_anew_ends_and_the_next_start_does() {
    let (mut node, values) = filled("sled");
    assert!(node.terminate().success());
    node.restart();
    let (store, away) = (node.dir().join("store"), node.dir().join("away"));
    fs::rename(&store, &away).expect("it is renamed");
    fs::write(&store, "in the way").expect("a file");
    files(&away).iter().for_each(|path| flip(path));
    let mut client = node.client();
    for n in 0..values.len() {
        let line = command_line(&format!("GET k{n}"));
        if client.try_write(&line).is_err() || !matches!(client.try_reply(), Ok(Some(_))) {
            break;
        }
    }
    let status = node.wait_until_exit(Duration::from_secs(60));
    assert_eq!(status.code(), Some(1));
    let told = "highwater: cannot go on without the local store: ";
    assert_eq!(node.log().matches(told).count(), 1, "{}", node.log());
    fs::remove_file(&store).expect("it is removed");
    node.restart();
    check_all(&node, &values, "at the next start");
}

#[test]
fn a_scan_finishes_across_restarts_and_misses_nothing() {
    let mut node = Highwater::embedded();
    let mut client = node.client();
    for n in 0..500 {
        client.check(&format!("SET k{n} v"), "+OK");
    }
    let mut cursor = "0".to_owned();
    let mut found = std::collections::HashSet::new();
    for call in 0.. {
        let reply = client.tree(&format!("SCAN {cursor} COUNT 40"));
        let items = reply.items();
        cursor = text_of(&items[0]);
        found.extend(items[1].items().iter().map(text_of));
        if cursor == "0" {
            break;
        }
        client.check(&format!("SET new{call} v"), "+OK");
        client.check(&format!("DEL new{}", call - 1), if call > 0 { ":1" } else { ":0" });
        if call % 5 == 2 {
            node.restart();
            client = node.client();
        }
    }
    for n in 0..500 {
        assert!(found.contains(&format!("k{n}")), "k{n} was missed");
    }
}

#[test]
fn expired_keys_get_their_tombstones_in_the_background() {
    let node = Highwater::embedded();
    let mut client = node.client();
    for n in 0..50 {
        client.check(&format!("SET k{n} v PX 20"), "+OK");
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while client.line("DBSIZE") != b":0\r\n" {
        assert!(std::time::Instant::now() < deadline, "expired keys are still counted");
        std::thread::sleep(Duration::from_millis(20));
    }
    client.check("GET k1", "$-1");
}

#[test]
fn large_values_round_trip_and_overwriting_them_does_not_grow_the_disk() {
    let node = Highwater::embedded();
    let mut client = node.client();
    for size in [
        0,
        1,
        65_535,
        65_536,
        99_999,
        100_000,
        100_001,
        131_071,
        131_072,
        131_073,
        1 << 20,
        20 << 20,
    ] {
        let value: Vec<u8> = (0..size).map(|n: usize| (n * 31 % 251) as u8).collect();
        assert_eq!(client.send(&[b"SET", b"big", &value]), b"+OK\r\n");
        let mut expected = format!("${size}\r\n").into_bytes();
        expected.extend_from_slice(&value);
        expected.extend_from_slice(b"\r\n");
        assert!(
            client.send(&[b"GET", b"big"]) == expected,
            "a value of {size} bytes changed"
        );
    }
    client.check("DEL big", ":1");
    let value = vec![b'x'; 200_000];
    for n in 0..1_500 {
        let key = format!("k{}", n % 20);
        assert_eq!(client.send(&[b"SET", key.as_bytes(), &value]), b"+OK\r\n");
    }
    // 300 MB were written, 4 MB are live.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let bytes = disk_bytes(node.dir());
        if bytes < 160 << 20 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{} MB on disk", bytes >> 20);
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Beside what the log keeps for a full disk, which is always the same.
fn disk_bytes(dir: &std::path::Path) -> u64 {
    let mut sum = 0;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with("reserve")) {
        // Files come and go while this walks.
        if let Ok(meta) = entry.metadata() {
            sum += if meta.is_dir() {
                disk_bytes(&entry.path())
            } else {
                meta.len()
            };
        }
    }
    sum
}

#[test]
fn a_flipped_byte_in_a_log_file_is_refused_with_its_place_and_put_right_it_serves_all() {
    let mut node = Highwater::embedded();
    let mut client = node.client();
    for n in 0..300 {
        client.check(&format!("SET k{n} v{n}"), "+OK");
    }
    assert!(node.terminate().success());
    let log = node.dir().join("log");
    let files = std::fs::read_dir(&log).expect("the log's directory").flatten();
    let segments = files.filter(|file| file.file_name().to_string_lossy().ends_with(".segment"));
    let segment = segments.max_by_key(|file| file.metadata().map_or(0, |meta| meta.len()));
    let segment = segment.expect("a file").path();
    let right = std::fs::read(&segment).expect("read a segment");
    for at in [100, right.len() / 2, right.len() - 1] {
        let mut wrong = right.clone();
        wrong[at] ^= 0x10;
        std::fs::write(&segment, &wrong).expect("write a segment");
        let (status, output) = Highwater::builder().dir(node.dir()).refuse(Duration::from_secs(20));
        assert!(!status.success(), "byte {at} of {}", right.len());
        let named = format!("the log is damaged: {} at byte ", segment.display());
        let told = output.split_once(&named).unwrap_or_else(|| panic!("{at}: {output}")).1;
        let number = |text: &str| {
            text.chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
                .parse::<usize>()
        };
        assert!(number(told).is_ok_and(|told| told <= at), "{at}: {output}");
        let offset = told.split_once("(offset ").map(|(_, rest)| number(rest));
        assert!(matches!(offset, Some(Ok(0..300))), "{at}: {output}");
        assert!(
            std::fs::read(&segment).expect("read a segment") == wrong,
            "it changed the file"
        );
    }
    std::fs::write(&segment, &right).expect("write a segment");
    node.restart();
    let mut client = node.client();
    client.check("DBSIZE", ":300");
    for n in 0..300 {
        client.check(&format!("GET k{n}"), &format!("${}\r\nv{n}", 1 + n.to_string().len()));
    }
}

#[test]
fn it_refuses_to_start_with_one_clear_line() {
    let node = Highwater::embedded();
    let dir = node.dir().to_owned();
    let soon = Duration::from_secs(20);

    let (status, output) = Highwater::builder().dir(&dir).port(ports::free()).refuse(soon);
    assert!(!status.success());
    assert!(output.contains("in use"), "a directory in use: {output}");

    let port = node.port;
    let (status, output) = Highwater::builder().port(port).refuse(soon);
    assert!(!status.success());
    assert!(output.contains(&port.to_string()), "a port in use: {output}");

    let (status, output) = Highwater::builder()
        .args(&["--bootstrap-servers", "127.0.0.1:1", "--startup-timeout", "2s"])
        .refuse(soon);
    assert!(!status.success());
    assert!(output.contains("127.0.0.1:1"), "no broker: {output}");

    let (status, output) = Highwater::builder().args(&["--prot", "1"]).refuse(soon);
    assert!(!status.success());
    assert!(output.contains("--port"), "the nearest name: {output}");
}

/// Nothing else would tell if the linker took jemalloc's own, empty settings.
#[test]
fn the_allocator_has_the_settings_that_are_built_in_unless_the_environment_has_others() {
    let settings_with = |conf: &str| {
        let mut program = Command::new(server::binary());
        program.arg("--version").env("MALLOC_CONF", conf);
        let output = process::run("the version", program, b"", Duration::from_secs(20));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let built_in = settings_with("stats_print:true");
    assert!(built_in.contains("opt.tcache_max: 4096\n"), "{built_in}");
    assert!(built_in.contains("opt.dirty_decay_ms: 3000 "), "{built_in}");
    let others = settings_with("stats_print:true,dirty_decay_ms:9000");
    assert!(others.contains("opt.dirty_decay_ms: 9000 "), "{others}");
}

/// What others may do with a file or directory that they must not, each below the data directory.
fn open_to_others(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut unseen = vec![dir.to_path_buf()];
    while let Some(path) = unseen.pop() {
        let mode = fs::metadata(&path).map_or(0, |metadata| metadata.permissions().mode());
        let forbidden = if path.is_dir() { 0o027 } else { 0o137 };
        if mode & forbidden != 0 {
            found.push(format!("{} {mode:o}", path.display()));
        }
        if path.is_dir() {
            unseen.extend(
                fs::read_dir(&path)
                    .expect("a directory")
                    .flatten()
                    .map(|entry| entry.path()),
            );
        }
    }
    found
}

#[test]
fn other_users_cannot_read_the_data_directory() {
    for store in ["sled", "fjall"] {
        let without_mask = ["sh", "-c", "umask 0; exec \"$0\" \"$@\""].map(str::to_owned);
        let mut node = Highwater::builder()
            .within(&without_mask)
            .args(&[
                "--store",
                store,
                "--checkpoint-interval",
                "100ms",
                "--segment-bytes",
                "64kb",
            ])
            .start();
        let mut client = node.client();
        for n in 0..20 {
            client.check(&format!("SET k{n} {}", "v".repeat(10_000)), "+OK");
        }
        node.restart();
        node.client().check("DBSIZE", ":20");
        assert_eq!(open_to_others(node.dir()), [""; 0]);
        // A directory of a version that did not look after that.
        node.terminate();
        for dir in [
            node.dir().to_path_buf(),
            node.dir().join("log"),
            node.dir().join("store"),
        ] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("the directory is ours");
        }
        node.restart();
        assert_eq!(open_to_others(node.dir()), [""; 0]);
    }
}

#[test]
fn a_password_in_a_file_that_everybody_can_read_is_warned_of() {
    let temp = crate::support::temp::dir("config");
    let file = temp.path().join("node.conf");
    fs::write(&file, "requirepass secret\n").expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("the file is ours");
    let warning = "every user of this machine can read the password";
    let path = file.to_str().expect("UTF-8");
    let mut node = Highwater::builder().args(&["--config", path]).allow(warning).start();
    assert!(node.log().contains(&format!("{warning} in {path}")), "{}", node.log());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("the file is ours");
    node.restart();
    assert_eq!(node.log().matches(warning).count(), 1);
}
