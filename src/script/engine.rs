//! The states of a node, its known scripts, and which scripts are running.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::control::{Control, Stop};
use super::state::{Ended, Host, State};
use super::texts::{Script, Scripts};

/// Most states that wait for work. More are made when more scripts run at one time.
const MOST_IDLE: usize = 8;
/// A state that takes more memory after its garbage was collected is not used again.
const MOST_KEPT: usize = 8 << 20;

/// What to run.
pub struct Job<'j> {
    pub script: &'j Script,
    pub keys: &'j [&'j [u8]],
    pub args: &'j [&'j [u8]],
    /// How long it may run.
    pub time: Option<Duration>,
}

pub struct Engine {
    pub scripts: Scripts,
    redis_version: &'static str,
    idle: Mutex<Idle>,
    /// Of scripts that are running.
    running: Mutex<Vec<Arc<Control>>>,
}

#[derive(Default)]
struct Idle {
    states: Vec<State>,
    /// States of an earlier generation may know scripts that were forgotten since.
    generation: u64,
}

/// A script that is running, until this is dropped.
struct Running<'e> {
    engine: &'e Engine,
    control: Arc<Control>,
}

impl<'e> Running<'e> {
    fn new(engine: &'e Engine, control: Arc<Control>) -> Self {
        engine.running.lock().push(control.clone());
        Running { engine, control }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut running = self.engine.running.lock();
        running.retain(|running| !Arc::ptr_eq(running, &self.control));
    }
}

impl Engine {
    pub fn new(redis_version: &'static str) -> Self {
        Engine {
            scripts: Scripts::default(),
            redis_version,
            idle: Mutex::default(),
            running: Mutex::default(),
        }
    }

    /// Runs a script to its end. The error is a reply.
    pub fn run(&self, host: &mut dyn Host, job: &Job<'_>) -> Result<Ended, Bytes> {
        let (mut state, generation) = self.state()?;
        let control = state.control().clone();
        control.begin(job.time);
        let running = Running::new(self, control);
        let ended = state.run(host, job.script, job.keys, job.args);
        drop(running);
        self.put_back(state, generation);
        Ok(ended)
    }

    /// Compiles a script. The error is a reply.
    pub fn compile(&self, script: &Script) -> Result<(), Bytes> {
        let (mut state, generation) = self.state()?;
        let compiled = state.compile(script).map(|_| ());
        self.put_back(state, generation);
        compiled
    }

    /// Stops the scripts that have been running for longer than this. False if there is none.
    pub fn kill(&self, longer_than: Duration) -> bool {
        let running = self.running.lock();
        let mut long = running
            .iter()
            .filter(|control| control.runs_for() > longer_than)
            .peekable();
        let is_any = long.peek().is_some();
        long.for_each(|control| control.stop(Stop::Killed));
        is_any
    }

    /// True if a script has been running for longer than this.
    pub fn is_busy(&self, longer_than: Duration) -> bool {
        self.running
            .lock()
            .iter()
            .any(|control| control.runs_for() > longer_than)
    }

    /// Forgets all scripts.
    pub fn flush(&self) {
        self.scripts.clear();
        let mut idle = self.idle.lock();
        idle.generation += 1;
        let states = std::mem::take(&mut idle.states);
        drop(idle);
        drop(states);
    }

    /// Bytes of the largest state that waits for work.
    pub fn memory(&self) -> usize {
        self.idle.lock().states.iter().map(State::memory).max().unwrap_or(0)
    }

    fn state(&self) -> Result<(State, u64), Bytes> {
        let (state, generation) = {
            let mut idle = self.idle.lock();
            (idle.states.pop(), idle.generation)
        };
        let state = match state {
            Some(state) => state,
            None => State::new(self.redis_version)
                .map_err(|error| Bytes::from(format!("ERR Lua cannot be prepared: {error}")))?,
        };
        Ok((state, generation))
    }

    fn put_back(&self, state: State, generation: u64) {
        if state.memory() > MOST_KEPT && (state.collect().is_err() || state.memory() > MOST_KEPT) {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.generation == generation && idle.states.len() < MOST_IDLE {
            idle.states.push(state);
        }
    }
}
