//! Bounds of the doors: memory, guesses, time; and what needs no password.

use super::*;

#[test]
fn grpc_memory_is_bounded() {
    let mut house = House::new(&["--maxmemory-clients", "100mb", "--maxmemory", "64mb"]);
    let large = vec![b'x'; 1_000_000];
    assert_eq!(house.node.client().send(&[b"SET", b"large", &large]), b"+OK\r\n");
    let before = house.node.memory();
    let too_much = Call {
        number: 6_000,
        ..house.call("MultiGet", "large")
    };
    assert_eq!(house.grpc.call(&too_much).code, "RESOURCE_EXHAUSTED");
    // As many as the client likes at once: some are taken, more than fit are not.
    let many = Call {
        number: 30_000_000,
        times: 10,
        deadline: 60.0,
        ..house.call("Set", "key")
    };
    let ended = house.grpc.calls(&many);
    let refused = ended.iter().filter(|ended| ended.code == "RESOURCE_EXHAUSTED").count();
    let taken = ended.iter().filter(|ended| ended.code == "OK").count();
    assert_eq!((taken + refused, refused > 0), (10, true), "{ended:?}");
    let most = house.node.peak_memory() - before;
    println!("{taken} were taken; {} MiB at most", most / MIB);
    assert!(most < 600 * MIB, "{most} bytes");
    // What was held is given back.
    let held = || {
        house
            .node
            .client()
            .info("mem_clients_normal")
            .and_then(|n| n.parse().ok())
    };
    wait_for("memory to be free again", SOON, || {
        held().filter(|&held: &u64| held < MIB)
    });
    // Many keys of no bytes.
    let keys = Call {
        number: 100_001,
        ..house.call("MultiGet", "")
    };
    assert_eq!(house.grpc.call(&keys).code, "INVALID_ARGUMENT");
}

#[test]
fn failed_logins_delay_their_connection_alone() {
    const TRIES: u32 = 5;
    // 50 ms, then twice as much each time.
    let least = Duration::from_millis(50 * (2_u64.pow(TRIES) - 1));
    let mut house = House::new(&["--requirepass", "secret"]);
    let mut friend = house.node.client();
    friend.check("AUTH secret", "+OK");
    let mut guesser = house.node.client();
    let began = Instant::now();
    guesser.write(&resp::command_line("AUTH guess").repeat(TRIES as usize));
    friend.check("PING", "+PONG");
    assert!(began.elapsed() < least, "others are not held up");
    for _ in 0..TRIES {
        assert!(guesser.reply().starts_with(b"-WRONGPASS"));
    }
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    // A login that succeeds gives no new tries.
    guesser.check("AUTH secret", "+OK");
    let began = Instant::now();
    assert!(guesser.line("AUTH guess").starts_with(b"-WRONGPASS"));
    assert!(
        began.elapsed() >= Duration::from_millis(50 << TRIES),
        "{:?}",
        began.elapsed()
    );
    let guess = Call {
        channel: Some("guesser".into()),
        login: Some("default:guess".into()),
        ..house.call("Get", "key")
    };
    let began = Instant::now();
    for _ in 0..TRIES {
        assert_eq!(house.grpc.call(&guess).code, "UNAUTHENTICATED");
    }
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
}

#[test]
fn health_needs_no_password_and_reflection_does() {
    let mut house = House::new(&["--requirepass", "secret"]);
    let login = Some("default:secret".to_owned());
    assert_eq!(house.grpc.call(&house.call("Health", "")).code, "OK");
    assert_eq!(house.grpc.call(&house.call("Reflection", "")).code, "UNAUTHENTICATED");
    let reflection = Call {
        login,
        ..house.call("Reflection", "")
    };
    assert_eq!(house.grpc.call(&reflection).code, "OK");
}

#[test]
fn a_call_ends_at_its_deadline_and_pauses_hold_for_it() {
    let mut house = House::new(&[]);
    let mut client = house.node.client();
    client.check("CLIENT PAUSE 60000 WRITE", "+OK");
    let call = Call {
        deadline: 1.0,
        ..house.call("Set", "key")
    };
    assert_eq!(house.grpc.call(&call).code, "DEADLINE_EXCEEDED");
    assert_eq!(house.grpc.call(&house.call("Get", "key")).code, "OK");
    client.check("GET key", "$-1");
    client.check("CLIENT UNPAUSE", "+OK");
    assert_eq!(house.grpc.call(&house.call("Set", "key")).code, "OK");
    client.check("EXISTS key", ":1");
    // Its commands are counted as others are.
    assert!(client.text("INFO commandstats").contains("cmdstat_set:calls=1,"));
}

#[test]
fn those_that_watch_the_health_do_not_hold_up_a_stop() {
    let mut house = House::new(&[]);
    let watch = Call {
        channel: Some("watcher".into()),
        ..house.call("Watch", "")
    };
    assert_eq!(house.grpc.call(&watch).code, "OK");
    let began = Instant::now();
    assert!(house.node.terminate().success());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
