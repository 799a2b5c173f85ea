//! One run: the servers that are up, what they have been filled with, and the samples that were taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::keys::{Range, Spread};
use crate::load::{Load, Outcome, Pace, Plan, Until, Work};
use crate::machine;
use crate::options::Options;
use crate::rows::usual;
use crate::servers::{Kind, Server, Site, ask};

/// One measurement of one server in one round.
#[derive(Serialize, Clone, Debug)]
pub struct Sample {
    pub row: &'static str,
    pub case: String,
    pub server: String,
    pub round: u32,
    pub figures: Figures,
    /// One figure in each second, where a row has that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub each_second: Vec<u64>,
}

pub type Figures = BTreeMap<&'static str, f64>;

/// A load to measure, without the server.
#[derive(Clone, Debug)]
pub struct Case {
    pub label: String,
    pub work: Work,
    pub pipeline: usize,
    pub clients: usize,
    pub range: Range,
    pub spread: Spread,
    pub value_bytes: usize,
}

impl Case {
    pub fn plan(&self, port: u16, until: Until, seed: u64) -> Plan {
        Plan {
            port,
            clients: self.clients,
            work: self.work,
            range: self.range,
            spread: self.spread,
            value_bytes: self.value_bytes,
            pace: Pace::Closed {
                pipeline: self.pipeline,
            },
            until,
            seed,
        }
    }
}

pub struct Bench {
    pub options: Options,
    pub site: Site,
    pub samples: Vec<Sample>,
    pub row: &'static str,
    pub round: u32,
    fleet: BTreeMap<Kind, Server>,
    filled: BTreeSet<(Kind, Range, usize, Work)>,
    prepared: BTreeSet<(Kind, Work)>,
    /// The broker has had work.
    warm: bool,
    raw: File,
}

impl Bench {
    pub fn new(options: Options, site: Site, raw: File) -> Bench {
        Bench {
            options,
            site,
            samples: Vec::new(),
            row: "",
            round: 0,
            fleet: BTreeMap::new(),
            filled: BTreeSet::new(),
            prepared: BTreeSet::new(),
            warm: false,
            raw,
        }
    }

    /// The server of this kind that the rows share.
    pub fn server(&mut self, kind: Kind) -> Result<&Server> {
        if !self.fleet.contains_key(&kind) {
            let server = Server::start(kind, &mut self.site, &[])?;
            self.fleet.insert(kind, server);
        }
        self.fleet.get(&kind).context("was started")
    }

    /// Ends all servers that rows share. The broker stays: a Java program is slow when it is young.
    pub fn dismiss(&mut self) {
        self.fleet.clear();
        self.filled.clear();
        self.prepared.clear();
    }

    /// Makes sure that the shared server has these keys.
    pub fn fill(&mut self, kind: Kind, range: Range, value_bytes: usize) -> Result<()> {
        self.fill_by(kind, range, value_bytes, Work::Set)
    }

    fn fill_by(&mut self, kind: Kind, range: Range, value_bytes: usize, by: Work) -> Result<()> {
        let port = self.server(kind)?.port;
        if self.filled.insert((kind, range, value_bytes, by)) {
            fill_by(port, range, value_bytes, by).with_context(|| format!("fill {}", kind.name()))?;
            self.settle(&[]);
        }
        Ok(())
    }

    /// Waits until no server has anything left to do behind, so that it is not charged to the next one: until they and the broker
    /// together use less than a tenth of a core and no store lacks anything, but no longer than the options' patience.
    pub fn settle(&self, others: &[&Server]) {
        const STEP: Duration = Duration::from_millis(300);
        let patience = self.options.patience();
        let servers = || self.fleet.values().chain(others.iter().copied());
        let pids = || servers().map(Server::pid).chain(self.site.broker_pid());
        let used = || -> Duration { pids().filter_map(|pid| machine::cpu(pid).ok()).sum() };
        let end = Instant::now() + patience;
        let mut before = used();
        while Instant::now() < end {
            std::thread::sleep(STEP.min(patience));
            let now = used();
            let are_quiet = now.saturating_sub(before) <= STEP / 10;
            if are_quiet && !servers().any(Server::has_unstored) {
                return;
            }
            before = now;
        }
        if !self.options.smoke {
            eprintln!(
                "after {patience:?} the servers still work on what they were given before: what is measured next pays for it"
            );
        }
    }

    /// A Java program is slow when it is young: it compiles itself while its first millions of records, and its first ten thousand
    /// transactions, pass.
    fn warm_up(&mut self, kind: Kind) -> Result<()> {
        if kind != Kind::OnKafka || std::mem::replace(&mut self.warm, true) {
            return Ok(());
        }
        let port = self.server(kind)?.port;
        for (work, pipeline, times) in [
            (Work::Set, 16, 3),
            (Work::Set, 1, 3),
            (Work::Incr, 16, 3),
            (Work::Incr, 1, 15),
        ] {
            let case = Case {
                pipeline,
                ..usual(&self.options, work)
            };
            let time = self.options.time() * times;
            Load::connect(case.plan(port, Until::Time(time), 0))?.run()?;
        }
        self.settle(&[]);
        Ok(())
    }

    /// Measures a shared server.
    pub fn measure(&mut self, kind: Kind, case: &Case) -> Result<Figures> {
        self.warm_up(kind)?;
        if let Some(by) = case.work.fill() {
            self.fill_by(kind, case.range, case.value_bytes, by)?;
        }
        let port = self.server(kind)?.port;
        if let Some(command) = case
            .work
            .preparation()
            .filter(|_| self.prepared.insert((kind, case.work)))
        {
            let reply = ask(port, command)?;
            ensure!(reply == "+OK", "{command}: {reply}");
        }
        let broker = self.site.broker_pid().filter(|_| kind == Kind::OnKafka);
        Ok(self.measure_at(&self.fleet[&kind], broker, case)?.0)
    }

    /// Measures any server, and the CPU time of its broker, if it has one.
    pub fn measure_at(&self, server: &Server, broker: Option<u32>, case: &Case) -> Result<(Figures, Outcome)> {
        let (port, pid) = (server.port, server.pid());
        let seed = u64::from(self.round) << 32 | u64::from(port);
        let time = self.options.time();
        Load::connect(case.plan(port, Until::Time(time / 8), !seed))?.run()?;
        self.settle(&[server]);
        let load = Load::connect(case.plan(port, Until::Time(time), seed))?;
        let cpu = || -> Result<(Duration, Option<Duration>)> {
            Ok((machine::cpu(pid)?, broker.map(machine::cpu).transpose()?))
        };
        let before = cpu()?;
        let outcome = load.run()?;
        // What a server leaves for later is part of what a write costs.
        if case.work.writes() {
            self.settle(&[server]);
        }
        let after = cpu()?;
        ensure!(outcome.requests > 0, "no request was answered");
        let each = |time: Duration| time.as_secs_f64() * 1e6 / outcome.requests as f64;
        let mut figures = latencies(&outcome);
        figures.insert("per_second", outcome.per_second());
        figures.insert("client_cpu", each(outcome.client_cpu));
        figures.insert("server_cpu", each(after.0.saturating_sub(before.0)));
        if let Some((before, after)) = before.1.zip(after.1) {
            figures.insert("broker_cpu", each(after.saturating_sub(before)));
        }
        Ok((figures, outcome))
    }

    pub fn note(&mut self, case: &str, server: &str, figures: Figures) -> Result<()> {
        self.note_with(case, server, figures, Vec::new())
    }

    /// Keeps a sample, on disk too, and shows it.
    pub fn note_with(&mut self, case: &str, server: &str, figures: Figures, each_second: Vec<u64>) -> Result<()> {
        let sample = Sample {
            row: self.row,
            case: case.to_owned(),
            server: server.to_owned(),
            round: self.round,
            figures,
            each_second,
        };
        writeln!(self.raw, "{}", serde_json::to_string(&sample)?).context("write a raw result")?;
        let shown: Vec<String> = sample
            .figures
            .iter()
            .map(|(name, value)| format!("{name} {value:.1}"))
            .collect();
        eprintln!("{}: {case}: {server}: {}", self.row, shown.join(", "));
        self.samples.push(sample);
        Ok(())
    }
}

pub fn latencies(outcome: &Outcome) -> Figures {
    Figures::from([
        ("p50", outcome.percentile(50.0)),
        ("p99", outcome.percentile(99.0)),
        ("p999", outcome.percentile(99.9)),
    ])
}

/// Sets every key of the range once.
pub fn fill(port: u16, range: Range, value_bytes: usize) -> Result<()> {
    fill_by(port, range, value_bytes, Work::Set)
}

/// Does this work once for each key of the range.
pub fn fill_by(port: u16, range: Range, value_bytes: usize, work: Work) -> Result<()> {
    let case = Case {
        label: String::new(),
        work,
        // So that what is under way stays small with large values.
        pipeline: (256 * 1024 / value_bytes).clamp(1, 64),
        clients: 16,
        range,
        spread: Spread::InTurn,
        value_bytes,
    };
    let outcome = Load::connect(case.plan(port, Until::Requests(range.count), 0))?.run()?;
    ensure!(outcome.requests == range.count, "not every key was set");
    Ok(())
}
