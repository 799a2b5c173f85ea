//! A disk that runs full: what was acknowledged stays and is served, what cannot be kept is refused, and when there is room again
//! everything goes on by itself.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::kafka::{self, fresh_topic};
use crate::support::server::{Builder, Highwater};
use crate::support::small_disk::SmallDisk;
use crate::support::wait_for;

const SOON: Duration = Duration::from_secs(30);
const VALUE_BYTES: usize = 50_000;

type Model = HashMap<String, Vec<u8>>;

fn on(disk: &SmallDisk) -> Builder {
    Highwater::builder()
        .within(disk.enter())
        .dir(&disk.path().join("data"))
        .allow("no space left")
        .allow("using the room that was kept for deletes")
}

fn value(n: usize) -> Vec<u8> {
    // Nothing that would shrink when it is compressed.
    let mut state = n as u64 + 1;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..VALUE_BYTES).map(|_| byte()).collect()
}

/// Writes new keys and older ones again until a write is refused, which must be with this error. Only what was acknowledged is noted.
fn fill(client: &mut Client, writer: usize, model: &mut Model, error: &str) {
    let deadline = Instant::now() + 4 * SOON;
    for n in model.len().. {
        let key = format!("w{writer}k{}", if n % 7 == 6 { n / 2 } else { n });
        let value = value(n * 8 + writer);
        let reply = client.send(&[b"SET", key.as_bytes(), &value]);
        if reply != b"+OK\r\n" {
            let reply = String::from_utf8_lossy(&reply);
            assert!(reply.starts_with("-NOTWRITTEN ") && reply.contains(error), "{reply}");
            return;
        }
        model.insert(key, value);
        assert!(Instant::now() < deadline, "the disk does not run full");
    }
}

fn fill_from_several_clients(node: &Highwater, models: &mut [Model]) {
    std::thread::scope(|scope| {
        for (writer, model) in models.iter_mut().enumerate() {
            let mut client = node.client();
            scope.spawn(move || fill(&mut client, writer, model, "no space left"));
        }
    });
}

#[track_caller]
fn check_all(client: &mut Client, models: &[Model]) {
    for (key, value) in models.iter().flatten() {
        let mut expected = format!("${}\r\n", value.len()).into_bytes();
        expected.extend_from_slice(value);
        expected.extend_from_slice(b"\r\n");
        let reply = client.send(&[b"GET", key.as_bytes()]);
        let shown = String::from_utf8_lossy(&reply[..reply.len().min(100)]).into_owned();
        assert!(reply == expected, "GET {key}: {shown}");
    }
}

#[track_caller]
fn set_works_soon(client: &mut Client) {
    let set = || (client.line("SET again 1") == b"+OK\r\n").then_some(());
    wait_for("writes to work again", SOON, set);
}

#[track_caller]
fn dbsize_is_soon(client: &mut Client, keys: usize) {
    let expected = format!(":{keys}\r\n").into_bytes();
    let told = || (client.line("DBSIZE") == expected).then_some(());
    wait_for("the store to have everything", SOON, told);
}

fn a_full_disk_under_the_embedded_log(megabytes: u32, taken: u64, setup: impl Fn(Builder) -> Builder) {
    let disk = SmallDisk::new(megabytes);
    disk.fill(Some(taken));
    let mut node = setup(on(&disk)).start();
    let mut models = vec![Model::new(); 3];
    fill_from_several_clients(&node, &mut models);
    let mut client = node.client();
    check_all(&mut client, &models);
    // Deletes make room, so they are taken.
    let (gone, _) = models[0]
        .iter()
        .next()
        .map(|(k, v)| (k.clone(), v.clone()))
        .expect("a key");
    client.check(&format!("DEL {gone}"), ":1");
    models[0].remove(&gone);

    // A crash meanwhile.
    node.restart();
    let mut client = node.client();
    check_all(&mut client, &models);
    client.check(&format!("EXISTS {gone}"), ":0");

    disk.free();
    set_works_soon(&mut client);
    let keys: usize = models.iter().map(Model::len).sum();
    dbsize_is_soon(&mut client, keys + 1);
    disk.fill(Some(taken / 2));
    fill_from_several_clients(&node, &mut models);
    check_all(&mut client, &models);
    node.restart();
    check_all(&mut node.client(), &models);
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    a_full_disk_under_the_embedded_log(256, 180, |node| node);
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room_with_fjall() {
    // Its workers write at a time of their own, when what was kept for them may be gone: that costs a rebuild at most.
    a_full_disk_under_the_embedded_log(512, 370, |node| {
        let node = node.args(&["--store", "fjall", "--fsync", "everysec"]);
        node.allow("No space left on device")
            .allow("StorageFull")
            .allow("rebuild")
    });
}

/// Deletes four of five keys.
fn delete_most(client: &mut Client, models: &mut [Model]) {
    for model in models {
        let mut keys: Vec<String> = model.keys().cloned().collect();
        keys.sort();
        for key in keys
            .iter()
            .enumerate()
            .filter(|(n, _)| !n.is_multiple_of(5))
            .map(|(_, key)| key)
        {
            client.check(&format!("DEL {key}"), ":1");
            model.remove(key);
        }
    }
}

/// Deletes on a full disk are written, and writes work again without help.
fn deletes_make_room(mut node: Highwater, disk: &SmallDisk, models: &mut [Model], restarts: bool) {
    if restarts {
        node.restart();
    }
    check_all(&mut node.client(), models);
    delete_most(&mut node.client(), models);
    check_all(&mut node.client(), models);
    if restarts {
        node.restart();
        check_all(&mut node.client(), models);
    }
    set_works_soon(&mut node.client());
    disk.free();
    set_works_soon(&mut node.client());
    check_all(&mut node.client(), models);
    // What was given up is kept again.
    let reserve = disk.seen_from_here().join("data/log/reserve");
    wait_for("room to be kept", SOON, || reserve.exists().then_some(()));
}

#[test]
fn deletes_on_a_full_disk_make_room_also_behind_a_restart() {
    for restarts in [false, true] {
        let disk = SmallDisk::new(256);
        disk.fill(Some(100));
        let node = on(&disk).allow("cannot compact the log").start();
        let mut models = vec![Model::new()];
        fill_from_several_clients(&node, &mut models);
        deletes_make_room(node, &disk, &mut models, restarts);
    }
}

/// Somebody else takes the last byte; the node goes on, or is started there.
#[test]
fn a_node_goes_on_and_starts_on_a_disk_that_is_full_to_its_last_byte_and_deletes_make_room() {
    for restarts in [false, true] {
        let disk = SmallDisk::new(512);
        disk.fill(Some(150));
        // As small beside the disk as they usually are.
        let node = on(&disk).args(&["--segment-bytes", "4mb"]);
        let node = node.allow("cannot compact the log").start();
        let mut models = vec![Model::new()];
        fill_from_several_clients(&node, &mut models);
        disk.fill(None);
        deletes_make_room(node, &disk, &mut models, restarts);
    }
}

/// Somebody else takes the last byte, while much is written here.
#[test]
fn a_disk_that_others_fill_is_survived() {
    let disk = SmallDisk::new(512);
    let mut node = on(&disk)
        .allow("cannot compact the log")
        .allow("writing goes on when")
        .start();
    let mut client = node.client();
    let mut models = vec![Model::new(); 2];
    for round in 0..3 {
        std::thread::scope(|scope| {
            for (writer, model) in models.iter_mut().enumerate() {
                let mut client = node.client();
                // The log may meet the end before it hears of it: that is "No space left on device".
                scope.spawn(move || fill(&mut client, writer, model, "o space left"));
            }
            std::thread::sleep(Duration::from_millis(60 * round));
            disk.fill(None);
        });
        check_all(&mut client, &models);
        disk.free();
        set_works_soon(&mut client);
        dbsize_is_soon(&mut client, models.iter().map(Model::len).sum::<usize>() + 1);
    }
    node.restart();
    check_all(&mut node.client(), &models);
}

#[test]
fn a_node_on_kafka_whose_disk_is_full_says_so_and_keeps_what_was_acknowledged() {
    let kafka = kafka::shared();
    let topic = fresh_topic("disk-full");
    let disk = SmallDisk::new(320);
    // Hardly more than is kept in any case.
    disk.fill(Some(300));
    let mut node = on(&disk).kafka(kafka, &topic).args(&["--maxmemory", "64mb"]).start();
    let mut client = node.client();
    let mut models = vec![Model::new()];
    fill(&mut client, 0, &mut models[0], "no space left");
    // They are in Kafka, and memory has what the store does not.
    check_all(&mut client, &models);
    let lacking = client.info("store_lacks_room").unwrap_or_default();
    assert!(lacking.contains("no space left"), "{lacking}");
    let refused = String::from_utf8_lossy(&client.line("DBSIZE")).into_owned();
    assert!(refused.starts_with("-STALE no space left"), "{refused}");
    assert!(node.log().contains("the local store waits"));

    let stopped = Instant::now();
    assert!(node.terminate().success());
    assert!(
        stopped.elapsed() < Duration::from_secs(10),
        "it stops without waiting for room"
    );
    node.restart();
    let mut client = node.client();
    check_all(&mut client, &models);

    disk.free();
    set_works_soon(&mut client);
    dbsize_is_soon(&mut client, models[0].len() + 1);
    assert_eq!(client.info("store_lacks_room").as_deref(), Some(""));
    node.restart();
    check_all(&mut node.client(), &models);
}
