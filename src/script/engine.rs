//! The states of a node, its known scripts, and which scripts are running.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::control::{Control, Stop};
use super::functions::{Index, Library, Refused};
use super::state::{Ended, Host, State};
use super::texts::{Script, Scripts};

/// Most states that wait for work. More are made when more scripts run at one time.
const MOST_IDLE: usize = 8;
/// A state that takes more memory after its garbage was collected is not used again.
const MOST_KEPT: usize = 8 << 20;

/// What a library of another node may take to be loaded.
const LOADING: Duration = Duration::from_secs(5);

/// What to run.
pub struct Job<'j> {
    pub script: &'j Script,
    pub keys: &'j [&'j [u8]],
    pub args: &'j [&'j [u8]],
    /// How long it may run.
    pub time: Option<Duration>,
}

/// Which function to call.
pub struct Call<'j> {
    pub library: &'j Library,
    pub function: &'j Bytes,
    pub keys: &'j [&'j [u8]],
    pub args: &'j [&'j [u8]],
    /// How long it may run.
    pub time: Option<Duration>,
    /// The whole command.
    pub command: &'j [&'j [u8]],
}

/// What is running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Script,
    Function { name: Bytes, command: Vec<Bytes> },
}

/// What became of an attempt to stop what runs for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    Killed,
    /// Only what is of the other kind runs.
    Other,
    Nothing,
}

/// The texts of libraries by their names, and what they mean.
type Known = (Arc<BTreeMap<Bytes, Bytes>>, Arc<Index>);

pub struct Engine {
    pub scripts: Scripts,
    /// The libraries that were asked for last.
    index: Mutex<Known>,
    /// Libraries that cannot be loaded, which is reported once: their names and texts.
    broken: Mutex<HashMap<Bytes, Bytes>>,
    redis_version: &'static str,
    idle: Mutex<Idle>,
    /// Of scripts that are running.
    running: Mutex<Vec<(Arc<Control>, Kind)>>,
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
    fn new(engine: &'e Engine, control: Arc<Control>, kind: Kind) -> Self {
        engine.running.lock().push((control.clone(), kind));
        Running { engine, control }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut running = self.engine.running.lock();
        running.retain(|(running, _)| !Arc::ptr_eq(running, &self.control));
    }
}

impl Engine {
    pub fn new(redis_version: &'static str) -> Self {
        Engine {
            scripts: Scripts::default(),
            index: Mutex::default(),
            broken: Mutex::default(),
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
        let running = Running::new(self, control, Kind::Script);
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

    /// Calls a function to its end. The error is a reply.
    pub fn call(&self, host: &mut dyn Host, call: &Call<'_>) -> Result<Ended, Bytes> {
        let (mut state, generation) = self.state()?;
        let control = state.control().clone();
        control.begin(call.time);
        let kind = Kind::Function {
            name: call.function.clone(),
            command: call.command.iter().map(|word| Bytes::copy_from_slice(word)).collect(),
        };
        let running = Running::new(self, control, kind);
        let ended = state.call_function(host, (call.library, call.function), call.keys, call.args);
        drop(running);
        self.put_back(state, generation);
        Ok(ended)
    }

    /// Loads a library, within this time.
    pub fn load(&self, host: &mut dyn Host, text: &Bytes, time: Duration) -> Result<Arc<Library>, Refused> {
        let (mut state, generation) = self.state().map_err(|error| Refused::Error(error.to_vec()))?;
        state.control().begin(Some(time));
        let loaded = state.load_library(host, text);
        self.put_back(state, generation);
        loaded
    }

    /// The libraries with these texts. One that cannot be loaded, as another node or producer may
    /// have written it, is left out and reported. `None`: it takes longer than `short`. If that is
    /// `None`, it takes as long as a library may take.
    pub fn index(
        &self,
        host: &mut dyn Host,
        texts: &Arc<BTreeMap<Bytes, Bytes>>,
        short: Option<Duration>,
    ) -> Option<Arc<Index>> {
        let (of, known) = self.index.lock().clone();
        if Arc::ptr_eq(&of, texts) {
            return Some(known);
        }
        let mut index = Index::default();
        for (name, text) in texts.iter() {
            if self.broken.lock().get(name) == Some(text) {
                continue;
            }
            let library = match known.libraries.get(name).filter(|library| library.text == *text) {
                Some(library) => Ok(library.clone()),
                None => self.load(host, text, short.unwrap_or(LOADING)),
            };
            let why = match library {
                Ok(library) if library.name != *name => "it has another name".to_owned(),
                Ok(library) => match index.add(&library) {
                    Ok(()) => continue,
                    Err(function) => format!("another library has its function {}", function.escape_ascii()),
                },
                Err(Refused::Stopped(Stop::Late)) if short.is_some() => return None,
                Err(Refused::Stopped(stop)) => format!("it was stopped: {stop:?}"),
                Err(Refused::Error(error)) => error.escape_ascii().to_string(),
            };
            tracing::warn!(library = %name.escape_ascii(), why, "a library of functions is left out");
            self.broken.lock().insert(name.clone(), text.clone());
        }
        self.broken.lock().retain(|name, _| texts.contains_key(name));
        let index = Arc::new(index);
        *self.index.lock() = (texts.clone(), index.clone());
        Some(index)
    }

    /// Stops the scripts, or the functions, that have been running for longer than this.
    pub fn kill(&self, functions: bool, longer_than: Duration) -> Kill {
        let running = self.running.lock();
        let mut kill = Kill::Nothing;
        for (control, kind) in running.iter().filter(|(control, _)| control.runs_for() > longer_than) {
            if functions == matches!(kind, Kind::Function { .. }) {
                control.stop(Stop::Killed);
                kill = Kill::Killed;
            } else if kill == Kill::Nothing {
                kill = Kill::Other;
            }
        }
        kill
    }

    /// What has been running for the longest time, if that is longer than this; and how long.
    pub fn longest(&self, longer_than: Duration) -> Option<(Kind, Duration)> {
        let running = self.running.lock();
        let times = running.iter().map(|(control, kind)| (kind, control.runs_for()));
        let longest = times
            .filter(|(_, time)| *time > longer_than)
            .max_by_key(|(_, time)| *time);
        longest.map(|(kind, time)| (kind.clone(), time))
    }

    /// True if a script has been running for longer than this.
    pub fn is_busy(&self, longer_than: Duration) -> bool {
        self.running
            .lock()
            .iter()
            .any(|(control, _)| control.runs_for() > longer_than)
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
